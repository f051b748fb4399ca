//! Conditions that take a switch back. Packets judge by the engine's own [`bg_ebpf::policy::trips::holding`]; what counts is written down once more.

use crate::{
    fault::Fault,
    memory::{Shared, TICK, duration},
    mutation::Mutation,
    run::Run,
    watch::{Awaited, Row, Watch},
};
use bg_common::{Cause, Colour, Conditions, FULL_SHARE, LiveWord, Trips};
use bg_ebpf::{flow::memory::Words, policy::trips::holding};
use std::{cell::Cell, mem::offset_of};

/// Units after the store in which nobody judges, unless the command ends that before (`PAUSE` of user space).
pub(crate) const PAUSE: u64 = 3;
/// Units after a word has taken effect by itself in which nobody judges ([`Trips::PAUSE`]): longer than a packet takes.
const SHORT_PAUSE: u64 = 2;

/// Whether a flow that is opened by this word is one that a ramp has moved.
fn is_of_ramp(shared: &Shared, word: LiveWord) -> bool {
    shared.known[word.generation() as usize].share != word.target_share()
}

/// The generation for whose conditions flows count that are opened by this word.
pub(crate) fn watched_by(shared: &Shared, word: LiveWord) -> u32 {
    word.generation() + u32::from(is_of_ramp(shared, word))
}

/// The colour of new flows; while a ramp goes on, of those that it has moved.
fn colour_of(shared: &Shared, word: LiveWord) -> Colour {
    let share = word.target_share();
    let before = if is_of_ramp(shared, word) { shared.known[word.generation() as usize].share } else { 0 };
    if share > before { Colour::Green } else { Colour::Blue }
}

/// A slot in which a packet judges.
#[derive(Clone, Copy)]
struct Judged<'a, 'b> {
    run: &'a Run<'b>,
    slot: usize,
    /// The first word is read once.
    head: &'a Cell<Option<u64>>,
}

impl Words for Judged<'_, '_> {
    fn from(self, _words: usize) -> Self {
        unreachable!("no tick passes, so no flow grows older")
    }

    fn load(self, word: usize) -> u64 {
        const RESETS: usize = offset_of!(Trips, resets) / 8;
        const PAUSED_UNTIL: usize = offset_of!(Trips, paused_until) / 8;
        const OPENED: usize = offset_of!(Trips, opened) / 8;
        const RESET: usize = offset_of!(Trips, reset) / 8;
        const UNJUDGED_TICK: usize = offset_of!(Trips, unjudged_tick) / 8;
        let of_row = |read: fn(&Row) -> u64| {
            let read = self.run.step(|shared| Some([read(&shared.memory.trips[self.slot])]));
            read.map_or(0, |[word]| word)
        };
        match word {
            0 => self.head.get().unwrap_or_else(|| {
                let head = of_row(|row| u64::from(row.generation) | 1 << 32 | (row.colour as u64) << 48);
                self.head.set(Some(head));
                head
            }),
            PAUSED_UNTIL => of_row(|row| row.paused_until),
            OPENED => of_row(|row| row.opened.into()),
            RESET => of_row(|row| row.reset.into()),
            // More than none of at least one.
            RESETS => 1 << 32,
            UNJUDGED_TICK => TICK.into(),
            _ => 0,
        }
    }

    fn store(self, _word: usize, _value: u64) {
        unreachable!("who judges stores nothing")
    }

    fn store_low(self, _word: usize, _value: u32) {
        unreachable!("who judges stores nothing")
    }

    fn exchange(self, _word: usize, _old: u64, _new: u64) -> bool {
        unreachable!("no tick passes, so no flow grows older")
    }
}

/// The conditions that take back a word, and hold now.
pub(crate) fn judge(run: &Run<'_>, word: LiveWord) -> Conditions {
    let head = Cell::new(None);
    let row = Judged { run, slot: word.terms_slot(), head: &head };
    holding(row, word.generation(), TICK, || run.clock().unwrap_or(0))
}

/// The slot in which flows of a generation and colour count, if there is one (`of_flows`).
fn of_flows(run: &Run<'_>, generation: u32, colour: impl Fn(&Shared) -> Colour) -> Option<Option<usize>> {
    for generation in [generation, generation + 1] {
        let slot = generation as usize & 1;
        let [is_here, is_of_colour] = run.step(|shared| {
            let row = shared.memory.trips[slot];
            Some([row.generation == generation, row.colour == colour(shared)].map(u64::from))
        })?;
        if is_here & is_of_colour != 0 {
            return Some(Some(slot));
        }
        if is_here != 0 && run.is(Mutation::ColourlessCount) {
            return Some(None);
        }
    }
    Some(None)
}

/// Counts a flow that a packet opens by this word. Returns whether it counts.
pub(crate) fn open(run: &Run<'_>, word: LiveWord) -> Option<bool> {
    let Some(slot) = of_flows(run, word.generation(), |shared| colour_of(shared, word))? else { return Some(false) };
    run.does(|shared| {
        shared.memory.trips[slot].opened = true;
        opened(shared, word, true);
    })?;
    Some(true)
}

/// Notes that a packet has opened a flow by this word.
pub(crate) fn opened(shared: &mut Shared, word: LiveWord, is_counted: bool) {
    let (of, colour) = (watched_by(shared, word), colour_of(shared, word));
    let Some(watch) = shared.watches.get_mut(of as usize) else { return };
    if watch.colour == Some(colour) {
        watch.opened = true;
        let awaited = Awaited { generation: word.generation(), is_counted };
        watch.awaited = watch.awaited.filter(|awaited| awaited.is_counted).or(Some(awaited));
    }
}

/// The generations whose flows may be reset now, if that makes a difference.
pub(crate) fn may_answer(shared: &Shared, fails: [bool; 2]) -> impl Iterator<Item = u32> {
    let is_of = |row: &Row, of: u32| row.generation == of && !row.reset;
    let may = move |(of, watch): (usize, &Watch)| {
        let is_failing = watch.colour.is_some_and(|colour| fails[colour as usize]) && watch.awaited.is_some();
        let matters = !watch.reset || shared.memory.trips.iter().any(|row| is_of(row, of as u32));
        (is_failing && matters).then_some(of as u32)
    };
    shared.watches.iter().enumerate().filter_map(may)
}

/// Counts the reset of a flow that counts for the conditions of a generation.
pub(crate) fn answer(run: &Run<'_>, of: u32, watch: &Watch) -> Option<()> {
    let slot = match (watch.awaited, watch.colour) {
        (Some(flow), Some(colour)) if flow.is_counted => of_flows(run, flow.generation, |_| colour)?,
        _ => None,
    };
    run.does(|shared| {
        if let Some(slot) = slot {
            shared.memory.trips[slot].reset = true;
        }
        shared.watch(of).reset = true;
    })
}

/// Notes that a word is taken back by its conditions.
pub(crate) fn tripped(shared: &mut Shared, old: LiveWord, new: LiveWord, fails: [bool; 2]) {
    let now = shared.clock();
    shared.known(old.generation()).is_tripped = true;
    let watch = shared.watch(old.generation()).clone();
    shared.is_at_fault_if(watch.colour.is_none(), Fault::NotGuarded);
    shared.is_at_fault_if(!watch.opened || !watch.reset, Fault::FalseTrip);
    shared.is_at_fault_if(now < watch.begins, Fault::EarlyTrip);
    let before = shared.known(old.generation() - 1);
    let is_half_way = before.cause == Cause::Cancelled as u8 && !matches!(before.share, 0 | FULL_SHARE);
    let is_back_there = is_half_way && before.share == new.target_share();
    shared.is_at_fault_if(is_back_there, Fault::HalfWayBack);
    let back_to = if new.target_share() == 0 { Colour::Blue } else { Colour::Green };
    shared.is_at_fault_if(fails[back_to as usize], Fault::FromBadToBad);
}

/// The end of the pause that a packet sets. The engine's is longer than the model lasts.
pub(crate) fn short_pause(paused_until: u64) -> u64 {
    paused_until - Trips::PAUSE + duration(SHORT_PAUSE)
}
