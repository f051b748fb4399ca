//! The change of a live word (`switch/store.rs` of user space).

use crate::{
    claim::{claim, fence, is_in_time},
    command::{Command, Outcome, Switch},
    memory::{Shared, TICK, duration, instant},
    mutation::Mutation,
    reading::{Reading, had_conditions, reading, settled},
    run::{Result, Run},
    trips,
    watch::{Row, Watch},
};
use bg_common::{Cause, ClockId, Colour, Conditions, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms, Timing};
use bg_ebpf::policy::{
    switch::{Order, next},
    timed::{Due, due},
};

/// Units of the time for a confirmation.
const WINDOW: u64 = 3;
/// Units of a ramp.
const RAMP: u64 = 2;

pub(crate) fn change(run: &Run<'_>, command: Command) -> Option<Outcome> {
    let Some(stored) = run.once(|| store(run, command))? else { return Some(Outcome::Refused) };
    if !run.is(Mutation::NoFenceAfter) {
        fence(run)?;
    }
    begin_window(run, &stored)?;
    let Stored { to, changed } = stored;
    let generation = to.generation;
    Some(Outcome::Done { changed, generation, is_pending: to.is_pending() })
}

struct Stored {
    to: Reading,
    changed: bool,
}

impl Result for Stored {
    const WORDS: usize = Reading::WORDS + 1;

    fn words(&self) -> Vec<u64> {
        [self.to.words(), vec![self.changed.into()]].concat()
    }

    fn from_words(words: &[u64]) -> Self {
        Self { to: Reading::from_words(words), changed: words[Reading::WORDS] != 0 }
    }
}

/// The share that a command leads to; `None`: it is refused.
fn goal(command: Command, reading: &Reading) -> Option<u16> {
    let (word, pending) = (reading.word, reading.is_pending());
    match command {
        Command::Switch(switch) => Some(switch.share),
        Command::Rollback if pending => {
            let (stored, before) = (reading.stored, reading.timing.before);
            // It has begun.
            let is_ramping = word.target_share() != before.target_share();
            Some(if is_ramping { stored.previous_share() } else { before.target_share() })
        }
        Command::Rollback => {
            let is_back = reading.is_taken_back() || reading.cause() == Cause::Rollback;
            Some(word.previous_share()).filter(|share| *share != word.target_share() && !is_back)
        }
        Command::Confirm | Command::Freeze(_) => None,
    }
}

fn store(run: &Run<'_>, command: Command) -> Option<Option<Stored>> {
    let (mut first, mut changed) = (None, false);
    loop {
        let reading = settled(run)?;
        let from = *first.get_or_insert(reading);
        let Some(share) = goal(command, &from) else { return Some(None) };
        let is_there = reading.word.target_share() == share;
        let is_hasty = run.is(Mutation::HastyCancel) && !reading.is_watched();
        if reading.is_pending() && (is_hasty || !had_conditions(run, &reading)?) {
            changed |= cancel(run, &reading)?;
            continue;
        }
        if is_there && !reading.is_pending() {
            return Some(Some(Stored { to: reading, changed }));
        }
        if is_watched(run, command) && !run.is(Mutation::CountsGoOn) {
            end_counts(run, &reading)?;
        }
        let Some(claim) = claim(run, &reading)? else { continue };
        if reading.is_pending() {
            changed |= cancel(run, &reading)?;
            continue;
        }
        if exchange(run, &reading, command, share, claim.until)? {
            let to = self::reading(run)?;
            return Some(Some(Stored { to, changed: true }));
        }
    }
}

fn cancel(run: &Run<'_>, reading: &Reading) -> Option<bool> {
    let (stored, word) = (reading.stored, reading.word);
    let before = reading.timing.before;
    let generation = stored.generation() + 1;
    let share = stored.previous_share();
    let is_on_the_way = word.target_share() != share;
    let previous = if is_on_the_way { share } else { before.previous_share() };
    let is_armed = run.is(Mutation::ArmedCancel);
    let flags = if is_armed { word.flags() } else { word.flags().without(LiveFlags::TIMED) };
    let new = LiveWord::new(generation, flags, previous, word.target_share());
    let hold_until = reading.timing.hold_until;
    let before = if is_on_the_way { before } else { LiveWord::default() };
    let timing = Timing { before, generation, cause: Cause::Cancelled as u8, hold_until, ..Timing::default() };
    let slot = new.terms_slot();
    let is_due = || {
        let [is_due] = run.step(|shared| {
            let is_due = !matches!(due(stored, &reading.timing, |_| shared.clock()), Due::Nothing(_));
            shared.urgent_since = (!is_due).then_some(shared.now);
            Some([u64::from(is_due)])
        })?;
        Some(is_due != 0)
    };
    if !run.is(Mutation::NoFirstLook) && is_due()? {
        return Some(false);
    }
    run.does(|shared| shared.memory.timing[slot] = bytemuck::cast(timing))?;
    if !run.is(Mutation::NoLastLook) && is_due()? {
        return Some(false);
    }
    let there = run.replace(stored, new, None, |shared| {
        shared.urgent_since = None;
        shared.floor = shared.floor.max(generation);
        shared.known(stored.generation()).is_cancelled = true;
        let terms = shared.memory.terms[slot];
        let known = shared.known(generation);
        (known.terms, known.share, known.cause) = (terms, new.target_share(), Cause::Cancelled as u8);
    })?;
    Some(there == new)
}

/// Whether a command arms a condition. It does not if the old colour meets that itself (`disarm`); which does not matter unless the new one does.
fn is_watched(run: &Run<'_>, command: Command) -> bool {
    command.has_conditions() && (run.setting.fails != [true; 2] || run.is(Mutation::NoDisarm))
}

/// Has no flow that is opened or answered from now on count for conditions of the past.
fn end_counts(run: &Run<'_>, reading: &Reading) -> Option<()> {
    let is_over = |row: &Row| !reading.is_watched() || row.generation != reading.stored.generation();
    run.does(|shared| {
        let rows = shared.memory.trips.iter_mut();
        rows.filter(|row| is_over(row)).for_each(|row| row.generation = 0);
    })
}

fn exchange(run: &Run<'_>, reading: &Reading, command: Command, share: u16, until: u64) -> Option<bool> {
    let switch = match command {
        Command::Switch(switch) => switch,
        Command::Rollback | Command::Confirm | Command::Freeze(_) => Switch::to(share),
    };
    let cause = if command == Command::Rollback { Cause::Rollback } else { Cause::Switch };
    let order = Order { share, is_cut: switch.is_cut, drain_deadline: 0, now: TICK };
    let (new, terms) = next(reading.stored, &reading.terms, order)?;
    let is_whole = matches!(share, 0 | FULL_SHARE) && !run.is(Mutation::ForgottenRamp);
    let back_to = reading.before_ramp(share).filter(|_| is_whole);
    let new = back_to.map_or(new, |share| LiveWord::new(new.generation(), new.flags(), share, new.target_share()));
    let boot = run.clock()?;
    let activate_at = match (switch.at, switch.is_ramp) {
        (Some(moment), _) => instant(moment).max(boot),
        (None, true) => boot,
        (None, false) => 0,
    };
    let window = if switch.is_guarded { duration(WINDOW) } else { 0 };
    let deadline = if window != 0 && activate_at == 0 { boot + window } else { 0 };
    let is_watched = is_watched(run, command);
    let timing = Timing {
        activate_at,
        before: reading.stored,
        ramp: if switch.is_ramp { duration(RAMP) } else { 0 },
        window,
        revert_at: if run.is(Mutation::LateDeadline) { 0 } else { deadline },
        hold_until: if run.is(Mutation::ForgottenFreeze) { 0 } else { reading.timing.hold_until },
        generation: new.generation(),
        on_switch: switch.is_cut.into(),
        clock: ClockId::Boot as u8,
        cause: cause as u8,
        conditions: if is_watched { Conditions::RESETS.0 } else { 0 },
        ..Timing::default()
    };
    let is_timed = activate_at != 0 || window != 0 || is_watched;
    let new = if is_timed { new.with_flags(new.flags().with(LiveFlags::TIMED)) } else { new };
    let pause = duration(if run.is(Mutation::NoPause) { 0 } else { trips::PAUSE });
    // What takes effect by itself has its own pause.
    let paused_until = if activate_at == 0 { boot + pause } else { 0 };
    let write = || {
        let slot = new.terms_slot();
        run.does(|shared| shared.memory.terms[slot] = bytemuck::cast(terms))?;
        run.does(|shared| shared.memory.timing[slot] = bytemuck::cast(timing))?;
        if !run.setting.watches {
            return Some(());
        }
        run.does(|shared| {
            if !is_watched {
                shared.memory.trips[slot] = Row::new(0, Colour::Blue);
                return;
            }
            let row = &mut shared.memory.trips[slot];
            let old = if run.is(Mutation::KeptCounters) { *row } else { Row::new(0, new.live()) };
            *row = Row { generation: new.generation(), colour: new.live(), paused_until, ..old };
        })
    };
    let publish = || {
        let noted = |shared: &mut Shared| {
            published(shared, reading.stored, new, &terms, &timing, deadline);
            if is_watched {
                let colour = Some(new.live());
                let watch = Watch { colour, begins: activate_at, judged_from: paused_until, ..Watch::default() };
                *shared.watch(new.generation()) = watch;
            }
        };
        run.replace(reading.stored, new, None, noted)
    };
    if run.is(Mutation::WordFirst) {
        let there = publish()?;
        write()?;
        return Some(there == new);
    }
    write()?;
    let until = if window == 0 { until } else { until.min(boot + window / 2) };
    let until = if is_watched { until.min(boot + duration(trips::PAUSE) / 2) } else { until };
    if until != u64::MAX && !run.is(Mutation::NoLastLook) && !is_in_time(run, until)? {
        return Some(false);
    }
    let there = publish()?;
    Some(there == new)
}

/// Notes what a new generation is.
fn published(shared: &mut Shared, old: LiveWord, new: LiveWord, terms: &SwitchTerms, timing: &Timing, deadline: u64) {
    shared.urgent_since = None;
    let active_at = if timing.activate_at == 0 { 0 } else { timing.activate_at + timing.ramp };
    let is_guarded = timing.window != 0;
    let known = shared.known(new.generation());
    known.terms = bytemuck::cast(*terms);
    known.share = new.target_share();
    known.cause = timing.cause;
    known.is_guarded = is_guarded;
    known.is_ramp = timing.ramp != 0;
    known.active_at = active_at;
    known.deadline = match (is_guarded, active_at) {
        (false, _) => 0,
        (true, 0) => deadline,
        (true, _) => active_at + timing.window,
    };
    let is_growing = timing.ramp != 0 && new.target_share() > old.target_share();
    shared.ramped = if is_growing { (new.generation(), old.target_share()) } else { (0, 0) };
}

fn begin_window(run: &Run<'_>, stored: &Stored) -> Option<()> {
    let to = stored.to;
    if !stored.changed || to.is_taken_back() {
        return Some(());
    }
    let slot = to.stored.terms_slot();
    if !to.is_pending() && to.confirm_by().is_some() {
        let revert_at = run.clock()? + to.timing.window;
        // Its flags may have changed.
        if run.word()?.generation() == to.stored.generation() {
            run.does(|shared| {
                shared.memory.update(slot, |timing| timing.revert_at = revert_at);
                shared.known(to.stored.generation()).deadline = revert_at;
            })?;
        }
    }
    let may_judge = to.is_watched() && (!to.is_pending() || run.is(Mutation::LostPause));
    if may_judge && !run.is(Mutation::LastingPause) {
        run.does(|shared| shared.memory.trips[slot].paused_until = 0)?;
    }
    Some(())
}
