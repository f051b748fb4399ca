//! The change of a live word.

use std::time::{Duration, Instant};

use bg_common::{Cause, ClockId, DeploymentRow, FULL_SHARE, LiveFlags, LiveWord, Timing, Trips};
use bg_ebpf::policy::{
    lifetime::is_past,
    timed::{Due, due},
};

use super::{
    claim::Claim,
    decision::{Decision, Goal, Next, split_by},
    receipt::{Counters, end_all, is_any_open},
    request::{SwitchRequest, Switched},
};
use crate::{
    Error, Instance, Refusal,
    config::OnSwitch,
    fence::Fence,
    history::{Action, Moment, Receipt},
    live::{Reading, exchange, make_explicit, now},
    loader,
    lock::Lock,
    maps::{Words, clock},
    running::deployment_rows,
    state::Past,
    time::{moment_of, tick},
};

/// The states before and after a change.
pub(super) struct Stored {
    pub(super) from: Reading,
    pub(super) to: Reading,
    pub(super) changed: bool,
    pub(super) on_switch: OnSwitch,
    /// The moment before the store, or, without a store, the moment when that was known.
    pub(super) at: Instant,
    pub(super) receipt: Option<Receipt>,
    /// What the data path had done by itself before.
    pub(super) past: Past,
    /// See [`Goal::revert_by`].
    pub(super) revert_by: Option<u64>,
}

impl Stored {
    /// Whether the data path has taken the change back before anybody has looked.
    pub(super) fn is_taken_back(&self) -> bool {
        self.changed && Action::of_data_path(self.to.cause()).is_some()
    }

    /// The state that the change has made.
    pub(super) fn made(&self) -> Moment {
        match self.is_taken_back() {
            true => Moment { generation: self.to.generation.wrapping_sub(1), live: self.to.word.previous() },
            false => self.to.moment(),
        }
    }

    pub(super) fn switched(self, words: &Words, index: u16, name: &str, fence: Duration) -> Switched {
        let Self { from, to, changed, on_switch, at, receipt, past: _, revert_by: _ } = self;
        let timing = to.timing;
        let pending = to.is_pending().then(|| ClockId::from_u8(timing.clock));
        Switched {
            deployment: name.to_owned(),
            changed,
            from: from.moment(),
            to: to.moment(),
            green_share: f64::from(to.stored.target_share()) / f64::from(FULL_SHARE),
            on_switch,
            activate_at: pending.and_then(|clock| moment_of(timing.activate_at, clock)),
            ramp_until: pending
                .filter(|_| timing.ramp != 0)
                .and_then(|clock| moment_of(timing.activate_at + timing.ramp, clock)),
            confirm_deadline: to.confirm_by().and_then(|at| moment_of(at, ClockId::Boot)),
            revert_if: if to.is_watched() { words.conditions(index, &to) } else { Vec::new() },
            not_armed: Vec::new(),
            stored: at,
            fence,
            receipt,
        }
    }
}

/// How long after the store nobody judges the conditions of a switch, unless its fence is over before.
const PAUSE: Duration = Duration::from_secs(1);

impl Instance {
    /// Makes what `goal` says the live state, unless it is so already. The caller holds the lock.
    pub(super) fn store(
        &self,
        name: &str,
        index: u16,
        request: &SwitchRequest,
        goal: impl Fn(&str, &Reading) -> Result<Goal, Refusal>,
        fence: &mut Fence,
        counters: &mut Counters,
    ) -> Result<Stored, Error> {
        let (mut first, mut changed, mut past) = (None, false, Past::default());
        loop {
            // Read under the lock, because it may have changed before.
            let reading = self.settled(index)?;
            past.extend(Past::read(&self.words, index, name).1);
            let from = *first.get_or_insert(reading);
            let Decision { row, goal, on_switch, is_there } =
                self.decide(name, index, request, &goal, [&from, &reading])?;
            // If a confirmation that was killed has ended conditions, packets may still be judging them.
            if reading.is_pending() && !self.words.had_conditions(index, &reading) {
                changed |= self.cancel(name, index, &reading, goal.cause)?;
                continue;
            }
            if is_there && !reading.is_pending() {
                return Ok(Stored {
                    from,
                    to: reading,
                    changed,
                    on_switch,
                    at: Instant::now(),
                    receipt: None,
                    past,
                    revert_by: None,
                });
            }
            if request.ramp.is_some() && self.lift_drain_deadline(index, &reading)? {
                continue;
            }
            if !request.revert_if.is_empty() {
                self.end_counts(index, &reading);
            }
            let Some(claim) = self.claim(index, &reading, fence)? else { continue };
            if reading.is_pending() {
                changed |= self.cancel(name, index, &reading, goal.cause)?;
                continue;
            }
            let order = Ordered { request, goal, on_switch, claim };
            if let Some(at) = self.exchange(name, index, &row, &reading, &order, counters)? {
                let to = self.words.reading(index, 0);
                return Ok(Stored {
                    from,
                    to,
                    changed: true,
                    on_switch,
                    at,
                    receipt: None,
                    past,
                    revert_by: goal.revert_by,
                });
            }
            // A packet has ended a drain or taken back a switch meanwhile, or a program that does not use the lock has switched. Read
            // the word again.
        }
    }

    /// Makes explicit what has come due in any deployment, and ends the receipts of switches that were killed, unless another process is
    /// switching.
    pub(crate) fn settle(&self) {
        let is_timed = |index: &u16| self.words.live.read((*index).into()).flags().has(LiveFlags::TIMED);
        let timed: Vec<_> = deployment_rows(&self.words).map(|(index, _)| index).filter(is_timed).collect();
        if timed.is_empty() && !is_any_open(&self.words) {
            return;
        }
        let (Ok(_lock), Ok(clock)) = (Lock::switch_if_free(&self.paths), clock(&self.paths)) else { return };
        end_all(&self.words);
        for index in timed {
            make_explicit(&self.words, index, tick(clock));
        }
    }

    /// The state of a deployment, after making explicit what has come due. The caller holds the lock.
    pub(crate) fn settled(&self, index: u16) -> Result<Reading, Error> {
        loop {
            let word = self.words.live.read(index.into());
            if word.flags().has(LiveFlags::TIMED) {
                make_explicit(&self.words, index, tick(clock(&self.paths)?));
            }
            let reading = self.words.reading(index, 0);
            // Something may have come due between the two. Unless it is explicit, packets would write where the caller is about to.
            if reading.is_explicit {
                if reading.is_taken_back() {
                    // What was kept stands in the slot that the caller is about to overwrite, perhaps in vain.
                    let slot = reading.stored.terms_slot();
                    self.words.timing.update(index.into(), |slots| slots[slot].kept = reading.timing.kept);
                }
                return Ok(reading);
            }
        }
    }

    /// Takes back a schedule or a ramp that has not taken effect: what is in force stays. `false`: it has taken effect meanwhile.
    fn cancel(&self, name: &str, index: u16, reading: &Reading, by: Cause) -> Result<bool, Error> {
        let stored = reading.stored;
        let Some((new, timing)) = cancelled(reading, by) else {
            return Err(Refusal::GenerationsExhausted { deployment: name.to_owned() }.into());
        };
        // If the change is due, a packet may be about to take it back, and writes where this writes. This process may be stopped at any moment.
        let is_due = || !matches!(due(stored, &reading.timing, now), Due::Nothing(_));
        if is_due() {
            return Ok(false);
        }
        self.words.timing.update(index.into(), |slots| slots[new.terms_slot()] = timing);
        if is_due() {
            return Ok(false);
        }
        Ok(exchange(&self.words, index, stored, new).is_ok())
    }

    /// Ends a drain whose deadline has passed, or lifts the deadline. A ramp makes the colour that drains live by and by, and the colour
    /// whose flows the deadline would end is always the idle one. `true`: something has changed.
    fn lift_drain_deadline(&self, index: u16, reading: &Reading) -> Result<bool, Error> {
        let Reading { stored, terms, .. } = *reading;
        if !stored.flags().has(LiveFlags::DRAINING) || terms.drain_deadline == 0 {
            return Ok(false);
        }
        if is_past(terms.drain_deadline, tick(clock(&self.paths)?)) {
            self.end_drain(index, stored, &terms);
        } else {
            self.words.terms.update(index.into(), |slots| slots[stored.terms_slot()].drain_deadline = 0);
        }
        Ok(true)
    }

    /// Writes the next generation's terms and timing, then the word, if it is still the same. Returns when.
    fn exchange(
        &self,
        name: &str,
        index: u16,
        row: &DeploymentRow,
        reading: &Reading,
        order: &Ordered<'_>,
        counters: &mut Counters,
    ) -> Result<Option<Instant>, Error> {
        let Ordered { request, goal, on_switch, claim } = *order;
        let (word, is_cut) = (reading.stored, on_switch == OnSwitch::Cut);
        let Next { word: new, terms: new_terms, drain_timeout } =
            self.next(name, row, (word, &reading.terms), &goal, on_switch)?;
        let new = going_back(new, &goal, reading);
        let (boot, boot_at) = (now(ClockId::Boot), Instant::now());
        let nanos = |time: Option<Duration>| time.map_or(0, |time| time.as_nanos() as u64);
        let (activate_at, at_clock) = match (request.at, request.ramp) {
            (Some(at), _) => instant_of(at),
            (None, Some(_)) => (boot, ClockId::Boot),
            (None, None) => (0, ClockId::Boot),
        };
        let window = nanos(request.confirm_within);
        let trips = self.trips(new, request, (activate_at == 0).then_some(boot))?;
        let is_watched = !trips.conditions().is_empty();
        let timing = Timing {
            activate_at,
            before: if activate_at == 0 { LiveWord::default() } else { reading.stored },
            ramp: nanos(request.ramp),
            window,
            // The window begins after the fence. If this process is killed before, it begins now.
            revert_at: if window != 0 && activate_at == 0 {
                goal.revert_by.map_or(boot + window, |latest| latest.min(boot + window))
            } else {
                0
            },
            hold_until: reading.timing.hold_until,
            made_at: boot,
            generation: new.generation(),
            drain_timeout,
            on_switch: is_cut.into(),
            clock: at_clock as u8,
            cause: goal.cause as u8,
            conditions: trips.conditions().0,
            kept: note_of(reading, request, &goal),
        };
        let is_timed = activate_at != 0 || window != 0 || is_watched;
        let new = if is_timed { new.with_flags(new.flags().with(LiveFlags::TIMED)) } else { new };
        let slot = new.terms_slot();
        // No packet reads these slots, because they belong to the other parity.
        self.words.terms.update(index.into(), |slots| slots[slot] = new_terms);
        self.words.timing.update(index.into(), |slots| slots[slot] = timing);
        self.words.trips.update(index.into(), |slots| slots[slot] = trips);
        let split_by = split_by(row, &goal, reading);
        if split_by != row.split_by {
            self.words.deployments.update(index.into(), |row| row.split_by = split_by);
        }
        counters.begin(&self.words, index, new.generation());
        let stored = Instant::now();
        // This process was stopped. The deadline that it had put off may come, or much of its own time for a confirmation is over, which a
        // packet would take back at once, although others may still decide by the terms of the word before.
        let own = [(window != 0).then_some(Duration::from_nanos(window)), is_watched.then_some(PAUSE)];
        let is_late = own.into_iter().flatten().any(|own| stored > boot_at + own / 2);
        if claim.is_over() || is_late {
            return Ok(None);
        }
        Ok(exchange(&self.words, index, word, new).is_ok().then_some(stored))
    }

    /// The conditions that take a word back. `at`: the moment, if it takes effect at once.
    fn trips(&self, word: LiveWord, request: &SwitchRequest, at: Option<u64>) -> Result<Trips, Error> {
        let mut trips = Trips::default();
        if !request.revert_if.is_empty() {
            trips.generation = word.generation();
            // Flows of so many ticks can be told apart.
            trips.second = self.tick_length.ticks(Duration::from_secs(1)).min(Trips::RING - 3) as u16;
            trips.colour = word.live() as u16;
            // They are judged after the fence. If this process is killed before, somewhat later. What takes effect by itself has its own pause.
            trips.paused_until = at.map_or(0, |boot| boot + PAUSE.as_nanos() as u64);
            trips.unjudged_tick = tick(clock(&self.paths)?).into();
            request.revert_if.iter().for_each(|condition| condition.arm(&mut trips));
        }
        Ok(trips)
    }

    /// Begins the time for a confirmation anew, after the fence, and lets packets judge the conditions. The caller holds the lock. `false`: the
    /// fence has taken longer than that time, and the switch was taken back.
    pub(super) fn begin_window(&self, index: u16, stored: &mut Stored, fence: &mut Fence) -> Result<bool, Error> {
        if stored.is_taken_back() {
            return Ok(false);
        }
        let (to, slot) = (stored.to, stored.to.stored.terms_slot());
        // Its flags may have changed: a packet may have ended its drain.
        let is_there = || self.words.live.read(index.into()).generation() == to.stored.generation();
        if let Some(deadline) = to.confirm_by().filter(|_| stored.changed && !to.is_pending()) {
            if is_there() {
                let anew = now(ClockId::Boot) + to.timing.window;
                let revert_at = stored.revert_by.map_or(anew, |latest| latest.min(anew));
                self.words.timing.update(index.into(), |slots| slots[slot].revert_at = revert_at);
                stored.to.timing.revert_at = revert_at;
            }
            if now(ClockId::Boot) >= deadline {
                // A packet that has found the deadline passed may be about to take the switch back.
                fence.wait()?;
            }
            if !is_there() {
                return Ok(false);
            }
        }
        if stored.changed && to.is_watched() && !to.is_pending() {
            self.words.trips.update(index.into(), |slots| slots[slot].paused_until = 0);
        }
        Ok(true)
    }
}

/// The generation that takes back a schedule or a ramp which has not taken effect, for a change of this kind. `None` if there is no next one.
pub(super) fn cancelled(reading: &Reading, by: Cause) -> Option<(LiveWord, Timing)> {
    let (stored, word) = (reading.stored, reading.word);
    let generation = stored.generation().checked_add(1)?;
    let before = reading.timing.before;
    // The share before the ramp, or before the first of several that go on with each other.
    let share = stored.previous_share();
    let is_on_the_way = word.target_share() != share;
    let previous = if is_on_the_way { share } else { before.previous_share() };
    // That has the flag HOLD as `stored` has it.
    let flags = word.flags().without(LiveFlags::TIMED);
    // The terms in its slot are those of the word in force, and stay.
    let timing = Timing {
        // A switch that goes on with the ramp has to know of it.
        before: if is_on_the_way { before } else { LiveWord::default() },
        generation,
        cause: Cause::Cancelled as u8,
        made_at: now(ClockId::Boot),
        hold_until: reading.timing.hold_until,
        kept: reading.kept().cancelled(is_on_the_way, by).noted(),
        ..Timing::default()
    };
    Some((LiveWord::new(generation, flags, previous, word.target_share()), timing))
}

/// What the next generation notes of what is kept.
pub(super) fn note_of(reading: &Reading, request: &SwitchRequest, goal: &Goal) -> [u8; 4] {
    let kept = reading.kept();
    // A window that fails goes back also to what nobody has kept, as the data path does. Nobody has asked for that colour.
    let is_asked = goal.cause != Cause::Rollback || request.to.is_some() || request.if_generation.is_some();
    match kept.is_other(goal.share) {
        _ if request.restores => reading.kept_before().that_holds(),
        true if !is_asked && !kept.other_was => kept.that_holds(),
        _ => kept.noted(),
    }
}

/// The next word: what goes on with a ramp goes back to where that began.
pub(super) fn going_back(new: LiveWord, goal: &Goal, reading: &Reading) -> LiveWord {
    let back_to = reading.before_ramp(goal.share).filter(|_| goal.is_whole());
    back_to.map_or(new, |share| LiveWord::new(new.generation(), new.flags(), share, new.target_share()))
}

/// A change that is about to be made.
struct Ordered<'a> {
    request: &'a SwitchRequest,
    goal: Goal,
    on_switch: OnSwitch,
    claim: Claim,
}

/// A moment of the wall clock as an instant that packets can compare with, and of which clock. A kernel whose programs cannot read
/// `CLOCK_TAI` gets the distance from now, which a step of the wall clock does not change any more. A moment that has passed is now: the time
/// for a confirmation begins with it.
fn instant_of(at: jiff::Timestamp) -> (u64, ClockId) {
    let clock = if loader::has_tai() { ClockId::Tai } else { ClockId::Boot };
    let ahead = at.duration_since(jiff::Timestamp::now()).as_nanos().max(0);
    let instant = i128::from(now(clock)) + ahead;
    (u64::try_from(instant).unwrap_or(1).max(1), clock)
}
