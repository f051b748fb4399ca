//! The commands: what `bg_userspace` does under the switch lock (`switch/store.rs`, `switch/confirm.rs`, `freeze.rs` and `live.rs` there), with the same
//! names. What cannot be observed in the maps is left out: preconditions, the journal, neighbours.

use crate::{
    memory::{Fault, Shared, TICK, duration, instant},
    mutation::Mutation,
    run::Run,
};
use bg_common::{Cause, ClockId, LiveFlags, LiveWord, SwitchTerms, Timing};
use bg_ebpf::policy::{
    switch::{Order, next},
    timed::{Due, Return, activation, due, settle, taken_back},
};

/// Units of the time for a confirmation.
const WINDOW: u64 = 3;
/// Units by which a deadline is put off (`REPRIEVE`). A process must not be stopped for half of that while it writes terms.
pub(crate) const REPRIEVE: u64 = 4;
/// Units of a ramp.
const RAMP: u64 = 2;

/// What is asked of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Switch(Switch),
    /// To the share before.
    Rollback,
    Confirm,
    /// For so many units.
    Freeze(u64),
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Switch {
    share: u16,
    is_cut: bool,
    is_guarded: bool,
    /// Units from the beginning of the model.
    at: Option<u64>,
    is_ramp: bool,
}

impl Switch {
    /// At once, and it drains.
    pub const fn to(share: u16) -> Self {
        Self { share, is_cut: false, is_guarded: false, at: None, is_ramp: false }
    }

    pub const fn cut(self) -> Self {
        Self { is_cut: true, ..self }
    }

    pub const fn guarded(self) -> Self {
        Self { is_guarded: true, ..self }
    }

    pub const fn at(self, moment: u64) -> Self {
        Self { at: Some(moment), ..self }
    }

    pub const fn ramp(self) -> Self {
        Self { is_ramp: true, ..self }
    }
}

/// What a command says when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Refused,
    /// This state is as it was asked for.
    Done {
        changed: bool,
        generation: u32,
        is_pending: bool,
    },
    /// The switch is kept.
    Kept {
        generation: u32,
    },
    /// The switch was taken back before, by this generation.
    TooLate {
        generation: u32,
    },
    /// New flows are held until this instant.
    Frozen {
        until: u64,
    },
}

/// A deployment's state at a moment (`live::Reading`).
#[derive(Clone, Copy)]
struct Reading {
    stored: LiveWord,
    word: LiveWord,
    terms: SwitchTerms,
    timing: Timing,
    generation: u32,
    is_explicit: bool,
}

impl Reading {
    fn is_pending(&self) -> bool {
        self.stored.flags().has(LiveFlags::TIMED) && self.timing.activate_at != 0
    }

    fn confirm_by(&self) -> Option<u64> {
        (self.word.flags().has(LiveFlags::TIMED) && self.timing.revert_at != 0).then_some(self.timing.revert_at)
    }

    fn cause(&self) -> Cause {
        Cause::from_u8(self.timing.cause)
    }
}

/// `Words::reading` and `Reading::of`. Under the lock, only packets change what is read here, and they change single words.
fn reading(run: &Run<'_>) -> Option<Reading> {
    let [words @ .., now] = run.step(|shared| {
        let memory = &shared.memory;
        let mut all = [0; 15];
        all[0] = memory.word;
        all[1..5].copy_from_slice(memory.terms.as_flattened());
        all[5..14].copy_from_slice(&memory.timing[memory.live().terms_slot()]);
        all[14] = shared.clock();
        Some(all)
    })?;
    let stored = LiveWord(words[0]);
    let terms: [SwitchTerms; 2] = bytemuck::cast::<[u64; 4], _>(words[1..5].try_into().expect("two"));
    let timing: Timing = bytemuck::cast::<[u64; 9], _>(words[5..14].try_into().expect("one"));
    let generation = stored.generation();
    let unknown = Timing { generation, hold_until: timing.hold_until, ..Timing::default() };
    let timing = if timing.generation == generation { timing } else { unknown };
    let mut reading =
        Reading { stored, word: stored, terms: terms[stored.terms_slot()], timing, generation, is_explicit: true };
    for _ in 0..2 {
        if !reading.word.flags().has(LiveFlags::TIMED) {
            break;
        }
        match due(reading.word, &reading.timing, |_| now) {
            Due::Nothing(word) => {
                if word != reading.word {
                    (reading.word, reading.terms) = (word, terms[word.terms_slot()]);
                }
                break;
            }
            Due::Activation(late) => {
                reading.is_explicit = false;
                let activation = activation(reading.word, &reading.timing, late, TICK, now);
                reading.word = activation.word;
                (reading.timing.activate_at, reading.timing.revert_at) = (0, activation.revert_at);
            }
            Due::Expiry => {
                reading.is_explicit = false;
                let why = Return::expired(&reading.timing);
                let (word, terms, timing) = taken_back(reading.word, &reading.terms, &reading.timing, TICK, why)?;
                (reading.word, reading.terms, reading.timing) = (word, terms, timing);
                reading.generation = word.generation();
            }
        }
    }
    Some(reading)
}

/// A process with one command, up to its end.
pub(crate) fn program(run: &Run<'_>, process: usize, command: Command) -> Option<Outcome> {
    let is_locking = !run.is(Mutation::NoLock);
    run.step(|shared| {
        if is_locking && shared.lock.is_some() {
            return None;
        }
        shared.lock = Some(process);
        Some([0])
    })?;
    match command {
        Command::Confirm => keep(run),
        Command::Freeze(units) => freeze(run, units),
        Command::Switch(_) | Command::Rollback => change(run, command),
    }
}

fn change(run: &Run<'_>, command: Command) -> Option<Outcome> {
    let Some(stored) = store(run, command)? else { return Some(Outcome::Refused) };
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

/// The share that a command leads to; `None`: it is refused.
fn goal(command: Command, reading: &Reading) -> Option<u16> {
    let (word, pending) = (reading.word, reading.is_pending());
    match command {
        Command::Switch(switch) => Some(switch.share),
        Command::Rollback if pending => Some(reading.timing.before.target_share()),
        Command::Rollback => {
            let is_back = matches!(reading.cause(), Cause::Rollback | Cause::Expired);
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
        if reading.is_pending() {
            changed |= cancel(run, &reading)?;
            continue;
        }
        if is_there {
            return Some(Some(Stored { to: reading, changed }));
        }
        let (until, reprieved) = reprieve(run, &reading)?;
        if !run.is(Mutation::NoFenceBefore) {
            fence(run)?;
        }
        if !run.is(Mutation::NoSecondLook) && !is_still(run, &reading, until, reprieved)? {
            continue;
        }
        if exchange(run, &reading, command, share, until)? {
            let to = self::reading(run)?;
            return Some(Some(Stored { to, changed: true }));
        }
    }
}

fn settled(run: &Run<'_>) -> Option<Reading> {
    loop {
        let word = run.word()?;
        if word.flags().has(LiveFlags::TIMED) {
            settle(0, word, true, run);
        }
        let reading = reading(run)?;
        if reading.is_explicit || run.is(Mutation::ImplicitState) {
            return Some(reading);
        }
    }
}

fn fence(run: &Run<'_>) -> Option<()> {
    run.does(|shared| shared.packets.iter_mut().flatten().for_each(|packet| packet.is_awaited = true))?;
    run.step(|shared| {
        let is_over = !shared.packets.iter().flatten().any(|packet| packet.is_awaited);
        is_over.then_some([0])
    })?;
    Some(())
}

fn cancel(run: &Run<'_>, reading: &Reading) -> Option<bool> {
    let (stored, word) = (reading.stored, reading.word);
    let before = reading.timing.before;
    let generation = stored.generation() + 1;
    let is_moved = word.target_share() != before.target_share();
    let previous = if is_moved { before.target_share() } else { before.previous_share() };
    let new = LiveWord::new(generation, word.flags(), previous, word.target_share());
    let hold_until = reading.timing.hold_until;
    let timing = Timing { generation, cause: Cause::Cancelled as u8, hold_until, ..Timing::default() };
    let slot = new.terms_slot();
    run.does(|shared| shared.memory.timing[slot] = bytemuck::cast(timing))?;
    if !run.is(Mutation::NoLastLook) {
        let [is_in_time] = run.step(|shared| {
            let is_in_time = matches!(due(stored, &reading.timing, |_| shared.clock()), Due::Nothing(_));
            shared.urgent_since = is_in_time.then_some(shared.now);
            Some([u64::from(is_in_time)])
        })?;
        if is_in_time == 0 {
            return Some(false);
        }
    }
    let there = run.replace(stored, new, None, |shared| {
        shared.urgent_since = None;
        shared.floor = shared.floor.max(generation);
        shared.known(stored.generation()).is_cancelled = true;
        shared.known(generation).terms = shared.memory.terms[slot];
    })?;
    Some(there == new)
}

/// Until when the terms must be written, and the deadline.
fn reprieve(run: &Run<'_>, reading: &Reading) -> Option<(u64, u64)> {
    let Some(deadline) = reading.confirm_by() else { return Some((u64::MAX, 0)) };
    let now = run.clock()?;
    let until = now + duration(REPRIEVE);
    if deadline >= until || run.is(Mutation::NoReprieve) {
        return Some((now + duration(REPRIEVE) / 2, deadline));
    }
    let stored = reading.stored;
    run.does(|shared| {
        shared.memory.update(stored.terms_slot(), |timing| timing.revert_at = until);
        let known = shared.known(stored.generation());
        known.deadline = known.deadline.max(until);
    })?;
    Some((now + duration(REPRIEVE) / 2, until))
}

/// Whether a state is the same after the fence, and its deadline, if there is one, far enough.
fn is_still(run: &Run<'_>, reading: &Reading, until: u64, reprieved: u64) -> Option<bool> {
    let (stored, slot) = (reading.stored, reading.stored.terms_slot());
    let [is_still] = run.step(|shared| {
        let is_there = shared.memory.live() == stored;
        let is_guarded = reprieved != 0;
        let is_far = !is_guarded || (shared.memory.timing(slot).revert_at >= reprieved && shared.clock() <= until);
        if is_there && is_far && is_guarded {
            shared.urgent_since = Some(shared.now);
        }
        Some([u64::from(is_there && is_far)])
    })?;
    Some(is_still != 0)
}

/// Whether it is not too late to replace the word. From now on, this process must not be stopped for long.
fn is_in_time(run: &Run<'_>, until: u64) -> Option<bool> {
    let [is_in_time] = run.step(|shared| {
        let is_in_time = shared.clock() <= until;
        shared.urgent_since = is_in_time.then_some(shared.now);
        Some([u64::from(is_in_time)])
    })?;
    Some(is_in_time != 0)
}

fn exchange(run: &Run<'_>, reading: &Reading, command: Command, share: u16, until: u64) -> Option<bool> {
    let switch = match command {
        Command::Switch(switch) => switch,
        Command::Rollback | Command::Confirm | Command::Freeze(_) => Switch::to(share),
    };
    let cause = if command == Command::Rollback { Cause::Rollback } else { Cause::Switch };
    let order = Order { share, is_cut: switch.is_cut, drain_deadline: 0, now: TICK };
    let (new, terms) = next(reading.stored, &reading.terms, order)?;
    let boot = run.clock()?;
    let activate_at = match (switch.at, switch.is_ramp) {
        (Some(moment), _) => instant(moment).max(boot),
        (None, true) => boot,
        (None, false) => 0,
    };
    let window = if switch.is_guarded { duration(WINDOW) } else { 0 };
    let deadline = if window != 0 && activate_at == 0 { boot + window } else { 0 };
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
        ..Timing::default()
    };
    let is_timed = activate_at != 0 || window != 0;
    let new = if is_timed { new.with_flags(new.flags().with(LiveFlags::TIMED)) } else { new };
    let write = || {
        let slot = new.terms_slot();
        run.does(|shared| shared.memory.terms[slot] = bytemuck::cast(terms))?;
        run.does(|shared| shared.memory.timing[slot] = bytemuck::cast(timing))
    };
    let publish = || {
        let noted = |shared: &mut Shared| published(shared, reading.stored, new, &terms, &timing, deadline);
        run.replace(reading.stored, new, None, noted)
    };
    if run.is(Mutation::WordFirst) {
        let there = publish()?;
        write()?;
        return Some(there == new);
    }
    write()?;
    let until = if window == 0 { until } else { until.min(boot + window / 2) };
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
    known.is_guarded = is_guarded;
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
    if !stored.changed || to.is_pending() || to.confirm_by().is_none() {
        return Some(());
    }
    let revert_at = run.clock()? + to.timing.window;
    if run.word()? == to.stored {
        run.does(|shared| {
            shared.memory.update(to.stored.terms_slot(), |timing| timing.revert_at = revert_at);
            shared.known(to.stored.generation()).deadline = revert_at;
        })?;
    }
    Some(())
}

fn keep(run: &Run<'_>) -> Option<Outcome> {
    let mut is_asked = false;
    loop {
        let reading = settled(run)?;
        let generation = reading.generation;
        let slot = reading.stored.terms_slot();
        if reading.cause() == Cause::Expired {
            return Some(Outcome::TooLate { generation });
        }
        if reading.timing.window == 0 && reading.confirm_by().is_none() && !is_asked {
            return Some(Outcome::Refused);
        }
        if !reading.stored.flags().has(LiveFlags::TIMED) {
            return Some(Outcome::Kept { generation });
        }
        if reading.is_pending() {
            run.does(|shared| {
                shared.memory.update(slot, |timing| timing.window = 0);
                shared.known(generation).deadline = 0;
            })?;
            is_asked = true;
            if !run.is(Mutation::HastyConfirm) {
                fence(run)?;
            }
            let after = self::reading(run)?;
            if after.stored == reading.stored && after.is_pending() {
                return Some(Outcome::Kept { generation });
            }
            // It has taken effect meanwhile, perhaps with a deadline.
            continue;
        }
        let kept = reading.stored.with_flags(reading.stored.flags().without(LiveFlags::TIMED));
        let there = run.replace(reading.stored, kept, Some(Mutation::ConfirmByStore), |shared| {
            shared.known(generation).is_kept = true;
        })?;
        if there == kept {
            return Some(Outcome::Kept { generation });
        }
    }
}

/// `freeze.rs` there. The end of the freeze is in both slots: until a word takes effect, packets go by the one before.
fn freeze(run: &Run<'_>, units: u64) -> Option<Outcome> {
    let until = run.clock()? + duration(units);
    let is_blind = run.is(Mutation::BlindFreeze);
    loop {
        let reading = if is_blind { self::reading(run)? } else { settled(run)? };
        let word = reading.stored;
        let (in_time, reprieved) = if is_blind { (u64::MAX, 0) } else { reprieve(run, &reading)? };
        if !is_blind {
            fence(run)?;
            if !is_still(run, &reading, in_time, reprieved)? {
                continue;
            }
        }
        run.does(|shared| {
            shared.last_hold = shared.last_hold.max(until);
            // It may end sooner than the one before.
            shared.frozen_until = shared.frozen_until.min(until);
            (0..2).for_each(|slot| shared.memory.update(slot, |timing| timing.hold_until = until));
        })?;
        if !is_blind && !is_in_time(run, in_time)? {
            continue;
        }
        let frozen = word.with_flags(word.flags().with(LiveFlags::HOLD));
        if run.replace(word, frozen, None, |shared| shared.urgent_since = None)? != frozen {
            continue;
        }
        fence(run)?;
        let [holds] = run.step(|shared| {
            let word = shared.memory.live();
            let hold_until = shared.memory.timing(word.terms_slot()).hold_until;
            Some([u64::from(word.flags().has(LiveFlags::HOLD) && hold_until == until)])
        })?;
        if holds != 0 || run.is(Mutation::HastyFreeze) || run.clock()? >= until {
            return Some(Outcome::Frozen { until });
        }
    }
}

/// Releases the lock, and compares what a command says with what is so.
pub(crate) fn returned(shared: &mut Shared, command: Command, outcome: Outcome) {
    shared.lock = None;
    shared.urgent_since = None;
    let stored = shared.memory.live();
    match outcome {
        Outcome::Refused => {}
        Outcome::Frozen { until } => shared.frozen_until = until,
        Outcome::Done { changed, generation, is_pending } => {
            let is_timed = matches!(command, Command::Switch(switch) if changed && switch != Switch::to(switch.share));
            let is_own = generation == stored.generation() && changed && !is_timed;
            shared.is_at_fault_if(is_own && stored.flags().has(LiveFlags::TIMED), Fault::LeftArmed);
            if !is_pending {
                shared.fenced = shared.fenced.max(generation);
            }
        }
        Outcome::Kept { generation } => {
            let known = shared.known(generation);
            known.is_kept = true;
            let is_expired = known.is_expired;
            shared.is_at_fault_if(is_expired, Fault::TwoOutcomes);
        }
        Outcome::TooLate { generation } => {
            let was_kept = shared.known(generation - 1).is_kept;
            shared.is_at_fault_if(was_kept, Fault::TwoOutcomes);
            shared.floor = shared.floor.max(generation);
        }
    }
}
