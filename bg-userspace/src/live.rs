//! A deployment's live state: as it is stored, and as it is in force at a moment.

use std::sync::atomic::{Ordering, fence};

use bg_common::{Cause, ClockId, Colour, Conditions, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms, Timing, Trips};
use bg_ebpf::{
    policy::{
        timed::{Due, Return, activation, due, settle, taken_back},
        trips,
    },
    world::{Generations, Guard},
};
use rustix::time::{DynamicClockId, clock_gettime_dynamic};

use crate::{
    condition::{self, Condition},
    flow_table::Row,
    history::Moment,
    maps::Words,
};

/// In the place of [`Timing::revert_at`]: the switch was confirmed before it has taken effect.
pub(crate) const NEVER: u64 = u64::MAX;

/// The live state of a deployment at a moment. What has come due by then counts, although nobody may have made it explicit yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// The word as it is stored.
    pub(crate) stored: LiveWord,
    /// The word in force.
    pub(crate) word: LiveWord,
    /// The terms of that.
    pub(crate) terms: SwitchTerms,
    /// The timing of the last generation; of an unknown cause if the program that made it has written none.
    pub(crate) timing: Timing,
    /// The number of the last generation. It may not be in force yet.
    pub(crate) generation: u32,
    /// Whether nothing has come due that nobody has made explicit.
    pub(crate) is_explicit: bool,
}

impl Words {
    /// A deployment's live state. `tick` is the present one.
    pub(crate) fn reading(&self, deployment: u16, tick: u32) -> Reading {
        let row = deployment.into();
        loop {
            let word = self.live.read(row);
            fence(Ordering::Acquire);
            let timings = self.timing.read(row);
            fence(Ordering::Acquire);
            let terms = self.terms.read(row);
            fence(Ordering::Acquire);
            if self.live.read(row) == word {
                return Reading::of(word, &terms, noted(word, &timings), tick);
            }
        }
    }
}

impl Words {
    /// The conditions that may take a deployment's last generation back, or that have, as people write them.
    pub(crate) fn conditions(&self, deployment: u16, reading: &Reading) -> Vec<String> {
        let conditions = reading.conditions();
        let generation = reading.generation.wrapping_sub(u32::from(reading.is_taken_back()));
        let trips = self.trips.read(deployment.into())[generation as usize & 1];
        if trips.generation != generation {
            return condition::names(conditions);
        }
        Condition::all_of(&trips)
            .filter(|condition| conditions.has(condition.kind()))
            .map(|condition| condition.to_string())
            .collect()
    }

    /// Whether the last generation has conditions, or had some until a confirmation, which leaves their row as it is.
    pub(crate) fn had_conditions(&self, deployment: u16, reading: &Reading) -> bool {
        self.trips.read(deployment.into())[reading.stored.terms_slot()].generation == reading.stored.generation()
    }
}

impl Reading {
    /// `tick` is the present one. Only the deadline of the drain that an expiry begins depends on it.
    pub(crate) fn of(stored: LiveWord, terms: &[SwitchTerms; 2], timing: Timing, tick: u32) -> Self {
        // A freeze writes the end of it into a row that no switch has written yet.
        let unknown = Timing { generation: stored.generation(), hold_until: timing.hold_until, ..Timing::default() };
        let timing = if timing.generation == stored.generation() { timing } else { unknown };
        let generation = stored.generation();
        let terms_of = |word: LiveWord| terms[word.terms_slot()];
        let mut reading = Self { stored, word: stored, terms: terms_of(stored), timing, generation, is_explicit: true };
        // It may take effect and be taken back.
        for _ in 0..2 {
            if !reading.word.flags().has(LiveFlags::TIMED) {
                break;
            }
            match due(reading.word, &reading.timing, now) {
                Due::Nothing(word) => {
                    if word != reading.word {
                        (reading.word, reading.terms) = (word, terms_of(word));
                    }
                    break;
                }
                Due::Activation(late) => {
                    reading.is_explicit = false;
                    let activation = activation(reading.word, &reading.timing, late, tick, now(ClockId::Boot));
                    reading.word = activation.word;
                    reading.terms.drain_deadline = activation.drain_deadline;
                    reading.terms.drain_began = activation.drain_began;
                    (reading.timing.activate_at, reading.timing.revert_at) = (0, activation.revert_at);
                }
                Due::Expiry => {
                    let why = Return::expired(&reading.timing);
                    let next = taken_back(reading.word, &reading.terms, &reading.timing, tick, why);
                    let Some((word, terms, timing)) = next else { break };
                    let timing = Timing { kept: reading.timing.kept, ..timing };
                    (reading.word, reading.terms, reading.timing) = (word, terms, timing);
                    (reading.generation, reading.is_explicit) = (word.generation(), false);
                }
            }
        }
        reading
    }

    /// The state for the journal.
    pub(crate) fn moment(&self) -> Moment {
        Moment { generation: self.generation, live: self.word.live() }
    }

    /// The word in force, with the number of the last generation.
    pub(crate) fn shown(&self) -> LiveWord {
        let word = self.word;
        LiveWord::new(self.generation, word.flags(), word.previous_share(), word.target_share())
    }

    /// Whether the last generation has not taken effect yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.stored.flags().has(LiveFlags::TIMED) && self.timing.activate_at != 0
    }

    /// When the switch is taken back unless it is confirmed, in nanoseconds of [`ClockId::Boot`].
    pub(crate) fn confirm_by(&self) -> Option<u64> {
        let deadline = self.timing.revert_at;
        (self.word.flags().has(LiveFlags::TIMED) && !matches!(deadline, 0 | NEVER)).then_some(deadline)
    }

    /// Whether the switch is in force and waits for a confirmation, with or without a deadline.
    pub(crate) fn is_guarded(&self) -> bool {
        !self.is_pending() && (self.is_watched() || self.confirm_by().is_some())
    }

    /// Whether the last generation waits for a confirmation, or will once it has taken effect. A ramp that was confirmed goes on, and waits for none.
    pub(crate) fn waits_for_confirmation(&self) -> bool {
        let Timing { window, revert_at, .. } = self.timing;
        let has_end = window != 0 || !matches!(revert_at, 0 | NEVER);
        self.is_watched() || (self.stored.flags().has(LiveFlags::TIMED) && has_end)
    }

    /// Whether conditions may take the last generation back, now or once it has taken effect.
    pub(crate) fn is_watched(&self) -> bool {
        self.stored.flags().has(LiveFlags::TIMED) && !self.conditions().is_empty()
    }

    /// The conditions that take the last generation back, while it is timed; those that have, if that is its cause.
    pub(crate) fn conditions(&self) -> Conditions {
        Conditions(self.timing.conditions)
    }

    /// Whether a ramp has begun, and not ended.
    pub(crate) fn is_ramping(&self) -> bool {
        let Timing { activate_at, ramp, clock, .. } = self.timing;
        self.is_pending() && ramp != 0 && now(ClockId::from_u8(clock)) >= activate_at
    }

    /// The share before a ramp that was cancelled on its way, if a switch to `share` goes on with it.
    pub(crate) fn before_ramp(&self, share: u16) -> Option<u16> {
        let (before, reached) = (self.stored.previous_share(), self.stored.target_share());
        let is_cancelled = self.cause() == Cause::Cancelled && self.timing.before != LiveWord::default();
        let goes_on = (before < reached && reached < share) || (before > reached && reached > share);
        (is_cancelled && goes_on).then_some(before)
    }

    /// What has made the last generation.
    pub(crate) fn cause(&self) -> Cause {
        Cause::from_u8(self.timing.cause)
    }

    /// Whether the data path has made the last generation, to take a switch back.
    pub(crate) fn is_taken_back(&self) -> bool {
        matches!(self.cause(), Cause::Expired | Cause::Tripped)
    }
}

impl Words {
    /// Why the data path has taken a switch back.
    pub(crate) fn why_taken_back(&self, deployment: u16, reading: &Reading) -> String {
        match reading.cause() {
            Cause::Tripped => format!(
                "since new flows met the condition \"{}\"",
                self.conditions(deployment, reading).join("\" and \"")
            ),
            _ => "when its time for a confirmation had passed".to_owned(),
        }
    }
}

/// The timing of a word. Packets note nothing about what was kept, so a generation that takes one back has what that one had noted, until
/// a process [writes it down](crate::switch).
pub(crate) fn noted(word: LiveWord, timings: &[Timing; 2]) -> Timing {
    let (own, other) = (timings[word.terms_slot()], timings[1 - word.terms_slot()]);
    let takes_back = matches!(Cause::from_u8(own.cause), Cause::Expired | Cause::Tripped);
    let is_before = own.generation == word.generation() && other.generation == word.generation().wrapping_sub(1);
    if takes_back && is_before && own.kept == [0; 4] { Timing { kept: other.kept, ..own } } else { own }
}

/// The colour that gets most new flows; none if both get the same.
pub(crate) fn colour_of(share: u16) -> Option<Colour> {
    match share.cmp(&(FULL_SHARE / 2)) {
        std::cmp::Ordering::Less => Some(Colour::Blue),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Colour::Green),
    }
}

/// Nanoseconds of a clock.
pub(crate) fn now(clock: ClockId) -> u64 {
    let clock = match clock {
        ClockId::Boot => DynamicClockId::Boottime,
        ClockId::Tai => DynamicClockId::Tai,
    };
    let time = clock_gettime_dynamic(clock).expect("both exist since Linux 3.10");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Makes explicit what has come due. The caller holds the switch lock: it may write terms, and another process could be doing so.
pub(crate) fn make_explicit(words: &Words, deployment: u16, tick: u32) -> LiveWord {
    settle(deployment, words.live.read(deployment.into()), true, &Locked { words, tick })
}

/// The live words, for who holds the switch lock.
struct Locked<'a> {
    words: &'a Words,
    tick: u32,
}

impl Generations for Locked<'_> {
    fn terms_of(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        Some(self.words.terms.read(deployment.into())[slot])
    }

    fn timing(&self, deployment: u16, slot: usize) -> Option<Timing> {
        Some(self.words.timing.read(deployment.into())[slot])
    }

    fn present_tick(&self) -> u32 {
        self.tick
    }

    fn now(&self, clock: ClockId) -> u64 {
        now(clock)
    }

    fn holding(&self, deployment: u16, word: LiveWord) -> Conditions {
        let row = Row::new(self.words.trips.words(deployment.into()), word.terms_slot() * size_of::<Trips>() / 8);
        trips::holding(row, word.generation(), self.tick, || now(ClockId::Boot))
    }

    fn activate(&self, deployment: u16, slot: usize, drain: [u32; 2], guard: Option<Guard>) {
        self.words.terms.update(deployment.into(), |terms| {
            [terms[slot].drain_deadline, terms[slot].drain_began] = drain;
        });
        if let Some(guard) = guard {
            self.words.trips.update(deployment.into(), |trips| {
                (trips[slot].began_at, trips[slot].paused_until) = (guard.began_at, guard.paused_until);
            });
            self.words.timing.update(deployment.into(), |timing| timing[slot].revert_at = guard.revert_at);
            self.words.timing.update(deployment.into(), |timing| timing[slot].activate_at = 0);
        }
    }

    fn prepare(&self, deployment: u16, slot: usize, terms: &SwitchTerms, timing: &Timing) {
        self.words.terms.update(deployment.into(), |slots| slots[slot] = *terms);
        self.words.timing.update(deployment.into(), |slots| slots[slot] = *timing);
    }

    fn exchange(&self, deployment: u16, old: LiveWord, new: LiveWord) -> LiveWord {
        exchange(self.words, deployment, old, new).map_or_else(|there| there, |()| new)
    }
}

/// Replaces a word if it is still there; otherwise returns the word that is there.
pub(crate) fn exchange(words: &Words, deployment: u16, old: LiveWord, new: LiveWord) -> Result<(), LiveWord> {
    let live = &words.live.words(deployment.into())[0];
    live.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).map(drop).map_err(LiveWord)
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;
    use bg_ebpf::policy::{
        lifetime::after_drain,
        switch::{Order, drain_deadline, next},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::config::OnSwitch;

    const BLUE: usize = Colour::Blue as usize;
    const GREEN: usize = Colour::Green as usize;

    fn first() -> (LiveWord, SwitchTerms) {
        (LiveWord::new(1, LiveFlags::NONE, 0, 0), SwitchTerms::default())
    }

    fn order(to: Colour, on_switch: OnSwitch, now: u32, timeout: u32) -> Order {
        let is_cut = on_switch == OnSwitch::Cut;
        Order { share: to.full_share(), is_cut, drain_deadline: drain_deadline(now, timeout), now }
    }

    fn switch((word, terms): (LiveWord, SwitchTerms), to: Colour, on_switch: OnSwitch) -> (LiveWord, SwitchTerms) {
        next(word, &terms, order(to, on_switch, 0, 0)).unwrap()
    }

    #[test]
    fn a_drain_leaves_open_flows_alone() {
        let (word, terms) = switch(first(), Colour::Green, OnSwitch::Drain);
        assert_eq!((word.generation(), word.live(), word.previous()), (2, Colour::Green, Colour::Blue));
        assert_eq!(word.flags(), LiveFlags::DRAINING);
        assert_eq!(terms, SwitchTerms { drain_began: 1, ..SwitchTerms::default() });
    }

    #[test]
    fn a_cut_ends_the_flows_of_the_old_colour_only() {
        let (word, terms) = switch(first(), Colour::Green, OnSwitch::Cut);
        assert_eq!(word.flags(), LiveFlags::CUT);
        assert_eq!((terms.ended_before[BLUE], terms.ended_before[GREEN]), (2, 0));
    }

    #[test]
    fn a_cut_is_remembered_through_later_drains() {
        let cut = switch(first(), Colour::Green, OnSwitch::Cut);
        let (word, terms) = switch(cut, Colour::Blue, OnSwitch::Drain);
        assert!(word.flags().has(LiveFlags::CUT) && word.flags().has(LiveFlags::DRAINING));
        assert_eq!(terms.ended_before[BLUE], 2, "a flow of generation 1 does not come back");
        assert_eq!(terms.ended_before[GREEN], 0, "those of generation 2 drain");
    }

    #[test]
    fn what_a_deadline_has_ended_stays_ended() {
        let (word, terms) = first();
        let (word, terms) = next(word, &terms, order(Colour::Green, OnSwitch::Drain, 50, 50)).unwrap();
        assert_eq!((terms.drain_began, terms.drain_deadline), (50, 100));
        let back = order(Colour::Blue, OnSwitch::Drain, 99, 0);
        assert_eq!(next(word, &terms, back).unwrap().1.ended_before, [0, 0]);
        let back = Order { now: 100, ..back };
        assert_eq!(next(word, &terms, back).unwrap().1.ended_before[BLUE], 2);
    }

    #[test]
    fn a_deadline_is_never_the_tick_that_means_never() {
        assert_eq!((drain_deadline(5, 0), drain_deadline(5, 3000), drain_deadline(u32::MAX - 999, 1000)), (0, 3005, 1));
    }

    #[test]
    fn generations_do_not_wrap() {
        let order = order(Colour::Green, OnSwitch::Drain, 0, 0);
        assert_eq!(next(LiveWord::new(u32::MAX, LiveFlags::NONE, 0, 0), &SwitchTerms::default(), order), None);
    }

    proptest! {
        #[test]
        fn no_history_brings_an_ended_flow_back(
            steps in prop::collection::vec((any::<bool>(), any::<bool>()), 1..40),
        ) {
            let mut state = first();
            // Generation in which the flows of each colour that are open now were opened at the earliest.
            let mut floor = [0, 0];
            for (cut, drained) in steps {
                let to = state.0.live().other();
                state = switch(state, to, if cut { OnSwitch::Cut } else { OnSwitch::Drain });
                if cut {
                    floor[to.other() as usize] = state.0.generation();
                }
                prop_assert_eq!(state.1.ended_before, floor);
                prop_assert_eq!(state.0.flags().has(LiveFlags::CUT), floor != [0, 0]);
                prop_assert_eq!(state.0.previous(), to.other());
                if drained && !cut {
                    let (word, ended_before) = after_drain(state.0, &state.1);
                    state = (word, SwitchTerms { ended_before, ..state.1 });
                    floor[to.other() as usize] = word.generation();
                }
            }
        }
    }
}
