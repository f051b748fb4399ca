//! Two buckets in loom's atomics, seen as a machine's memory shows them.

use crate::Name;
use bg_common::{Flow, FlowState};
use bg_ebpf::flow_table::{Memory, Tuple, WAYS, Words, find};
use loom::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
    fence,
};
use std::cell::Cell;

/// What a machine keeps in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Nothing but what [`Memory::order`] and exchanges order, as on aarch64.
    Weak,
    /// Loads and stores as they come, but a store may be seen after a later load: a little less than x86-64 keeps.
    Strong,
    /// A weak machine that was taken for a strong one.
    Mistaken,
    /// A weak machine whose exchanges order less than those of BPF do: what came after may be seen before.
    LooseExchange,
}

/// Machines that the table is made for.
pub(crate) const MACHINES: [Machine; 2] = [Machine::Weak, Machine::Strong];

/// What is at a place of the table at first.
#[derive(Clone, Copy)]
pub(crate) enum At {
    /// A claim that somebody else has: whatever happens, nobody takes it. Constant, which spares loom work.
    Taken,
    /// Nothing.
    Free,
    /// A flow.
    Held(Name, Flow),
}

enum Word {
    Shared(AtomicU64),
    Constant(u64),
}

/// A table of two buckets.
pub(crate) struct Table {
    words: Vec<Word>,
    machine: Machine,
}

impl Table {
    /// Places that are not given are [`At::Taken`].
    pub(crate) fn new(machine: Machine, places: &[At]) -> Self {
        let taken = std::iter::repeat(&At::Taken);
        let words = places.iter().chain(taken).take(2 * WAYS as usize).flat_map(|at| {
            let busy = u64::from(FlowState::BUSY) << 32 | 0xffff;
            match at {
                At::Taken => [0, 0, busy, 0, 0].map(Word::Constant),
                At::Free => [0; 5].map(|word| Word::Shared(AtomicU64::new(word))),
                At::Held(key, flow) => entry(key, flow).map(|word| Word::Shared(AtomicU64::new(word))),
            }
        });
        Self { words: words.collect(), machine }
    }

    /// For a CPU.
    pub(crate) fn view(&self) -> View<'_> {
        View { table: self, writes_left: None }
    }

    /// For a CPU that stops after so many writes: nobody sees what it would have written later.
    pub(crate) fn view_until<'a>(&'a self, writes_left: &'a Cell<u32>) -> View<'a> {
        View { table: self, writes_left: Some(writes_left) }
    }

    /// How many entries there are of a tuple. For when nobody is at it any more.
    pub(crate) fn count(&self, key: &Name) -> usize {
        let view = self.view();
        let is_its = |index: &usize| {
            let place = Place { view, at: index * Name::ENTRY };
            let state = FlowState((place.load(Name::HEAD) >> 32) as u32);
            state.has(FlowState::LIVE) && (0..Name::HEAD).all(|word| place.load(word) == key.address(word))
        };
        (0..2 * WAYS as usize).filter(is_its).count()
    }

    /// The flow of a tuple.
    pub(crate) fn flow(&self, key: &Name) -> Option<Flow> {
        find(&self.view(), key).map(|found| *found.flow())
    }
}

fn entry(key: &Name, flow: &Flow) -> [u64; 5] {
    let state = flow.state.with(FlowState::LIVE | key.protocol());
    let [head, origin, times] = Flow { ports: key.ports, state, ..*flow }.words();
    [key.address(0), key.address(1), head, origin, times]
}

/// How a CPU sees a [`Table`].
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    table: &'a Table,
    writes_left: Option<&'a Cell<u32>>,
}

impl View<'_> {
    fn may_write(&self) -> bool {
        let Some(left) = self.writes_left else { return true };
        let may = left.get() > 0;
        left.set(left.get().saturating_sub(1));
        may
    }
}

impl<'a> Memory<Name> for View<'a> {
    type Words = Place<'a>;

    fn bucket(&self, index: u32) -> Option<Place<'a>> {
        Some(Place { view: *self, at: index as usize * WAYS as usize * Name::ENTRY })
    }

    fn mask(&self) -> u32 {
        1
    }

    fn hash_key(&self, _index: usize) -> u64 {
        0
    }

    fn order(&self) {
        match self.table.machine {
            Machine::Weak | Machine::LooseExchange => fence(AcqRel),
            Machine::Strong | Machine::Mistaken => {}
        }
    }
}

/// Words of a [`View`] from one on.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    view: View<'a>,
    at: usize,
}

impl<'a> Place<'a> {
    fn word(self, word: usize) -> &'a Word {
        &self.view.table.words[self.at + word]
    }

    /// Whether it is the word of an entry that others may exchange while the entry is being written.
    fn is_times(self, word: usize) -> bool {
        (self.at + word) % Name::ENTRY == Name::HEAD + 2
    }

    fn shared(self, word: usize) -> &'a AtomicU64 {
        let Word::Shared(shared) = self.word(word) else { panic!("somebody wrote into a claim of somebody else") };
        shared
    }
}

impl Words for Place<'_> {
    fn from(self, word: usize) -> Self {
        Self { at: self.at + word, ..self }
    }

    fn before(self, words: usize) -> Self {
        Self { at: self.at - words, ..self }
    }

    fn load(self, word: usize) -> u64 {
        let ordering = if self.view.table.machine == Machine::Strong { Acquire } else { Relaxed };
        match self.word(word) {
            Word::Shared(shared) => shared.load(ordering),
            Word::Constant(value) => *value,
        }
    }

    fn store(self, word: usize, value: u64) {
        let ordering = if self.view.table.machine == Machine::Strong { Release } else { Relaxed };
        if !self.view.may_write() {
            return;
        }
        if self.is_times(word) {
            // loom would let a plain store come between an exchange's load and its store.
            self.shared(word).swap(value, ordering);
        } else {
            self.shared(word).store(value, ordering);
        }
    }

    fn store_low(self, word: usize, value: u32) {
        let ordering = if self.view.table.machine == Machine::Strong { Release } else { Relaxed };
        if self.view.may_write() {
            // The other half stays as it is, whoever writes it meanwhile.
            let with = |old: u64| Some(old & !0xffff_ffff | u64::from(value));
            let _ = self.shared(word).fetch_update(ordering, Relaxed, with);
        }
    }

    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        if !self.view.may_write() {
            return false;
        }
        if self.view.table.machine == Machine::LooseExchange {
            return self.shared(word).compare_exchange(old, new, AcqRel, Acquire).is_ok();
        }
        // BPF's are ordered after all that came before and before all that comes after, which loom's alone are not.
        fence(SeqCst);
        let has_exchanged = self.shared(word).compare_exchange(old, new, SeqCst, SeqCst).is_ok();
        fence(SeqCst);
        has_exchanged
    }
}
