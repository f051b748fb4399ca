//! The live word in force. A word with [`LiveFlags::TIMED`] changes by itself: a scheduled switch takes effect, a ramp moves
//! the share, and a switch that nobody has confirmed is taken back. There is no timer and no process. Whoever reads the word
//! derives what is in force, and whoever finds that an instant has passed makes it explicit by a compare-exchange of the word.
//! So a confirmation and an expiry at the same moment have one outcome.
//!
//! User space asks the same functions.

use crate::{
    hint::{rolled, unlikely},
    policy::switch::{Order, drain_deadline, next, tick_after},
    step::Step,
    world::{Generations, World, note},
};
use bg_common::{Cause, ClockId, LiveFlags, LiveWord, SwitchTerms, Timing};

/// The live word in force. A packet reads it once.
#[inline(always)]
pub fn read(deployment: u16, world: &impl World) -> Option<LiveWord> {
    let word = world.live(deployment)?;
    if unlikely(word.flags().has(LiveFlags::TIMED)) {
        return Some(settled(deployment, word, world));
    }
    Some(word)
}

/// The word in force, where a word with [`LiveFlags::TIMED`] stands.
#[inline(always)]
pub fn settled(deployment: u16, word: LiveWord, world: &impl World) -> LiveWord {
    let in_force = world.settle(deployment, word);
    note!(world, Step::Settled { deployment: deployment.into(), word: word.0, in_force: in_force.0 });
    in_force
}

/// What a timed word has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// No instant has passed. This word is in force.
    Nothing(LiveWord),
    /// It takes effect, and should have done so as many nanoseconds ago.
    Activation(u64),
    /// It was not confirmed, and is taken back.
    Expiry,
}

/// What a word with [`LiveFlags::TIMED`] has come to. `now` reads a clock.
#[inline(always)]
pub fn due(word: LiveWord, timing: &Timing, now: impl Fn(ClockId) -> u64) -> Due {
    if timing.generation != word.generation() {
        return Due::Nothing(word);
    }
    if timing.activate_at != 0 {
        let now = now(ClockId::from_u8(timing.clock));
        if now < timing.activate_at {
            return Due::Nothing(before(word, timing));
        }
        let passed = now - timing.activate_at;
        if passed < timing.ramp {
            let share = between(timing.before.target_share(), word.target_share(), passed, timing.ramp);
            return Due::Nothing(before(word, timing).with_target_share(share));
        }
        return Due::Activation(passed - timing.ramp);
    }
    if timing.revert_at != 0 && now(ClockId::Boot) >= timing.revert_at {
        return Due::Expiry;
    }
    Due::Nothing(word)
}

/// The word that is in force until `word` takes effect. A freeze since then concerns it too.
#[inline(always)]
fn before(word: LiveWord, timing: &Timing) -> LiveWord {
    let flags = timing.before.flags().without(LiveFlags::HOLD);
    timing.before.with_flags(flags.with(LiveFlags(word.flags().0 & LiveFlags::HOLD.0)))
}

/// The share after `passed` of `whole` nanoseconds, on a straight line from one share to another.
#[inline(always)]
fn between(from: u16, to: u16, passed: u64, whole: u64) -> u16 {
    // In units of a microsecond, a product with a share fits for 58 years.
    let part = |difference: u16| (u64::from(difference) * (passed >> 10) / (whole >> 10).max(1)) as u16;
    if to >= from { from + part(to - from) } else { from - part(from - to) }
}

/// A word that takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The word from then on.
    pub word: LiveWord,
    /// [`SwitchTerms::drain_deadline`] from then on.
    pub drain_deadline: u32,
    /// [`SwitchTerms::drain_began`] from then on.
    pub drain_began: u32,
    /// [`Timing::revert_at`] from then on.
    pub revert_at: u64,
}

/// What there is from the moment on when a word takes effect, which was `late` nanoseconds ago. `tick` and `boot` are the present moment.
#[inline(always)]
pub fn activation(word: LiveWord, timing: &Timing, late: u64, tick: u32, boot: u64) -> Activation {
    let is_guarded = timing.window != 0;
    let flags = if is_guarded { word.flags() } else { word.flags().without(LiveFlags::TIMED) };
    let is_drain = word.flags().has(LiveFlags::DRAINING);
    let revert_at = match ClockId::from_u8(timing.clock) {
        // Not from the present moment: a process may have been stopped since it has read the clock.
        ClockId::Boot => timing.activate_at + timing.ramp + timing.window,
        ClockId::Tai => (boot + timing.window).saturating_sub(late).max(1),
    };
    Activation {
        word: word.with_flags(flags),
        drain_deadline: if is_drain { drain_deadline(tick, timing.drain_timeout) } else { 0 },
        drain_began: if is_drain { tick_after(tick, 0) } else { 0 },
        revert_at: if is_guarded { revert_at } else { 0 },
    }
}

/// The generation that takes back `word`. `None` if there is no next generation.
#[inline(always)]
pub fn expiry(
    word: LiveWord,
    terms: &SwitchTerms,
    timing: &Timing,
    tick: u32,
) -> Option<(LiveWord, SwitchTerms, Timing)> {
    let is_cut = timing.on_switch != 0;
    let deadline = if is_cut { 0 } else { drain_deadline(tick, timing.drain_timeout) };
    let order = Order { share: word.previous_share(), is_cut, drain_deadline: deadline, now: tick };
    let (new, new_terms) = next(word, terms, order)?;
    let new_timing = Timing {
        made_at: timing.revert_at,
        hold_until: timing.hold_until,
        generation: new.generation(),
        cause: Cause::Expired as u8,
        ..Timing::default()
    };
    Some((new, new_terms, new_timing))
}

/// Makes explicit what has come due, and returns the word in force.
#[inline(always)]
pub fn settle(deployment: u16, mut word: LiveWord, generations: &impl Generations) -> LiveWord {
    // It may take effect and be taken back, and others may do the same.
    for _ in rolled(4) {
        if !word.flags().has(LiveFlags::TIMED) {
            break;
        }
        let slot = word.terms_slot();
        let Some(timing) = generations.timing(deployment, slot) else { break };
        word = match due(word, &timing, |clock| generations.now(clock)) {
            Due::Nothing(in_force) => return in_force,
            Due::Activation(late) => {
                let (tick, boot) = (generations.present_tick(), generations.now(ClockId::Boot));
                let activation = activation(word, &timing, late, tick, boot);
                let drain = [activation.drain_deadline, activation.drain_began];
                generations.activate(deployment, slot, drain, activation.revert_at);
                if activation.word.0 == word.0 { word } else { generations.exchange(deployment, word, activation.word) }
            }
            Due::Expiry => {
                let Some(terms) = generations.terms_of(deployment, slot) else { break };
                let Some((new, new_terms, new_timing)) = expiry(word, &terms, &timing, generations.present_tick())
                else {
                    break;
                };
                generations.prepare(deployment, new.terms_slot(), &new_terms, &new_timing);
                generations.exchange(deployment, word, new)
            }
        };
    }
    word
}
