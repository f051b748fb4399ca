//! Whatever is asked, in whatever order, no colour becomes live that no gate has judged.

use std::time::Duration;

use bg_common::{ClockId, LiveFlags, LiveWord, SwitchTerms, Timing};
use bg_ebpf::policy::{
    switch::{Order, next},
    timed::{Return, taken_back},
};
use proptest::prelude::*;

use super::*;
use crate::{
    live::{NEVER, noted, now},
    switch::{
        decision::Kind,
        store::{cancelled, going_back},
    },
};

const HOUR: u64 = 3_600_000_000_000;

#[derive(Clone, Copy, Debug)]
enum Asked {
    Split(u16),
    /// Gates before it have passed; there are none after it.
    Switch(Colour),
    /// There are gates after it.
    Guarded(Colour),
    /// The same by a ramp.
    Ramp(Colour),
    /// The share has moved on its way, in hundredths.
    Progress(u64),
    /// The ramp is at its end.
    Activation,
    /// The gates after it have passed.
    Confirm,
    Rollback {
        to: Option<Colour>,
        names_generation: bool,
    },
    /// Nobody has confirmed it in time.
    Deadline,
}

/// A deployment with gates, and what was judged, as somebody who watches counts it.
#[derive(Debug)]
struct Watched {
    word: LiveWord,
    terms: [SwitchTerms; 2],
    timings: [Timing; 2],
    good: Colour,
    /// What was good before the last change.
    behind: Option<Colour>,
}

impl Watched {
    fn new(live: Colour) -> Self {
        let (generation, share) = (1, live.full_share());
        let timing = Timing { generation, ..Timing::default() };
        let word = LiveWord::new(generation, LiveFlags::NONE, live.other().full_share(), share);
        // Nothing was live before the first apply.
        Self { word, terms: Default::default(), timings: [timing; 2], good: live, behind: Some(live.other()) }
    }

    fn reading(&self) -> Reading {
        Reading::of(self.word, &self.terms, noted(self.word, &self.timings), 0)
    }

    fn timing(&mut self) -> &mut Timing {
        &mut self.timings[self.word.terms_slot()]
    }

    fn waits(&self) -> bool {
        self.reading().is_pending() || self.reading().is_guarded()
    }

    fn publish(&mut self, word: LiveWord, terms: SwitchTerms, timing: Timing) {
        (self.terms[word.terms_slot()], self.timings[word.terms_slot()], self.word) = (terms, timing, word);
    }

    /// As the store of a switch does it.
    fn change(&mut self, kind: Kind, request: &SwitchRequest, timing: Timing) -> bool {
        let from = self.reading();
        let Ok(goal) = kind.goal("shop", request, &from) else { return false };
        if passes_by("shop", &goal, &from) {
            return false;
        }
        let generation = self.word.generation();
        loop {
            let reading = self.reading();
            if reading.is_pending() {
                let (word, timing) = cancelled(&reading).expect("there is a next one");
                self.publish(word, reading.terms, timing);
                continue;
            }
            if reading.word.target_share() == goal.share {
                return self.word.generation() != generation;
            }
            let order = Order { share: goal.share, is_cut: false, drain_deadline: 0, now: 1 };
            let (word, terms) = next(reading.stored, &reading.terms, order).expect("there is a next one");
            let word = going_back(word, &goal, &reading);
            let is_timed = timing.activate_at != 0 || timing.window != 0;
            let timed = if is_timed { LiveFlags::TIMED } else { LiveFlags::NONE };
            let timing = Timing {
                before: if timing.activate_at == 0 { LiveWord::default() } else { reading.stored },
                generation: word.generation(),
                cause: goal.cause as u8,
                kept: kept::noted(&reading),
                ..timing
            };
            self.publish(word.with_flags(word.flags().with(timed)), terms, timing);
            return true;
        }
    }

    fn switch(&mut self, to: Colour, timing: Timing) -> bool {
        let confirm_within = (timing.window != 0).then_some(Duration::from_nanos(timing.window));
        let request = SwitchRequest { to: Some(to), confirm_within, ..SwitchRequest::default() };
        !kept::returns_to_unkept(&request, &self.reading()) && self.change(Kind::Switch, &request, timing)
    }

    fn is_judged(&mut self, to: Colour) {
        (self.good, self.behind) = (to, Some(self.good));
    }

    fn ask(&mut self, asked: Asked) {
        let boot = now(ClockId::Boot);
        let guarded = Timing { window: HOUR, revert_at: boot + HOUR, ..Timing::default() };
        let (waited, reading) = (self.waits(), self.reading());
        match asked {
            Asked::Split(green) => {
                let made = self.change(Kind::Split { green, by: None }, &SwitchRequest::default(), Timing::default());
                // What only cancels leaves behind what was there.
                let made = made && self.reading().cause() != Cause::Cancelled;
                self.behind = if made { Some(self.good) } else { self.behind };
            }
            Asked::Switch(to) => {
                let made = self.switch(to, Timing::default()) && self.reading().cause() == Cause::Switch;
                self.behind = if made { Some(self.good) } else { self.behind };
                self.good = if made { to } else { self.good };
            }
            Asked::Guarded(to) => _ = self.switch(to, guarded),
            Asked::Ramp(to) => {
                let ramp = Timing { revert_at: 0, ramp: HOUR, activate_at: boot, ..guarded };
                self.switch(to, Timing { clock: ClockId::Boot as u8, ..ramp });
            }
            // Its share stands for where the ramp has come to.
            Asked::Progress(hundredths) if reading.is_ramping() => {
                // The machine may have been started a moment ago, so the past has no room for it.
                let passed = boot / 2;
                let timing = self.timing();
                (timing.activate_at, timing.ramp) = (boot - passed, passed * 100 / hundredths);
            }
            Asked::Activation if reading.is_pending() => {
                let timing = self.timing();
                (timing.activate_at, timing.revert_at) = (0, boot + HOUR);
            }
            Asked::Confirm if reading.is_guarded() => {
                self.word = self.word.with_flags(self.word.flags().without(LiveFlags::TIMED));
                self.is_judged(self.word.live());
            }
            Asked::Deadline if reading.is_guarded() && reading.timing.revert_at != NEVER => {
                let why = Return::expired(&reading.timing);
                let back = taken_back(reading.word, &reading.terms, &reading.timing, 1, why);
                let (word, terms, timing) = back.expect("there is a next one");
                self.publish(word, terms, timing);
                self.behind = None;
            }
            Asked::Rollback { to, names_generation } => {
                let if_generation = names_generation.then_some(reading.generation);
                let request = SwitchRequest { to, if_generation, ..SwitchRequest::default() };
                let is_first = !waited && !reading.is_rolled_back();
                if self.change(Kind::Rollback, &request, Timing::default()) {
                    let now = colour_of(self.word.target_share());
                    if let Some(to) = now.filter(|now| is_first && self.behind == Some(*now)) {
                        self.good = to;
                    }
                    if self.reading().cause() != Cause::Cancelled {
                        self.behind = None;
                    }
                }
            }
            _ => {}
        }
    }
}

fn colours() -> impl Strategy<Value = Colour> {
    prop_oneof![Just(Colour::Blue), Just(Colour::Green)]
}

fn asked() -> impl Strategy<Value = Asked> {
    let share = prop_oneof![Just(0), Just(4999), Just(5000), Just(5001), Just(10_000), 0..=FULL_SHARE];
    prop_oneof![
        4 => share.prop_map(Asked::Split),
        1 => colours().prop_map(Asked::Switch),
        2 => colours().prop_map(Asked::Guarded),
        2 => colours().prop_map(Asked::Ramp),
        1 => (1..100u64).prop_map(Asked::Progress),
        1 => Just(Asked::Activation),
        1 => Just(Asked::Confirm),
        1 => Just(Asked::Deadline),
        3 => (proptest::option::of(colours()), any::<bool>())
            .prop_map(|(to, names_generation)| Asked::Rollback { to, names_generation }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn only_what_was_judged_becomes_live(
        live in colours(),
        all in proptest::collection::vec(asked(), 1..12),
    ) {
        let mut watched = Watched::new(live);
        for (nth, asked) in all.iter().enumerate() {
            watched.ask(*asked);
            let now = colour_of(watched.reading().word.target_share());
            if !watched.waits() && let Some(now) = now {
                prop_assert_eq!(now, watched.good, "after {:?}: {:?}", &all[..=nth], watched);
            }
        }
    }
}

/// Asks for one after the other; returns the share of green at the end.
fn share_after(live: Colour, all: &[Asked]) -> u16 {
    let mut watched = Watched::new(live);
    all.iter().for_each(|asked| watched.ask(*asked));
    watched.reading().word.target_share()
}

const BACK: Asked = Asked::Rollback { to: None, names_generation: false };

#[test]
fn a_tie_leaves_the_colour_that_was_live() {
    let tie = [Asked::Split(5000), Asked::Split(5000)];
    for (share, is_made) in [(0, false), (4999, false), (5001, true), (10_000, true)] {
        let all = [&tie[..], &[Asked::Split(share)]].concat();
        assert_eq!(share_after(Colour::Green, &all), if is_made { share } else { 5000 });
        let all = [&tie[..], &[Asked::Split(10_000 - share)]].concat();
        assert_eq!(share_after(Colour::Blue, &all), if is_made { 10_000 - share } else { 5000 });
    }
    // Also after a switch out of it that the data path has taken back.
    let taken_back = [Asked::Split(5000), Asked::Guarded(Colour::Blue), Asked::Deadline];
    assert_eq!(share_after(Colour::Green, &taken_back), 5000);
    assert_eq!(share_after(Colour::Green, &[&taken_back[..], &[Asked::Split(10_000)]].concat()), 10_000);
    assert_eq!(share_after(Colour::Green, &[Asked::Split(5000), Asked::Split(7000), BACK]), 5000);
    assert_eq!(share_after(Colour::Green, &[Asked::Split(7000), Asked::Split(5000), BACK]), 7000);
}

#[test]
fn a_split_away_from_what_waits_does_not_keep_it() {
    let ramp = [Asked::Ramp(Colour::Green), Asked::Progress(60)];
    for waits in [&ramp[..], &[Asked::Guarded(Colour::Green)]] {
        for share in [5000, 2000] {
            for then in
                [Asked::Split(10_000), BACK, Asked::Rollback { to: Some(Colour::Green), names_generation: true }]
            {
                let all = [waits, &[Asked::Split(share), then]].concat();
                assert_eq!(share_after(Colour::Blue, &all), share, "{all:?}");
            }
            let back = Asked::Rollback { to: Some(Colour::Blue), names_generation: false };
            assert_eq!(share_after(Colour::Blue, &[waits, &[Asked::Split(share), back]].concat()), 0);
        }
        assert_eq!(share_after(Colour::Blue, &[waits, &[BACK]].concat()), 0);
    }
}

#[test]
fn a_rollback_goes_to_the_colour_that_was_live_before_a_tie() {
    for live in [Colour::Blue, Colour::Green] {
        let canary = [Asked::Split(5000), Asked::Switch(live.other())];
        assert_eq!(share_after(live, &canary), live.other().full_share());
        assert_eq!(share_after(live, &[&canary[..], &[BACK]].concat()), live.full_share());
        // The same colour as before: then the share is what changes.
        assert_eq!(share_after(live, &[Asked::Split(5000), Asked::Switch(live), BACK]), 5000);
    }
}

#[test]
fn a_schedule_that_was_cancelled_leaves_the_colour_to_go_back_to() {
    for live in [Colour::Blue, Colour::Green] {
        for cancel in [BACK, Asked::Switch(live.other()), Asked::Split(live.other().full_share())] {
            let scheduled = [Asked::Switch(live.other()), Asked::Ramp(live), cancel];
            assert_eq!(share_after(live, &scheduled), live.other().full_share(), "{cancel:?}");
            assert_eq!(share_after(live, &[&scheduled[..], &[BACK]].concat()), live.full_share(), "{cancel:?}");
            let twice = [&scheduled[..], &[Asked::Ramp(live), cancel, BACK]].concat();
            assert_eq!(share_after(live, &twice), live.full_share(), "{cancel:?}");
        }
        // What was rolled back from is nothing to go back to.
        let rolled_back = [Asked::Switch(live.other()), BACK, Asked::Ramp(live.other()), BACK];
        assert_eq!(share_after(live, &[&rolled_back[..], &[BACK]].concat()), live.full_share());
    }
}
