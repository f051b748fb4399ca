//! What is kept, and where a rollback goes, whatever is asked in whatever order: against somebody who only counts what has happened.

use std::time::Duration;

use bg_common::{Cause, ClockId, Colour, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms, Timing};
use bg_ebpf::policy::{
    switch::{Order, next},
    timed::{Return, activation, taken_back},
};
use proptest::prelude::*;

use super::*;
use crate::{
    config::DivideBy,
    live::{NEVER, colour_of, noted, now},
    switch::{
        decision::{Kind, goes_back_to_unkept},
        store::{cancelled, going_back, note_of},
    },
};

const YEAR: u64 = 365 * 24 * 3_600_000_000_000;

#[derive(Clone, Copy, Debug)]
enum Asked {
    Split(u16),
    /// If there are gates, those before it have passed, and there are none after it.
    Switch(Colour),
    /// It waits for its confirmation, by gates after it or by somebody.
    Guarded(Colour),
    /// The same by a ramp.
    Ramp(Colour),
    /// The same at a time that has not come.
    Scheduled(Colour),
    /// The share has moved on its way, in hundredths.
    Progress(u64),
    /// The ramp is at its end, or the time has come.
    Activation,
    Confirm,
    Rollback {
        to: Option<Colour>,
        names_generation: bool,
    },
    /// There, and back when its gates have passed.
    Drill,
    /// A switch in a frozen window whose command fails.
    FailedWindow(Colour),
    /// From now on there are gates, or none any more.
    Gates(bool),
    /// Nobody has confirmed it in time.
    Deadline,
    /// A change has written its slots, but somebody else was faster.
    Lost,
    Reboot,
}

/// A deployment, changed as a store and the data path do it.
#[derive(Debug)]
struct Deployment {
    word: LiveWord,
    terms: [SwitchTerms; 2],
    timings: [Timing; 2],
    has_gates: bool,
}

impl Deployment {
    fn new(live: Colour, has_gates: bool) -> Self {
        let word = LiveWord::new(1, LiveFlags::NONE, live.full_share(), live.full_share());
        let timing = Timing { generation: 1, ..Timing::default() };
        Self { word, terms: Default::default(), timings: [timing; 2], has_gates }
    }

    fn reading(&self) -> Reading {
        Reading::of(self.word, &self.terms, noted(self.word, &self.timings), 0)
    }

    fn share(&self) -> u16 {
        self.reading().word.target_share()
    }

    fn timing(&mut self) -> &mut Timing {
        &mut self.timings[self.word.terms_slot()]
    }

    fn publish(&mut self, word: LiveWord, terms: SwitchTerms, timing: Timing) {
        (self.terms[word.terms_slot()], self.timings[word.terms_slot()], self.word) = (terms, timing, word);
    }

    fn settled(&mut self) -> Reading {
        let reading = self.reading();
        if reading.is_taken_back() {
            self.timing().kept = reading.timing.kept;
        }
        reading
    }

    fn change(&mut self, kind: Kind, request: &SwitchRequest, timing: Timing) {
        let from = self.settled();
        let Ok(goal) = kind.goal("shop", request, &from) else { return };
        let request = &SwitchRequest { from_kept: self.has_gates, ..request.clone() };
        if self.has_gates && passes_by(&goal, &from) {
            return;
        }
        self.store(request, timing, &goal, &from);
    }

    fn store(&mut self, request: &SwitchRequest, timing: Timing, goal: &Goal, from: &Reading) {
        loop {
            let reading = self.settled();
            if !goal.is_reached(&reading) && goes_back_to_unkept(request, [from, &reading]) {
                return;
            }
            if reading.is_pending() {
                let (word, timing) = cancelled(&reading, goal.cause).expect("there is a next one");
                self.publish(word, reading.terms, timing);
                continue;
            }
            if goal.is_reached(&reading) {
                return;
            }
            let order = Order { share: goal.share, is_cut: false, drain_deadline: 0, now: 1 };
            let (word, terms) = next(reading.stored, &reading.terms, order).expect("there is a next one");
            let word = going_back(word, goal, &reading);
            let is_timed = timing.activate_at != 0 || timing.window != 0;
            let timed = if is_timed { LiveFlags::TIMED } else { LiveFlags::NONE };
            let timing = Timing {
                before: if timing.activate_at == 0 { LiveWord::default() } else { reading.stored },
                generation: word.generation(),
                cause: goal.cause as u8,
                kept: note_of(&reading, request, goal),
                ..timing
            };
            return self.publish(word.with_flags(word.flags().with(timed)), terms, timing);
        }
    }

    fn switch(&mut self, to: Colour, timing: Timing) {
        let long = Duration::from_nanos(YEAR);
        let request = SwitchRequest {
            to: Some(to),
            confirm_within: (timing.window != 0).then_some(long),
            ramp: (timing.ramp != 0).then_some(long),
            at: (timing.activate_at > now(ClockId::Boot)).then(jiff::Timestamp::now),
            ..SwitchRequest::default()
        };
        self.change(Kind::Switch, &request, timing);
    }

    fn roll_back(&mut self, to: Option<Colour>, names_generation: bool) {
        let if_generation = names_generation.then_some(self.reading().generation);
        let request = SwitchRequest { to, if_generation, ..SwitchRequest::default() };
        self.change(Kind::Rollback, &request, Timing::default());
    }

    fn ask(&mut self, asked: Asked) {
        let (boot, reading) = (now(ClockId::Boot), self.reading());
        let guarded = Timing { window: YEAR, revert_at: boot + YEAR, ..Timing::default() };
        let later = Timing { revert_at: 0, clock: ClockId::Boot as u8, ..guarded };
        match asked {
            Asked::Split(green) => {
                self.change(Kind::Split { green, by: None }, &SwitchRequest::default(), Timing::default());
            }
            Asked::Switch(to) => self.switch(to, Timing::default()),
            Asked::Guarded(to) => self.switch(to, guarded),
            Asked::Ramp(to) => self.switch(to, Timing { activate_at: boot, ramp: YEAR, ..later }),
            Asked::Scheduled(to) => self.switch(to, Timing { activate_at: boot + YEAR, ..later }),
            Asked::Progress(hundredths) if reading.is_ramping() => {
                // So slowly that it does not move while the test looks.
                let passed = now(ClockId::Tai) / 2;
                let timing = self.timing();
                (timing.clock, timing.activate_at) = (ClockId::Tai as u8, passed);
                timing.ramp = (u128::from(passed) * 20_000 / u128::from(200 * hundredths + 1)) as u64;
            }
            Asked::Activation if reading.is_pending() => {
                let activation = activation(self.word, &reading.timing, 0, 1, boot);
                self.word = activation.word;
                if self.word.flags().has(LiveFlags::TIMED) {
                    let timing = self.timing();
                    (timing.activate_at, timing.revert_at) = (0, boot + YEAR);
                }
            }
            Asked::Confirm if reading.is_pending() => {
                let timing = self.timing();
                (timing.window, timing.revert_at) = (0, NEVER);
            }
            Asked::Confirm if reading.is_guarded() => {
                self.word = self.word.with_flags(self.word.flags().without(LiveFlags::TIMED));
            }
            Asked::Deadline if reading.is_guarded() => {
                let why = Return::expired(&reading.timing);
                let back = taken_back(reading.word, &reading.terms, &reading.timing, 1, why);
                let (word, terms, timing) = back.expect("there is a next one");
                self.publish(word, terms, timing);
            }
            Asked::Rollback { to, names_generation } => self.roll_back(to, names_generation),
            // What waits is not replaced by one.
            Asked::Drill if !reading.is_guarded() && !reading.is_ramping() => {
                let generation = reading.generation;
                self.switch(reading.word.live().other(), guarded);
                if self.reading().generation != generation {
                    let back = SwitchRequest { restores: true, ..SwitchRequest::default() };
                    self.change(Kind::Rollback, &back, Timing::default());
                }
            }
            // It takes the share that is in force, and no gate is asked on the way back.
            Asked::FailedWindow(to) if reading.word.target_share() != to.full_share() => {
                let (generation, share) = (reading.generation, reading.word.target_share());
                self.switch(to, guarded);
                if self.reading().generation != generation {
                    let back = Goal { share, cause: Cause::Rollback, divide_by: None, revert_by: None };
                    let from = self.settled();
                    self.store(&SwitchRequest::default(), Timing::default(), &back, &from);
                }
            }
            Asked::Gates(has_gates) => self.has_gates = has_gates,
            Asked::Lost => {
                self.settled();
                let other = 1 - self.word.terms_slot();
                if !reading.is_pending() {
                    self.timings[other] = Timing { generation: self.word.generation() + 1, ..guarded };
                }
            }
            // As an apply begins with what the state directory has. What is scheduled needs a confirmation, and is forgotten.
            Asked::Reboot => {
                let (then, is_rolled_back) = (reading.lasting(), reading.is_rolled_back());
                let previous = if then.generation > 1 { then.live.other() } else { then.live };
                let (from, to) = (previous.full_share(), then.live.full_share());
                let cause = if is_rolled_back { Cause::Rollback } else { Cause::Unknown } as u8;
                let timing = Timing { generation: then.generation, cause, ..Timing::default() };
                self.word = LiveWord::new(then.generation, LiveFlags::NONE, from, to);
                (self.terms, self.timings) = (Default::default(), [timing; 2]);
            }
            _ => {}
        }
    }
}

/// What waits.
#[derive(Clone, Copy, Debug)]
struct Wait {
    to: Colour,
    /// The share before it, or before the first of several that go on with each other.
    from: u16,
    /// Whether new flows go there, or are on their way. If not, it is a schedule.
    began: bool,
    is_ramp: bool,
    is_confirmed: bool,
}

/// Somebody who watches, and counts what has happened. Of the live word he knows the share of green at each moment.
#[derive(Clone, Debug)]
struct Watcher {
    has_gates: bool,
    /// What is kept, and whether the other colour is good for a rollback.
    good: Colour,
    other_is_good: bool,
    /// The share before the last change, and whether that has made the colour good that is.
    before: u16,
    is_new: bool,
    /// Whether the last change has gone back.
    is_back: bool,
    wait: Option<Wait>,
    changes: u32,
}

impl Watcher {
    fn is_bad(&self, share: u16) -> bool {
        colour_of(share) == Some(self.good.other())
    }

    fn waits_for_other(&self) -> bool {
        self.wait.is_some_and(|wait| wait.began && wait.to != self.good)
    }

    fn takes_back(&mut self) {
        if self.waits_for_other() {
            (self.other_is_good, self.is_back) = (false, true);
        }
    }

    /// What waited for a confirmation is in force, and nobody keeps it.
    fn leaves_guard(&mut self) {
        if let Some(guard) = self.wait.filter(|wait| wait.began && !wait.is_ramp) {
            let is_bad = self.waits_for_other() || self.is_bad(guard.from);
            (self.before, self.is_new, self.is_back) = (guard.from, false, is_bad);
            self.other_is_good &= !is_bad;
        }
    }

    /// A change leads from one share to another, for good.
    fn stands(&mut self, from: u16, to: u16, is_rollback: bool) {
        self.changes += 1;
        let (is_new, leaves_bad) = (self.is_bad(to), self.is_bad(from));
        (self.wait, self.before, self.is_new) = (None, from, is_new && !is_rollback);
        self.is_back = is_rollback || (leaves_bad && !is_new);
        if is_new {
            (self.good, self.other_is_good) = (self.good.other(), !is_rollback);
        } else if leaves_bad {
            self.other_is_good = false;
        }
    }

    /// Ends a schedule or a ramp. Returns where a switch that goes on with it to `goal` comes from.
    fn cancels(&mut self, share: u16, goal: u16, is_rollback: bool) -> u16 {
        let Some(wait) = self.wait.filter(|wait| !wait.began || wait.is_ramp) else { return share };
        self.changes += 1;
        self.takes_back();
        self.wait = None;
        let has_moved = share != wait.from;
        if has_moved {
            (self.before, self.is_back, self.is_new) = (wait.from, false, false);
        } else if is_rollback {
            self.is_back = true;
        }
        let goes_on =
            matches!(goal, 0 | FULL_SHARE) && (wait.from < share && share < goal || wait.from > share && share > goal);
        if goes_on { wait.from } else { share }
    }

    /// Where a rollback goes that names no colour: a share, or nowhere.
    fn way_back(&self, share: u16, names_generation: bool) -> Option<u16> {
        let is_colour = (self.is_new && !self.is_back) || (names_generation && self.is_bad(self.before));
        let kept = |share| if self.is_bad(share) { self.good.full_share() } else { share };
        match self.wait {
            // Away from what is not kept, wholly.
            _ if self.waits_for_other() || (self.is_bad(share) && self.wait.is_none_or(|wait| !wait.is_ramp)) => {
                Some(self.good.full_share())
            }
            Some(wait) if wait.began => Some(kept(wait.from)),
            Some(_) => Some(share),
            None if self.is_back && !names_generation => None,
            None => Some(if is_colour { self.good.other().full_share() } else { kept(self.before) }),
        }
    }

    fn changed(&mut self, share: u16, goal: u16, cause: Cause, wait: Option<Wait>) {
        let is_rollback = cause == Cause::Rollback;
        let from = self.cancels(share, goal, is_rollback);
        let does_more = match cause {
            Cause::Rollback => self.wait.is_some() && !self.is_bad(goal),
            Cause::Switch | Cause::Split => self.wait.is_none() && self.is_bad(goal),
            _ => false,
        };
        if share == goal && !does_more {
            return;
        }
        match wait {
            Some(wait) => {
                self.changes += 1;
                self.leaves_guard();
                self.wait = Some(Wait { from, ..wait });
            }
            None => {
                let gone = self.waits_for_other();
                self.stands(from, goal, is_rollback);
                if gone && self.is_back {
                    self.other_is_good = false;
                }
            }
        }
    }

    /// What is asked; `share` is that of green before.
    fn sees(&mut self, asked: Asked, share: u16) {
        // A share that is in force is judged by who waits there.
        let waits_there = self.wait.is_some_and(|wait| wait.began && !wait.is_ramp);
        let would_judge = |goal: u16| self.has_gates && self.is_bad(goal) && (goal != share || !waits_there);
        let wait = |to, began, is_ramp| Some(Wait { to, from: share, began, is_ramp, is_confirmed: false });
        let (to, waits) = match asked {
            Asked::Split(goal) if !would_judge(goal) => return self.changed(share, goal, Cause::Split, None),
            Asked::Switch(to) => return self.changed(share, to.full_share(), Cause::Switch, None),
            Asked::Rollback { to, names_generation } => {
                let other_is_good = self.other_is_good && !self.waits_for_other();
                let goal = to.map(Colour::full_share).or_else(|| self.way_back(share, names_generation));
                let allowed = goal.filter(|goal| other_is_good || !would_judge(*goal));
                return allowed.into_iter().for_each(|goal| self.changed(share, goal, Cause::Rollback, None));
            }
            Asked::Drill => {
                if self.wait.is_some_and(|wait| wait.began) {
                    return;
                }
                let to = if share > FULL_SHARE / 2 { Colour::Blue } else { Colour::Green };
                self.changed(share, to.full_share(), Cause::Switch, wait(to, true, false));
                (self.wait, self.before, self.changes) = (None, to.full_share(), self.changes + 1);
                return;
            }
            Asked::FailedWindow(to) => {
                let changes = self.changes;
                if share != to.full_share() {
                    self.sees(Asked::Guarded(to), share);
                }
                if self.changes != changes {
                    self.sees(Asked::Deadline, to.full_share());
                }
                return;
            }
            Asked::Gates(has_gates) => {
                self.has_gates = has_gates;
                return;
            }
            Asked::Guarded(to) => (to, wait(to, true, false)),
            Asked::Ramp(to) => (to, wait(to, true, true)),
            Asked::Scheduled(to) => (to, wait(to, false, false)),
            Asked::Activation => {
                let Some(wait) = self.wait.as_mut().filter(|wait| !wait.began || wait.is_ramp) else { return };
                (wait.began, wait.is_ramp) = (true, false);
                if wait.is_confirmed {
                    let wait = *wait;
                    self.stands(wait.from, wait.to.full_share(), false);
                }
                return;
            }
            Asked::Confirm => {
                let Some(wait) = &mut self.wait else { return };
                wait.is_confirmed = true;
                if wait.began && !wait.is_ramp {
                    let wait = *wait;
                    self.stands(wait.from, wait.to.full_share(), false);
                }
                return;
            }
            Asked::Deadline => {
                let Some(wait) = self.wait.filter(|wait| wait.began && !wait.is_ramp) else { return };
                self.takes_back();
                self.changes += 1;
                (self.wait, self.before, self.is_back, self.is_new) = (None, wait.to.full_share(), true, false);
                return;
            }
            Asked::Reboot => {
                self.leaves_guard();
                let other_is_good = self.other_is_good && !self.waits_for_other();
                let is_back = self.is_back || self.waits_for_other();
                self.is_back = self.changes > 0 && (is_back || !other_is_good);
                self.other_is_good = other_is_good && !self.is_back;
                let before = if self.changes > 0 { self.good.other() } else { self.good };
                (self.wait, self.before, self.is_new) = (None, before.full_share(), self.changes > 0 && !self.is_back);
                return;
            }
            _ => return,
        };
        let returns =
            self.wait.is_some_and(|wait| wait.began) && (to == self.good || matches!(asked, Asked::Scheduled(_)));
        if !(self.has_gates && returns && share != to.full_share()) {
            self.changed(share, to.full_share(), Cause::Switch, waits);
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
        2 => colours().prop_map(Asked::Switch),
        2 => colours().prop_map(Asked::Guarded),
        2 => colours().prop_map(Asked::Ramp),
        1 => colours().prop_map(Asked::Scheduled),
        1 => (5..100u64).prop_map(Asked::Progress),
        1 => Just(Asked::Activation),
        2 => Just(Asked::Confirm),
        1 => Just(Asked::Deadline),
        1 => Just(Asked::Lost),
        1 => Just(Asked::Reboot),
        1 => Just(Asked::Drill),
        1 => colours().prop_map(Asked::FailedWindow),
        1 => any::<bool>().prop_map(Asked::Gates),
        4 => (proptest::option::of(colours()), any::<bool>())
            .prop_map(|(to, names_generation)| Asked::Rollback { to, names_generation }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn who_counts_what_has_happened_knows_what_is_kept_and_where_a_rollback_goes(
        live in colours(),
        has_gates in any::<bool>(),
        all in proptest::collection::vec(asked(), 1..14),
    ) {
        let mut shop = Deployment::new(live, has_gates);
        let before = live.full_share();
        let mut watcher = Watcher { has_gates, good: live, other_is_good: false, before, is_new: false, is_back: false, wait: None, changes: 0 };
        for (nth, asked) in all.iter().enumerate() {
            let so_far = format!("after {:?}: {shop:?}, {watcher:?}", &all[..=nth]);
            let (before, share_before, unjudged) = (watcher.clone(), shop.share(), !matches!(asked, Asked::Switch(_) | Asked::Activation | Asked::Confirm));
            watcher.sees(*asked, shop.share());
            shop.ask(*asked);
            let (reading, share) = (shop.reading(), shop.share());
            prop_assert_eq!(reading.lasting().live, watcher.good, "{}", so_far);
            if shop.has_gates && unjudged && before.wait.is_none() && !before.other_is_good && watcher.wait.is_none() {
                prop_assert!(reading.kept().colour == before.good && (before.is_bad(share_before) || !before.is_bad(share)), "unjudged {}", so_far);
            }
            // Whatever has happened.
            if matches!(asked, Asked::Rollback { to: None, names_generation: false }) && !before.other_is_good {
                prop_assert_eq!(reading.kept().colour, before.good, "{}", so_far);
            }
            // In each state.
            let plain = SwitchRequest::default();
            let goal = Kind::Rollback.goal("shop", &plain, &reading).ok();
            let way_back = watcher.way_back(share, false);
            let is_nowhere = watcher.wait.is_none() && way_back == Some(share);
            prop_assert_eq!(goal.map(|goal| goal.share), way_back.filter(|_| !is_nowhere), "{}", so_far);
            if let Some(goal) = goal {
                prop_assert!(!passes_by(&goal, &reading), "it reads a disk {}", so_far);
            }
        }
    }
}

/// Asks for one after the other; returns the share of green at the end.
fn share_after(live: Colour, has_gates: bool, all: &[Asked]) -> u16 {
    let mut shop = Deployment::new(live, has_gates);
    all.iter().for_each(|asked| shop.ask(*asked));
    shop.share()
}

const BACK: Asked = Asked::Rollback { to: None, names_generation: false };

const fn back_to(to: Colour) -> Asked {
    Asked::Rollback { to: Some(to), names_generation: false }
}

#[test]
fn a_tie_leaves_the_colour_that_is_kept() {
    let tie = [Asked::Split(5000), Asked::Split(5000)];
    for (share, is_made) in [(0, false), (4999, false), (5001, true), (10_000, true)] {
        let all = [&tie[..], &[Asked::Split(share)]].concat();
        assert_eq!(share_after(Colour::Green, true, &all), if is_made { share } else { 5000 });
        let all = [&tie[..], &[Asked::Split(10_000 - share)]].concat();
        assert_eq!(share_after(Colour::Blue, true, &all), if is_made { 10_000 - share } else { 5000 });
    }
    // Also after a switch out of it that the data path has taken back, and after a reboot.
    let taken_back = [Asked::Split(5000), Asked::Guarded(Colour::Blue), Asked::Deadline, Asked::Lost];
    assert_eq!(share_after(Colour::Green, true, &taken_back), 5000);
    assert_eq!(share_after(Colour::Green, true, &[&taken_back[..], &[Asked::Split(10_000)]].concat()), 10_000);
    assert_eq!(share_after(Colour::Green, true, &[&taken_back[..], &[Asked::Reboot]].concat()), 10_000);
    assert_eq!(share_after(Colour::Green, true, &[Asked::Split(5000), Asked::Split(7000), BACK]), 5000);
    assert_eq!(share_after(Colour::Green, true, &[Asked::Split(7000), Asked::Split(5000), BACK]), 7000);
}

#[test]
fn a_split_away_from_what_waits_does_not_keep_it() {
    let (blue, green) = (Colour::Blue, Colour::Green);
    let ramp = [Asked::Ramp(green), Asked::Progress(60)];
    for waits in [&ramp[..], &[Asked::Guarded(green)]] {
        for share in [5000, 2000] {
            for then in [Asked::Split(10_000), BACK, Asked::Rollback { to: Some(green), names_generation: true }] {
                let all = [waits, &[Asked::Split(share), then]].concat();
                assert_eq!(share_after(blue, true, &all), share, "{all:?}");
            }
            assert_eq!(share_after(blue, true, &[waits, &[Asked::Split(share), back_to(blue)]].concat()), 0);
        }
        assert_eq!(share_after(blue, true, &[waits, &[BACK]].concat()), 0);
    }
}

#[test]
fn a_rollback_goes_wholly_to_the_colour_that_was_kept_before() {
    for (live, has_gates) in [(Colour::Blue, true), (Colour::Green, false)] {
        let after = |all: &[Asked]| share_after(live, has_gates, all);
        let (old, new) = (live.full_share(), live.other());
        let part = old.abs_diff(3000);
        for canary in [5000, part] {
            let ramp = [Asked::Split(canary), Asked::Ramp(new), Asked::Progress(60)];
            assert_eq!(after(&[Asked::Split(canary), Asked::Switch(new), BACK]), old);
            // The same before the end of the ramp, after it, and when it is kept.
            assert_eq!(after(&[&ramp[..], &[BACK]].concat()), old);
            assert_eq!(after(&[&ramp[..], &[Asked::Activation, BACK]].concat()), old);
            assert_eq!(after(&[&ramp[..], &[Asked::Activation, Asked::Confirm, BACK]].concat()), old);
            // To the colour that is kept, the share is what changes.
            assert_eq!(after(&[Asked::Split(canary), Asked::Switch(live), BACK]), canary);
            assert_eq!(after(&[Asked::Split(canary), Asked::Ramp(live), Asked::Progress(60), BACK]), canary);
        }
        // Whatever becomes of the share, the colour that was kept before stays at hand.
        let kept = [Asked::Switch(new), Asked::Split(5000), Asked::Split(new.full_share())];
        assert_eq!(after(&[&kept[..], &[BACK]].concat()), 5000);
        assert_eq!(after(&[&kept[..], &[BACK, back_to(live)]].concat()), old);
    }
}

#[test]
fn a_schedule_that_was_cancelled_has_changed_nothing() {
    for live in [Colour::Blue, Colour::Green] {
        let (old, new) = (live.full_share(), live.other().full_share());
        for cancel in [Asked::Switch(live.other()), Asked::Split(new)] {
            let scheduled = [Asked::Switch(live.other()), Asked::Scheduled(live), cancel];
            assert_eq!(share_after(live, true, &scheduled), new, "{cancel:?}");
            assert_eq!(share_after(live, true, &[&scheduled[..], &[BACK]].concat()), old, "{cancel:?}");
            let twice = [&scheduled[..], &[Asked::Scheduled(live), cancel, BACK]].concat();
            assert_eq!(share_after(live, true, &twice), old, "{cancel:?}");
        }
        // The second of two who roll a schedule back changes nothing, but the colour may be named.
        let twice = [Asked::Switch(live.other()), Asked::Scheduled(live), BACK, BACK];
        assert_eq!(share_after(live, false, &twice), new);
        assert_eq!(share_after(live, true, &[&twice[..], &[back_to(live)]].concat()), old);
        // What was rolled back from is nothing to go back to.
        let rolled_back =
            [Asked::Switch(live.other()), BACK, Asked::Scheduled(live.other()), Asked::Switch(live), BACK];
        assert_eq!(share_after(live, false, &rolled_back), old);
    }
}

#[test]
fn nothing_waits_unwatched_for_a_schedule_or_comes_back_by_itself() {
    let green = Colour::Green;
    let ramp = [Asked::Ramp(green), Asked::Progress(90)];
    let schedule = [&ramp[..], &[Asked::Scheduled(green)]].concat();
    let mut shop = Deployment::new(Colour::Blue, true);
    schedule.iter().for_each(|asked| shop.ask(*asked));
    // The same by a share that is just where it has come to.
    shop.ask(Asked::Split(shop.share()));
    assert!(shop.reading().is_ramping(), "the ramp and its gates go on");
    // Without gates it is possible, and a rollback does not stay there.
    assert!(share_after(Colour::Blue, false, &schedule) > 8900);
    assert_eq!(share_after(Colour::Blue, false, &[&schedule[..], &[BACK]].concat()), 0);
    let back = [Asked::Guarded(green), Asked::Guarded(Colour::Blue), Asked::Deadline];
    assert_eq!(share_after(Colour::Blue, true, &[&back[..], &[Asked::Deadline]].concat()), 0);
}

#[test]
fn what_an_older_program_has_left_is_understood_by_its_word() {
    let (blue, green) = (Colour::Blue, Colour::Green);
    let of = |word, cause: Cause| {
        let timing = Timing { generation: 7, cause: cause as u8, ..Timing::default() };
        Deployment { word, terms: Default::default(), timings: [timing; 2], has_gates: false }
    };
    let word = |from, to| LiveWord::new(7, LiveFlags::NONE, from, to);
    let kept = |word, cause| of(word, cause).reading().kept().colour;
    assert_eq!(kept(word(10_000, 5000), Cause::Split), green);
    assert_eq!(kept(word(10_000, 0), Cause::Switch), blue);
    // It has cancelled a schedule, or its data path has taken a switch back.
    assert_eq!(kept(word(10_000, 0), Cause::Cancelled), blue);
    assert_eq!(kept(word(10_000, 0), Cause::Expired), blue);
    // Out of a share of one half, which counted as blue.
    for (word, back) in [(word(5000, 10_000), 0), (word(10_000, 0), 10_000), (word(0, 3000), 0)] {
        let mut shop = of(word, Cause::Switch);
        shop.ask(BACK);
        assert_eq!(shop.share(), back);
    }
}

#[test]
fn a_drill_that_has_passed_changes_nothing() {
    for (live, has_gates) in [(Colour::Blue, true), (Colour::Green, false)] {
        let after = |all: &[Asked]| share_after(live, has_gates, all);
        let (old, new) = (live.full_share(), live.other().full_share());
        for back in [BACK, back_to(live)] {
            assert_eq!(after(&[Asked::Switch(live.other()), Asked::Drill, Asked::Drill, back]), old);
        }
        assert_eq!(
            after(&[Asked::Switch(live.other()), BACK, Asked::Drill, BACK]),
            old,
            "a rollback before it stays one"
        );
        for canary in [5000, old.abs_diff(3000)] {
            assert_eq!(after(&[Asked::Split(canary), Asked::Drill]), canary);
            assert_eq!(after(&[Asked::Split(canary), Asked::Drill, Asked::Switch(live.other()), BACK]), old);
            assert_eq!(
                after(&[Asked::Switch(live.other()), Asked::Split(canary), Asked::Drill, Asked::Split(new)]),
                new
            );
        }
    }
}

#[test]
fn a_rollback_never_keeps_what_nobody_has_kept() {
    let (blue, green) = (Colour::Blue, Colour::Green);
    let guarded = [Asked::Guarded(green)];
    let ramp = [Asked::Ramp(green), Asked::Progress(90)];
    for bad in [&guarded[..], &ramp] {
        for away in [
            &[Asked::Guarded(blue)][..],
            &[Asked::Ramp(blue), Asked::Progress(50)],
            &[Asked::Scheduled(blue), Asked::Activation],
            &[Asked::Ramp(blue), Asked::Progress(50), Asked::Split(4500)],
        ] {
            for has_gates in [false, true] {
                // Somebody has skipped the gates.
                let all = [bad, &[Asked::Gates(false)], away, &[Asked::Gates(has_gates), BACK]].concat();
                assert!(share_after(blue, true, &all) <= 5000, "{all:?}");
                let later = [&all[..], &[BACK, Asked::Activation, Asked::Deadline, BACK, Asked::Reboot]].concat();
                assert_eq!(share_after(blue, true, &later), 0, "{later:?}");
            }
        }
    }
}

#[test]
fn a_switch_keeps_what_is_in_force_and_waits_for_nothing() {
    let (blue, green) = (Colour::Blue, Colour::Green);
    let limbo = [Asked::Guarded(green), Asked::Scheduled(blue)];
    for then in [&[Asked::Switch(green)][..], &[BACK, Asked::Switch(green)], &[Asked::Guarded(green), Asked::Confirm]] {
        let all = [&limbo[..], then].concat();
        assert_eq!(share_after(blue, false, &[&all[..], &[Asked::Reboot]].concat()), 10_000, "{all:?}");
    }
}

#[test]
fn a_split_keeps_what_is_in_force_and_waits_for_nothing_if_there_are_no_gates() {
    let (blue, green) = (Colour::Blue, Colour::Green);
    let ramp = [Asked::Ramp(green), Asked::Progress(90)];
    let guards = [Asked::Guarded(green), Asked::Guarded(blue), Asked::Deadline];
    for limbo in [&ramp[..], &[&ramp[..], &[Asked::Scheduled(blue)]].concat(), &guards] {
        for has_gates in [false, true] {
            let mut shop = Deployment::new(blue, false);
            limbo.iter().for_each(|asked| shop.ask(*asked));
            let share = shop.share();
            assert!(share > 8900 && shop.reading().kept().colour == blue, "{limbo:?}");
            shop.ask(Asked::Gates(has_gates));
            // Also if what the share divides changes, which makes a generation.
            let goal = Goal { share, cause: Cause::Split, divide_by: Some(DivideBy::Client), revert_by: None };
            assert!(passes_by(&goal, &shop.reading()), "{limbo:?}");
            shop.ask(Asked::Split(share));
            assert_eq!(shop.share(), share);
            shop.ask(Asked::Reboot);
            assert_eq!(shop.share(), if has_gates { 0 } else { 10_000 }, "{limbo:?}");
        }
    }
}

#[test]
fn a_window_that_fails_keeps_nothing() {
    let (blue, green) = (Colour::Blue, Colour::Green);
    let after = |all: &[Asked]| share_after(blue, false, all);
    // It goes back to what nobody has kept, as the data path does at its end.
    let window = [Asked::Guarded(green), Asked::FailedWindow(blue)];
    assert_eq!(after(&window), 10_000);
    for then in [BACK, Asked::Reboot] {
        assert_eq!(after(&[&window[..], &[then]].concat()), 0, "{then:?}");
    }
    assert_eq!(after(&[&window[..], &[Asked::Switch(green), Asked::Reboot]].concat()), 10_000, "somebody keeps it");
    // Back to what is kept, and it stays so.
    let window = [Asked::Switch(green), Asked::Split(7000), Asked::FailedWindow(blue)];
    assert_eq!(after(&window), 7000);
    assert_eq!(after(&[&window[..], &[BACK]].concat()), 7000);
    assert_eq!(after(&[&window[..], &[Asked::Reboot]].concat()), 10_000);
}

/// The gates have judged a switch for what was seen first. What was scheduled then has taken effect, and waits for its own confirmation.
#[test]
fn what_has_taken_effect_after_the_first_look_is_not_gone_back_to() {
    let (blue, green) = (Colour::Blue, Colour::Green);
    let mut shop = Deployment::new(blue, true);
    shop.ask(Asked::Scheduled(green));
    let first = shop.reading();
    shop.ask(Asked::Activation);
    let second = shop.reading();
    assert!(first.generation == second.generation && first.word != second.word);
    for hour in [Some(Duration::from_secs(3600)), None] {
        let request = SwitchRequest { to: Some(blue), confirm_within: hour, from_kept: true, ..Default::default() };
        assert_eq!(goes_back_to_unkept(&request, [&first, &second]), hour.is_some());
        // It was taken back meanwhile, which the gates have not seen either.
        assert_eq!(goes_back_to_unkept(&request, [&second, &first]), hour.is_some());
        assert!(!goes_back_to_unkept(&request, [&first, &first]));
        assert!(!goes_back_to_unkept(&SwitchRequest { from_kept: false, ..request }, [&first, &second]));
    }
    // In the store, too.
    let (armed, guarded) =
        (shop.word, Timing { window: YEAR, revert_at: now(ClockId::Boot) + YEAR, ..Timing::default() });
    let request = SwitchRequest {
        to: Some(blue),
        confirm_within: Some(Duration::from_secs(3600)),
        from_kept: true,
        ..Default::default()
    };
    shop.store(&request, guarded, &Goal::of_switch(&request, &first), &first);
    assert_eq!(shop.word, armed);
}

#[test]
fn what_only_conditions_would_take_back_can_be_rolled_back_after_a_reboot() {
    for live in [Colour::Blue, Colour::Green] {
        let mut shop = Deployment::new(live, false);
        shop.ask(Asked::Guarded(live.other()));
        let timing = shop.timing();
        (timing.window, timing.revert_at, timing.conditions) = (0, 0, 1);
        shop.ask(Asked::Reboot);
        assert_eq!(shop.share(), live.other().full_share());
        shop.ask(BACK);
        assert_eq!(shop.share(), live.full_share());
    }
}

#[test]
fn who_reboots_is_told_whether_the_other_colour_gets_live() {
    for live in [Colour::Blue, Colour::Green] {
        let mut shop = Deployment::new(live, false);
        for (asked, is_unconfirmed) in
            [(Asked::Split(5000), live != Colour::Blue), (Asked::Guarded(live.other()), true), (BACK, false)]
        {
            shop.ask(asked);
            assert_eq!(shop.reading().is_unconfirmed(), is_unconfirmed, "{asked:?}");
        }
    }
}
