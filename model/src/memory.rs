//! What all share: the maps' words, time, and the lock. Beside it, what a checker must know of the past.

use crate::{
    fault::Fault,
    watch::{Awaited, Row, Watch},
};
use bg_common::{Colour, FULL_SHARE, LiveFlags, LiveWord, Timing};

/// A unit of the model's time, in nanoseconds. A ramp is computed in units of this.
const UNIT: u64 = 1 << 10;

/// The tick of the data path's clock. Drains are no part of the model.
pub(crate) const TICK: u32 = 10;

/// A moment of the model as an instant in the maps, where zero is none.
pub(crate) const fn instant(moment: u64) -> u64 {
    (moment + 1) * UNIT
}

/// A number of units as a duration in the maps.
pub(crate) const fn duration(units: u64) -> u64 {
    units * UNIT
}

/// The rows of one deployment in `live`, `terms` and `timing`, as words, and in `trips`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    pub(crate) word: u64,
    pub(crate) terms: [[u64; 2]; 2],
    pub(crate) timing: [[u64; 9]; 2],
    pub(crate) trips: [Row; 2],
}

impl Memory {
    pub(crate) fn live(&self) -> LiveWord {
        LiveWord(self.word)
    }

    pub(crate) fn timing(&self, slot: usize) -> Timing {
        bytemuck::cast(self.timing[slot])
    }

    pub(crate) fn update(&mut self, slot: usize, change: impl FnOnce(&mut Timing)) {
        let mut timing = self.timing(slot);
        change(&mut timing);
        self.timing[slot] = bytemuck::cast(timing);
    }
}

/// What is known of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Known {
    /// Its terms.
    pub(crate) terms: [u64; 2],
    /// Those that take back a ramp from it, once somebody has written them.
    pub(crate) terms_of_return: [u64; 2],
    /// Whether it comes by a ramp.
    pub(crate) is_ramp: bool,
    /// Its share.
    pub(crate) share: u16,
    /// What has made it; zero is unknown.
    pub(crate) cause: u8,
    /// Whether it has a time for a confirmation.
    pub(crate) is_guarded: bool,
    /// When it takes effect, as an instant; zero is at once.
    pub(crate) active_at: u64,
    /// When it is taken back, as an instant; zero is never.
    pub(crate) deadline: u64,
    /// A command has seen to it that it needs no confirmation, before it has taken effect.
    pub(crate) is_asked: bool,
    /// Somebody was told that it is kept.
    pub(crate) is_kept: bool,
    /// It was taken back.
    pub(crate) is_taken_back: bool,
    /// By its conditions.
    pub(crate) is_tripped: bool,
    /// It was cancelled.
    pub(crate) is_cancelled: bool,
}

/// The shared state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shared {
    pub(crate) memory: Memory,
    /// Moments since the beginning.
    pub(crate) now: u64,
    /// The process that holds the switch lock.
    pub(crate) lock: Option<usize>,
    /// Since when that process must not be stopped for long: it writes terms, under a deadline that it has put off.
    pub(crate) urgent_since: Option<u64>,
    /// Packets that are being processed, one for each CPU.
    pub(crate) packets: Vec<Option<Packet>>,
    /// By generation; nothing in the place of generation 0.
    pub(crate) known: Vec<Known>,
    /// What is known of their conditions, likewise. None, unless a command has conditions.
    pub(crate) watches: Vec<Watch>,
    /// The least generation that a packet may decide by that begins now.
    pub(crate) floor: u32,
    /// The least generation that any packet may decide by from now on.
    pub(crate) fenced: u32,
    /// The generation of the word with a ramp, and the largest share that a packet has decided by since.
    pub(crate) ramped: (u32, u16),
    /// Until when packets that begin now must be held, as an instant: what the last freeze that has returned said.
    pub(crate) frozen_until: u64,
    /// The latest end of any freeze, as an instant.
    pub(crate) last_hold: u64,
    /// The first fault.
    pub(crate) fault: Option<Fault>,
}

/// A packet, between two of its steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Packet {
    /// Answers to the steps so far.
    pub(crate) past: Vec<u64>,
    /// It resets a flow that counts for the conditions of this generation. `None`: it opens one.
    pub(crate) resets: Option<u32>,
    /// Whether the process that holds the lock waits for it.
    pub(crate) is_awaited: bool,
    /// The moment when it began, and what was so then.
    pub(crate) began: u64,
    pub(crate) floor: u32,
    pub(crate) ramped: (u32, u16),
    /// The generation that should have been taken back; zero is none.
    pub(crate) overdue: u32,
    /// The generation whose conditions held; zero is none.
    pub(crate) must_trip: u32,
    /// Until when it must be held, as an instant.
    pub(crate) frozen_until: u64,
}

impl Shared {
    /// All new flows are on blue again, since conditions took the first generation back: flows of that have no answer yet. The
    /// second one had conditions, too, and was confirmed.
    pub(crate) fn new(cpus: usize, has_conditions: bool) -> Self {
        let word = LiveWord::new(2, LiveFlags::NONE, 0, 0);
        let trips = [Row { opened: true, reset: true, ..Row::new(2, Colour::Blue) }, Row::new(1, Colour::Green)];
        let awaited = Some(Awaited { generation: 1, is_counted: true });
        let watch = Watch { colour: Some(Colour::Green), reset: true, awaited, ..Watch::default() };
        let watches = if has_conditions { vec![Watch::default(), watch, Watch::default()] } else { Vec::new() };
        let first = Known { share: FULL_SHARE, ..Known::default() };
        Self {
            memory: Memory { word: word.0, terms: [[0; 2]; 2], timing: [[0; 9]; 2], trips },
            now: 0,
            lock: None,
            urgent_since: None,
            packets: vec![None; cpus],
            known: vec![Known::default(), first, Known::default()],
            watches,
            floor: 2,
            fenced: 2,
            ramped: (0, 0),
            frozen_until: 0,
            last_hold: 0,
            fault: None,
        }
    }

    pub(crate) fn clock(&self) -> u64 {
        instant(self.now)
    }

    pub(crate) fn is_at_fault_if(&mut self, condition: bool, fault: Fault) {
        if condition {
            self.fault.get_or_insert(fault);
        }
    }

    pub(crate) fn known(&mut self, generation: u32) -> &mut Known {
        let index = generation as usize;
        if self.known.len() <= index {
            self.known.resize(index + 1, Known::default());
        }
        &mut self.known[index]
    }

    pub(crate) fn watch(&mut self, generation: u32) -> &mut Watch {
        let index = generation as usize;
        if self.watches.len() <= index {
            self.watches.resize(index + 1, Watch::default());
        }
        &mut self.watches[index]
    }

    /// Whether a packet that began at this moment must take a generation back, since its conditions hold.
    pub(crate) fn must_trip(&self, generation: u32, began: u64) -> bool {
        let index = generation as usize;
        let is_over = |known: &Known| known.is_kept || known.is_asked;
        self.watches.get(index).is_some_and(|watch| watch.must_trip(instant(began))) && !is_over(&self.known[index])
    }

    /// Stores a word, whoever does it.
    pub(crate) fn store(&mut self, new: LiveWord) {
        let old = self.memory.live();
        self.is_at_fault_if(new.generation() < old.generation(), Fault::WentBack);
        let is_same = new.generation() == old.generation();
        self.is_at_fault_if(is_same && new.target_share() != old.target_share(), Fault::WentBack);
        self.memory.word = new.0;
    }

    /// Looks whether the timing of the word is its own.
    pub(crate) fn check_timing(&mut self) {
        let word = self.memory.live();
        let (timing, cause) = (self.memory.timing(word.terms_slot()), self.known(word.generation()).cause);
        let is_own = timing.generation == word.generation() && timing.cause == cause;
        self.is_at_fault_if(cause != 0 && !is_own, Fault::ForeignTerms);
    }
}
