//! What the data path has made of a deployment by itself: it takes switches back, and lets scheduled ones take effect.
//!
//! No process runs then, so whoever comes next records it. The maps keep the timing of two generations, and no more can have happened by itself:
//! a switch takes effect, and is taken back.

use bg_common::{Cause, ClockId, Conditions, LiveWord, Timing, Trips};

use super::change::{Change, Past};
use crate::{
    condition::names,
    history::{Action, Moment},
    live::{NEVER, Reading},
    maps::Words,
    time::moment_of,
};

impl Past {
    /// The state of a deployment, and how the data path has brought it about.
    pub(crate) fn read(words: &Words, index: u16, name: &str) -> (Reading, Self) {
        loop {
            let reading = words.reading(index, 0);
            let slots = words.timing.read(index.into());
            let trips = words.trips.read(index.into());
            // A switch writes the slots that its generation uses before the word.
            let is_whole = words.timing.read(index.into()) == slots && words.live.read(index.into()) == reading.stored;
            if is_whole {
                return (reading, Self::of(name, &reading, &slots, &trips));
            }
        }
    }

    fn of(name: &str, reading: &Reading, slots: &[Timing; 2], trips: &[Trips; 2]) -> Self {
        let (word, last) = (reading.word, reading.generation);
        let stored = |generation| slots.iter().find(|timing| timing.generation == generation);
        // What has come due may not be stored yet.
        let of_last = if last == reading.stored.generation() { stored(last) } else { Some(&reading.timing) };
        let live_before = if reading.is_pending() { reading.timing.before.live() } else { word.previous() };
        let before_last = last.wrapping_sub(1);
        let mut past = Self::default();
        for (generation, timing, live) in
            [(before_last, stored(before_last), live_before), (last, of_last, word.live())]
        {
            let Some(timing) = timing.filter(|_| generation != 0) else { continue };
            past.made.extend(moment_of(timing.made_at, ClockId::Boot).map(|at| (generation, at)));
            let to = Moment { generation, live };
            let unconfirmed = generation == last && reading.is_unconfirmed();
            let mut add = |action, from, (instant, clock)| {
                let at = moment_of(instant, clock);
                let (deployment, from, to) = (name.to_owned(), Some(from), Some(to));
                let reason = (action == Action::Tripped).then(|| names(Conditions(timing.conditions)).join(", "));
                past.changes.extend(at.is_some().then(|| Change {
                    deployment,
                    action,
                    from,
                    to,
                    at,
                    unconfirmed,
                    reason,
                    by_kernel: true,
                    ..Change::default()
                }));
            };
            let is_last = generation == last;
            let has_taken_effect = match of_last.map_or(Cause::Unknown, |last| Cause::from_u8(last.cause)) {
                _ if is_last => !reading.is_pending(),
                Cause::Cancelled => false,
                // Another program has replaced the word, or a condition has called off its ramp, perhaps before.
                Cause::Unknown | Cause::Tripped => timing.activate_at == 0,
                _ => true,
            };
            if let Some(action) = Action::of_data_path(Cause::from_u8(timing.cause)) {
                // What was live before the generation before the last one is not kept: usually the other colour.
                let live = if is_last { word.previous() } else { live.other() };
                add(action, Moment { generation: generation.wrapping_sub(1), live }, (timing.made_at, ClockId::Boot));
            } else if let Some(instant) = activation(timing, trips).filter(|_| has_taken_effect) {
                add(Action::Activated, Moment { generation, live: timing.before.live() }, instant);
            }
        }
        past
    }
}

/// When a generation that was to take effect later has done so.
fn activation(timing: &Timing, trips: &[Trips; 2]) -> Option<(u64, ClockId)> {
    match (timing.activate_at, timing.revert_at) {
        _ if timing.before == LiveWord::default() => None,
        // There are, or were, conditions alone.
        (0, 0 | NEVER) => {
            let trips = trips.iter().find(|trips| trips.generation == timing.generation && trips.began_at != 0)?;
            Some((trips.began_at, ClockId::Boot))
        }
        // The time for a confirmation began at that moment.
        (0, revert_at) => Some((revert_at.checked_sub(timing.window)?, ClockId::Boot)),
        (at, _) => Some((at.checked_add(timing.ramp)?, ClockId::from_u8(timing.clock))),
    }
}

#[cfg(test)]
mod tests {
    use bg_common::{Colour, LiveFlags, SwitchTerms};

    use super::*;
    use crate::live::now;

    const SECOND: u64 = 1_000_000_000;
    const GREEN: u16 = Colour::Green.full_share();

    /// What is told of a word with the timings of its generation and of the one before.
    fn told(word: LiveWord, of_word: Timing, of_before: Timing) -> Vec<(Action, Moment, Moment)> {
        told_with(word, of_word, of_before, Trips::default())
    }

    /// The same with the conditions of one of them.
    fn told_with(word: LiveWord, of_word: Timing, of_before: Timing, trips: Trips) -> Vec<(Action, Moment, Moment)> {
        let mut slots = [Timing::default(); 2];
        slots[word.terms_slot()] = of_word;
        slots[1 - word.terms_slot()] = of_before;
        let reading = Reading::of(word, &[SwitchTerms::default(); 2], of_word, 0);
        let mut all_trips = [Trips::default(); 2];
        all_trips[trips.generation as usize & 1] = trips;
        let changes = Past::of("shop", &reading, &slots, &all_trips).changes;
        assert!(changes.iter().all(|change| change.by_kernel && change.deployment == "shop"));
        assert!(changes.is_sorted_by_key(|change| change.at));
        changes.into_iter().map(|change| (change.action, change.from.unwrap(), change.to.unwrap())).collect()
    }

    fn word(generation: u32, flags: LiveFlags, from: u16, to: u16) -> LiveWord {
        LiveWord::new(generation, flags, from, to)
    }

    fn timing(generation: u32, cause: Cause) -> Timing {
        let made_at = now(ClockId::Boot) - 9 * SECOND;
        Timing { generation, cause: cause as u8, made_at, ..Timing::default() }
    }

    fn moment(generation: u32, live: Colour) -> Moment {
        Moment { generation, live }
    }

    const NONE: [(Action, Moment, Moment); 0] = [];
    const BLUE_AND_GREEN: [Colour; 2] = [Colour::Blue, Colour::Green];

    #[test]
    fn what_commands_have_made_is_not_told() {
        let [ago, ahead] = [now(ClockId::Boot) - SECOND, now(ClockId::Boot) + 100 * SECOND];
        let plain = word(5, LiveFlags::NONE, 0, GREEN);
        for cause in [Cause::Unknown, Cause::Switch, Cause::Rollback, Cause::Split, Cause::Cancelled] {
            assert_eq!(told(plain, timing(5, cause), timing(4, cause)), NONE);
        }
        // A switch that waits for its confirmation, one that was confirmed, and one that was not scheduled either.
        let guard = Timing { window: SECOND, revert_at: ahead, ..timing(5, Cause::Switch) };
        let timed = word(5, LiveFlags::TIMED, 0, GREEN);
        assert_eq!(told(timed, guard, timing(4, Cause::Switch)), NONE);
        assert_eq!(told(plain, Timing { revert_at: ago, ..guard }, timing(4, Cause::Switch)), NONE);
        // A schedule that waits, one that was cancelled, and one that a program without timing has replaced.
        let before = word(4, LiveFlags::NONE, GREEN, 0);
        let armed = Timing { activate_at: ahead, before, ..timing(5, Cause::Switch) };
        assert_eq!(told(timed, armed, timing(4, Cause::Switch)), NONE);
        let late = Timing { activate_at: ago, before, ..timing(5, Cause::Switch) };
        let cancelled = word(6, LiveFlags::NONE, GREEN, 0);
        assert_eq!(told(cancelled, timing(6, Cause::Cancelled), late), NONE);
        assert_eq!(told(cancelled, Timing::default(), late), NONE);
    }

    #[test]
    fn a_schedule_and_what_takes_it_back_are_told_in_order() {
        let [blue, green] = BLUE_AND_GREEN;
        let ago = now(ClockId::Boot) - 5 * SECOND;
        let before = word(4, LiveFlags::NONE, GREEN, 0);
        let scheduled = Timing { activate_at: ago, before, window: SECOND, ..timing(5, Cause::Switch) };
        let activated = (Action::Activated, moment(5, blue), moment(5, green));
        let expired = (Action::Expired, moment(5, green), moment(6, blue));
        let timed = word(5, LiveFlags::TIMED, 0, GREEN);
        // Nobody has made either explicit; one was made explicit; both were.
        let long = Timing { window: 100 * SECOND, ..scheduled };
        assert_eq!(told(timed, long, timing(4, Cause::Switch)), [activated]);
        let explicit = Timing { activate_at: 0, revert_at: ago + SECOND, ..scheduled };
        let back = Timing { made_at: ago + SECOND, ..timing(6, Cause::Expired) };
        assert_eq!(told(word(6, LiveFlags::DRAINING, GREEN, 0), back, explicit), [activated, expired]);
        // A switch after it overwrites the first.
        let next = word(7, LiveFlags::DRAINING, 0, GREEN);
        assert_eq!(told(next, timing(7, Cause::Switch), back), [expired]);
        // Without a guard.
        let alone = Timing { window: 0, ..scheduled };
        for word in [timed, word(5, LiveFlags::NONE, 0, GREEN)] {
            assert_eq!(told(word, alone, timing(4, Cause::Switch)), [activated]);
        }
    }

    #[test]
    fn a_condition_takes_a_switch_back_or_calls_off_a_ramp() {
        let [blue, green] = BLUE_AND_GREEN;
        let ago = now(ClockId::Boot) - 5 * SECOND;
        let (before, conditions) = (word(4, LiveFlags::NONE, GREEN, 0), Conditions::SILENCE.0);
        let tripped = (Action::Tripped, moment(5, green), moment(6, blue));
        let back = Timing { made_at: ago + SECOND, conditions, ..timing(6, Cause::Tripped) };
        let taken_back = word(6, LiveFlags::NONE, GREEN, 0);
        let switched = Timing { before, conditions, ..timing(5, Cause::Switch) };
        assert_eq!(told(taken_back, back, switched), [tripped]);
        let ramp = Timing { activate_at: ago, ramp: 100 * SECOND, ..switched };
        assert_eq!(told(taken_back, back, ramp), [tripped]);
    }

    #[test]
    fn a_schedule_with_conditions_alone_is_told_whatever_becomes_of_it() {
        let [blue, green] = BLUE_AND_GREEN;
        let ago = now(ClockId::Boot) - 5 * SECOND;
        let (before, conditions) = (word(4, LiveFlags::NONE, GREEN, 0), Conditions::SILENCE.0);
        let activated = (Action::Activated, moment(5, blue), moment(5, green));
        let tripped = (Action::Tripped, moment(5, green), moment(6, blue));
        let explicit = Timing { before, conditions, ..timing(5, Cause::Switch) };
        let trips = Trips { generation: 5, began_at: ago, ..Trips::default() };
        let told = |word, of_word, of_before| told_with(word, of_word, of_before, trips);
        // It waits for its confirmation, was confirmed, and was taken back.
        for flags in [LiveFlags::TIMED, LiveFlags::NONE] {
            assert_eq!(told(word(5, flags, 0, GREEN), explicit, timing(4, Cause::Switch)), [activated]);
        }
        let back = Timing { made_at: ago + SECOND, conditions, ..timing(6, Cause::Tripped) };
        assert_eq!(told(word(6, LiveFlags::NONE, GREEN, 0), back, explicit), [activated, tripped]);
        // The conditions are those of another generation.
        let other = Trips { generation: 3, ..trips };
        assert_eq!(told_with(word(5, LiveFlags::TIMED, 0, GREEN), explicit, timing(4, Cause::Switch), other), NONE);
    }

    #[test]
    fn a_share_goes_back_to_the_colour_that_most_flows_had() {
        let blue = Colour::Blue;
        // From 30 % to none, and back: blue is live throughout.
        let back = timing(6, Cause::Expired);
        let expired = (Action::Expired, moment(5, blue), moment(6, blue));
        assert_eq!(told(word(6, LiveFlags::DRAINING, 0, 3000), back, timing(5, Cause::Switch)), [expired]);
    }
}
