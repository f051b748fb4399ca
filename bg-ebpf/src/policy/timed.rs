//! The live word in force. A word with [`LiveFlags::TIMED`] changes by itself: a scheduled switch takes effect, a ramp moves
//! the share, and a switch that nobody has confirmed is taken back. There is no timer and no process. Whoever reads the word
//! derives what is in force, and whoever finds that an instant has passed makes it explicit by a compare-exchange of the word.
//! So a confirmation and an expiry at the same moment have one outcome. The conditions of a switch ([`super::trips`]) take it back in
//! the same way.
//!
//! User space asks the same functions.

use crate::{
    hint::{rolled, unlikely},
    policy::switch::{Order, drain_deadline, next, tick_after},
    step::Step,
    world::{Generations, Guard, World, note},
};
use bg_common::{Cause, ClockId, Conditions, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms, Timing, Trips};

/// The live word in force. A packet reads it once. `judges`: whether the conditions of a switch are judged.
#[inline(always)]
pub fn read(deployment: u16, judges: bool, world: &impl World) -> Option<LiveWord> {
    let word = world.live(deployment)?;
    if unlikely(word.flags().has(LiveFlags::TIMED)) {
        return Some(settled(deployment, word, judges, world));
    }
    Some(word)
}

/// The word in force, where a word with [`LiveFlags::TIMED`] stands.
#[inline(always)]
pub fn settled(deployment: u16, word: LiveWord, judges: bool, world: &impl World) -> LiveWord {
    let in_force = world.settle(deployment, word, judges);
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
            let in_force = before(word, timing).with_target_share(share);
            // The conditions are judged from now on.
            let is_judged = timing.conditions != 0;
            let flags = in_force.flags();
            let flags = if is_judged { flags.with(LiveFlags::TIMED) } else { flags };
            return Due::Nothing(in_force.with_flags(flags));
        }
        return Due::Activation(passed - timing.ramp);
    }
    if timing.revert_at != 0 && now(ClockId::Boot) >= timing.revert_at {
        return Due::Expiry;
    }
    Due::Nothing(word)
}

/// The word that is in force until `word` takes effect. A freeze since then concerns it too, and what guarded it guards it no more.
#[inline(always)]
fn before(word: LiveWord, timing: &Timing) -> LiveWord {
    let flags = timing.before.flags().without(LiveFlags::HOLD.with(LiveFlags::TIMED));
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
    /// When that was, by [`ClockId::Boot`].
    pub began_at: u64,
    /// [`Timing::revert_at`] from then on.
    pub revert_at: u64,
}

/// What there is from the moment on when a word takes effect, which was `late` nanoseconds ago. `tick` and `boot` are the present moment.
#[inline(always)]
pub fn activation(word: LiveWord, timing: &Timing, late: u64, tick: u32, boot: u64) -> Activation {
    let is_guarded = timing.window != 0 || timing.conditions != 0;
    let flags = if is_guarded { word.flags() } else { word.flags().without(LiveFlags::TIMED) };
    let is_drain = word.flags().has(LiveFlags::DRAINING);
    let began_at = match ClockId::from_u8(timing.clock) {
        // Not from the present moment: a process may have been stopped since it has read the clock.
        ClockId::Boot => timing.activate_at + timing.ramp,
        ClockId::Tai => boot.saturating_sub(late).max(1),
    };
    Activation {
        word: word.with_flags(flags),
        drain_deadline: if is_drain { drain_deadline(tick, timing.drain_timeout) } else { 0 },
        drain_began: if is_drain { tick_after(tick, 0) } else { 0 },
        began_at,
        revert_at: if timing.window != 0 { began_at + timing.window } else { 0 },
    }
}

/// Why a word is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// When.
    pub at: u64,
    /// The conditions that hold. None: it was not confirmed in time.
    pub conditions: Conditions,
}

impl Return {
    /// It was not confirmed in time.
    #[inline(always)]
    pub const fn expired(timing: &Timing) -> Self {
        Self { at: timing.revert_at, conditions: Conditions::NONE }
    }
}

/// The generation that takes back `word`. `None` if there is no next generation. A share that leaves new flows to both colours ends none of either.
#[inline(always)]
pub fn taken_back(
    word: LiveWord,
    terms: &SwitchTerms,
    timing: &Timing,
    tick: u32,
    why: Return,
) -> Option<(LiveWord, SwitchTerms, Timing)> {
    let (share, is_cut) = (word.previous_share(), timing.on_switch != 0);
    let has_deadline = !is_cut && matches!(share, 0 | FULL_SHARE);
    let deadline = if has_deadline { drain_deadline(tick, timing.drain_timeout) } else { 0 };
    let order = Order { share, is_cut, drain_deadline: deadline, now: tick };
    let (new, new_terms) = next(word, terms, order)?;
    Some((new, new_terms, timing_of(new, timing, why)))
}

/// The timing of the generation that takes one back which had `timing`.
#[inline(always)]
fn timing_of(new: LiveWord, timing: &Timing, why: Return) -> Timing {
    Timing {
        made_at: why.at,
        hold_until: timing.hold_until,
        generation: new.generation(),
        cause: if why.conditions.is_empty() { Cause::Expired as u8 } else { Cause::Tripped as u8 },
        conditions: why.conditions.0,
        ..Timing::default()
    }
}

/// Makes explicit what has come due, and returns the word in force. `judges`: whether the conditions are judged.
#[inline(always)]
pub fn settle(deployment: u16, mut word: LiveWord, judges: bool, generations: &impl Generations) -> LiveWord {
    // It may take effect and be taken back, and others may do the same.
    for _ in rolled(4) {
        if !word.flags().has(LiveFlags::TIMED) {
            break;
        }
        let slot = word.terms_slot();
        let Some(timing) = generations.timing(deployment, slot) else { break };
        // What is taken back, and where its terms are.
        let (taken, taken_slot, why) = match due(word, &timing, |clock| generations.now(clock)) {
            Due::Nothing(in_force) => {
                let is_judged = judges && timing.conditions != 0 && in_force.flags().has(LiveFlags::TIMED);
                let conditions = if is_judged { generations.holding(deployment, word) } else { Conditions::NONE };
                if conditions.is_empty() {
                    return in_force;
                }
                // While a ramp goes on, the word before it decides about open flows. The next generation's terms take the place of that
                // word's, so packets that still go by it may meet them. They end no flow that will not be ended in a moment.
                let why = Return { at: generations.now(ClockId::Boot), conditions };
                (word.with_flags(in_force.flags()), in_force.terms_slot(), why)
            }
            Due::Activation(late) => {
                let (tick, boot) = (generations.present_tick(), generations.now(ClockId::Boot));
                let activation = activation(word, &timing, late, tick, boot);
                let stays_timed = activation.word.0 == word.0;
                let drain = [activation.drain_deadline, activation.drain_began];
                let guard = Guard {
                    began_at: activation.began_at,
                    revert_at: activation.revert_at,
                    paused_until: boot + Trips::PAUSE,
                };
                generations.activate(deployment, slot, drain, stays_timed.then_some(guard));
                if !stays_timed {
                    word = generations.exchange(deployment, word, activation.word);
                }
                continue;
            }
            Due::Expiry => (word, slot, Return::expired(&timing)),
        };
        let Some(terms) = generations.terms_of(deployment, taken_slot) else { break };
        let Some((new, new_terms, new_timing)) = taken_back(taken, &terms, &timing, generations.present_tick(), why)
        else {
            break;
        };
        generations.prepare(deployment, new.terms_slot(), &new_terms, &new_timing);
        word = generations.exchange(deployment, word, new);
    }
    word
}
