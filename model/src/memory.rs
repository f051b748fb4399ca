//! What all share: the maps' words, time, and the lock. Beside it, what a checker must know of the past.

use bg_common::{LiveFlags, LiveWord, Timing};

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

/// The rows of one deployment in `live`, `terms` and `timing`, as words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    pub(crate) word: u64,
    pub(crate) terms: [[u64; 2]; 2],
    pub(crate) timing: [[u64; 9]; 2],
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

/// Something that must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A packet decides by terms or timing of another generation than that of its word.
    ForeignTerms,
    /// The generation shrinks, or the share of a generation changes.
    WentBack,
    /// A confirmed switch is taken back, or one that was taken back is confirmed.
    TwoOutcomes,
    /// A packet since the deadline decides by a switch that nobody has confirmed.
    NotTakenBack,
    /// A packet since the end of a command decides by an earlier word.
    OldWord,
    /// A word that no packet may take back is taken back, or one that awaits nothing.
    NotGuarded,
    /// A switch that was refused or has changed nothing leaves a word that changes by itself.
    LeftArmed,
    /// A scheduled switch takes effect too early or too late.
    OffSchedule,
    /// A scheduled switch takes effect that was cancelled.
    Uncancelled,
    /// The share of a growing ramp shrinks.
    Shrank,
    /// A packet since the end of a freeze command, and before the end of the freeze, is not held.
    NotHeld,
    /// A packet since the end of all freezes is held.
    HeldTooLong,
}

impl Fault {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForeignTerms => "ForeignTerms",
            Self::WentBack => "WentBack",
            Self::TwoOutcomes => "TwoOutcomes",
            Self::NotTakenBack => "NotTakenBack",
            Self::OldWord => "OldWord",
            Self::NotGuarded => "NotGuarded",
            Self::LeftArmed => "LeftArmed",
            Self::OffSchedule => "OffSchedule",
            Self::Uncancelled => "Uncancelled",
            Self::Shrank => "Shrank",
            Self::NotHeld => "NotHeld",
            Self::HeldTooLong => "HeldTooLong",
        }
    }
}

/// What is known of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Known {
    /// Its terms.
    pub(crate) terms: [u64; 2],
    /// Whether it needs a confirmation.
    pub(crate) is_guarded: bool,
    /// When it takes effect, as an instant; zero is at once.
    pub(crate) active_at: u64,
    /// When it is taken back, as an instant; zero is never.
    pub(crate) deadline: u64,
    /// Somebody was told that it is kept.
    pub(crate) is_kept: bool,
    /// It was taken back.
    pub(crate) is_expired: bool,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Packet {
    /// Answers to the steps so far.
    pub(crate) past: Vec<u64>,
    /// Whether the process that holds the lock waits for it.
    pub(crate) is_awaited: bool,
    /// The moment when it began, and what was so then.
    pub(crate) began: u64,
    pub(crate) floor: u32,
    pub(crate) ramped: (u32, u16),
    /// The generation that should have been taken back; zero is none.
    pub(crate) overdue: u32,
    /// Until when it must be held, as an instant.
    pub(crate) frozen_until: u64,
}

impl Shared {
    /// The first generation, with all new flows on blue.
    pub(crate) fn new(cpus: usize) -> Self {
        let word = LiveWord::new(1, LiveFlags::NONE, 0, 0);
        Self {
            memory: Memory { word: word.0, terms: [[0; 2]; 2], timing: [[0; 9]; 2] },
            now: 0,
            lock: None,
            urgent_since: None,
            packets: vec![None; cpus],
            known: vec![Known::default(); 2],
            floor: 1,
            fenced: 1,
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

    /// Stores a word, whoever does it.
    pub(crate) fn store(&mut self, new: LiveWord) {
        let old = self.memory.live();
        self.is_at_fault_if(new.generation() < old.generation(), Fault::WentBack);
        let is_same = new.generation() == old.generation();
        self.is_at_fault_if(is_same && new.target_share() != old.target_share(), Fault::WentBack);
        self.memory.word = new.0;
    }
}
