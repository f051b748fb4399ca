//! Switches of all kinds, freezes, and backends that go down, as user space makes them.

use bg_common::{
    Conditions, Event, HOLD_OPEN, Hold, Limit, LiveFlags, LiveWord, NO_BACKEND, SwitchTerms, TableSpan, Timing, Trips,
};
use bg_tests::twin::{Host, Kernel};

/// What a switch does to open flows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Cut,
    Drain,
    /// A drain whose deadline has passed at once: the next new flow ends it.
    Drained,
    /// A cut that a packet may have to make explicit, or to take back.
    Timed(Instant),
}

/// Where the instants of a timed word are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Instant {
    /// It takes effect later.
    Ahead,
    /// It should have taken effect.
    Passed,
    /// Its deadline comes later.
    Guarded,
    /// Its deadline has passed.
    Expired,
    /// There is none, but the second new flow that is reset takes it back.
    Watched,
    /// A ramp that has just begun, and takes longer than this lasts.
    Ramp,
    /// The timing is of another generation.
    Foreign,
}

/// What becomes of packets that wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Queue {
    Open,
    /// It has just been played back to its end, and the packet goes on.
    Closed,
    Drops,
}

/// Makes the other colour of a deployment live.
pub(crate) fn switch(host: &Host, kernel: &mut Kernel, deployment: u16, ending: Ending) {
    let before = host.word(deployment);
    let (word, terms) = next(before, host.terms(deployment), ending, host.tick.get());
    let hold_until = host.timings(deployment)[before.terms_slot()].hold_until;
    let timing = Timing { hold_until, ..timing(before, word, ending) };
    host.set_timing(deployment, word, timing);
    kernel.set_timing(deployment, word, timing).expect("timing");
    host.set_trips(deployment, word, trips(word));
    kernel.set_trips(deployment, word, trips(word)).expect("trips");
    host.set_live(deployment, word, terms);
    kernel.set_live(deployment, word, terms).expect("switch");
}

/// The word and terms of a switch, as user space makes them.
fn next(word: LiveWord, terms: [SwitchTerms; 2], ending: Ending, now: u32) -> (LiveWord, SwitchTerms) {
    let generation = word.generation() + 1;
    let mut new = SwitchTerms { drain_deadline: 0, ..terms[word.terms_slot()] };
    let mut flags = LiveFlags(word.flags().0 & LiveFlags::HOLD.0);
    match ending {
        Ending::Timed(_) => {
            new.ended_before[word.live() as usize] = generation;
            flags = flags.with(LiveFlags::TIMED);
        }
        Ending::Cut => new.ended_before[word.live() as usize] = generation,
        Ending::Drain => flags = flags.with(LiveFlags::DRAINING),
        Ending::Drained => {
            flags = flags.with(LiveFlags::DRAINING);
            new.drain_deadline = now.wrapping_sub(1).max(1);
        }
    }
    if new.ended_before != [0, 0] {
        flags = flags.with(LiveFlags::CUT);
    }
    (LiveWord::new(generation, flags, word.target_share(), word.live().other().full_share()), new)
}

/// The timing of such a switch. No instant is near, since the host's clocks stand still.
fn timing(before: LiveWord, word: LiveWord, ending: Ending) -> Timing {
    let timing = Timing { before, on_switch: 1, generation: word.generation(), ..Timing::default() };
    match ending {
        Ending::Timed(Instant::Ahead) => Timing { activate_at: u64::MAX, clock: 1, window: 7, ..timing },
        Ending::Timed(Instant::Passed) => Timing { activate_at: 1, ..timing },
        Ending::Timed(Instant::Guarded) => Timing { window: 7, revert_at: u64::MAX, ..timing },
        Ending::Timed(Instant::Expired) => Timing { window: 7, revert_at: 1, ..timing },
        Ending::Timed(Instant::Watched) => Timing { conditions: Conditions::RESETS.0, ..timing },
        Ending::Timed(Instant::Ramp) => {
            Timing { conditions: Conditions::RESETS.0, activate_at: 1, ramp: u64::MAX, ..timing }
        }
        Ending::Timed(Instant::Foreign) => {
            Timing { activate_at: u64::MAX, generation: word.generation() ^ 2, ..timing }
        }
        _ => timing,
    }
}

/// The conditions of such a switch. No flow grows old.
fn trips(word: LiveWord) -> Trips {
    Trips {
        generation: word.generation(),
        second: 16,
        colour: word.live() as u16,
        resets: Limit { share: 100, least: 2 },
        unjudged_tick: u64::from(u32::MAX / 2),
        ..Trips::default()
    }
}

/// Freezes a deployment. No instant is near, as above.
pub(crate) fn freeze(host: &Host, kernel: &mut Kernel, deployment: u16, is_over: bool, queue: Queue) {
    let word = host.word(deployment);
    let hold_until = if is_over { 1 } else { u64::MAX };
    for word in [word, LiveWord::new(word.generation() ^ 1, LiveFlags::NONE, 0, 0)] {
        let timing = Timing { hold_until, ..host.timings(deployment)[word.terms_slot()] };
        host.set_timing(deployment, word, timing);
        kernel.set_timing(deployment, word, timing).expect("timing");
    }
    // The host's world has one queue for all deployments.
    host.holds.set(match queue {
        Queue::Open => Some(Event::Held),
        Queue::Closed => None,
        Queue::Drops => Some(Event::Frozen),
    });
    let claims = if matches!(queue, Queue::Open) { HOLD_OPEN } else { 0 };
    let hold = Hold { claims, drops: matches!(queue, Queue::Drops).into(), ..Hold::default() };
    (0..2).for_each(|row| kernel.set_queue(row, hold).expect("a queue"));
    let (frozen, terms) =
        (word.with_flags(word.flags().with(LiveFlags::HOLD)), host.terms(deployment)[word.terms_slot()]);
    host.set_live(deployment, frozen, terms);
    kernel.set_live(deployment, frozen, terms).expect("freeze");
}

/// Has all backends of a service's colour go down, and get no new flow any more, or come back. `all` are the tables with all of them.
pub(crate) fn set_health(host: &mut Host, kernel: &mut Kernel, all: &[u32], table: TableSpan, is_down: bool) {
    let entries = table.base as usize..(table.base + table.len) as usize;
    let maglev = &mut host.scenario.maglev;
    if is_down {
        maglev[entries].fill(NO_BACKEND);
    } else {
        maglev[entries.clone()].copy_from_slice(&all[entries]);
    }
    kernel.set_maglev(&host.scenario).expect("health");
}
