//! Two buckets in loom's atomics, seen as a machine's memory shows them.

use crate::{Name, find_whole};
use bg_common::{Flow, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    key::Key,
    memory::{Memory, Words},
};
use loom::sync::{
    Arc, Condvar,
    atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        fence,
    },
};
use std::cell::Cell;

/// CPUs that take part, at most.
pub(crate) const CPUS: usize = 3;

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
    /// A flow that nobody changes. Constant, too.
    Kept(Name, Flow),
}

impl Machine {
    fn load_order(self) -> std::sync::atomic::Ordering {
        if self == Self::Strong { Acquire } else { Relaxed }
    }

    fn store_order(self) -> std::sync::atomic::Ordering {
        if self == Self::Strong { Release } else { Relaxed }
    }

    /// See [`Memory::order`].
    pub(crate) fn order(self) {
        match self {
            Self::Weak | Self::LooseExchange => fence(AcqRel),
            Self::Strong | Self::Mistaken => {}
        }
    }
}

/// A word that CPUs share.
///
/// loom tries an order of two accesses only if the later one depends on the *last* one before it. Where a CPU loads a word,
/// another one does, and that one stores it, the first load is hidden by the second, and loom never lets the store come
/// before it. So each load of a CPU is told to an object of that CPU alone, and each store to those of all others:
/// a condition variable that nobody waits for, which loom keeps in order and which orders nothing.
pub(crate) struct Shared {
    value: AtomicU64,
    loads_of: [Condvar; CPUS],
}

impl Shared {
    pub(crate) fn new(value: u64) -> Self {
        Self { value: AtomicU64::new(value), loads_of: std::array::from_fn(|_| Condvar::new()) }
    }

    fn is_to_be_written_by(&self, cpu: usize) {
        let others = self.loads_of.iter().enumerate().filter(|(other, _)| *other != cpu);
        others.for_each(|(_, loads)| loads.notify_one());
    }

    pub(crate) fn load(&self, machine: Machine, cpu: usize) -> u64 {
        self.loads_of[cpu].notify_one();
        self.value.load(machine.load_order())
    }

    pub(crate) fn store(&self, machine: Machine, cpu: usize, value: u64) {
        self.is_to_be_written_by(cpu);
        self.value.store(value, machine.store_order());
    }

    /// A store into a word that others may exchange at the same time: loom would let a plain one come between an
    /// exchange's load and its store.
    fn store_beside_exchanges(&self, machine: Machine, cpu: usize, value: u64) {
        self.is_to_be_written_by(cpu);
        self.value.swap(value, machine.store_order());
    }

    /// The other half stays as it is, whoever writes it meanwhile.
    fn store_low(&self, machine: Machine, cpu: usize, value: u32) {
        self.is_to_be_written_by(cpu);
        let with = |old: u64| Some(old & !0xffff_ffff | u64::from(value));
        let _ = self.value.fetch_update(machine.store_order(), Relaxed, with);
    }

    pub(crate) fn exchange(&self, machine: Machine, cpu: usize, old: u64, new: u64) -> bool {
        self.is_to_be_written_by(cpu);
        if machine == Machine::LooseExchange {
            return self.value.compare_exchange(old, new, AcqRel, Acquire).is_ok();
        }
        // BPF's are ordered after all that came before and before all that comes after, which loom's alone are not.
        fence(SeqCst);
        let has_exchanged = self.value.compare_exchange(old, new, SeqCst, SeqCst).is_ok();
        fence(SeqCst);
        has_exchanged
    }
}

enum Word {
    Shared(Shared),
    Constant(u64),
}

/// A table of two buckets, as one CPU has it.
pub(crate) struct Table {
    words: Arc<Vec<Word>>,
    machine: Machine,
    cpu: usize,
}

impl Table {
    /// For the first CPU. Places that are not given are [`At::Taken`].
    pub(crate) fn new(machine: Machine, places: &[At]) -> Self {
        let taken = std::iter::repeat(&At::Taken);
        let words = places.iter().chain(taken).take(2 * WAYS as usize).flat_map(|at| {
            let busy = u64::from(FlowState::BUSY) | 0xffff << 32;
            match at {
                At::Taken => [0, 0, busy, 0, 0].map(Word::Constant),
                At::Free => [0; Name::ROW].map(|word| Word::Shared(Shared::new(word))),
                At::Held(key, flow) => row(key, flow).map(|word| Word::Shared(Shared::new(word))),
                At::Kept(key, flow) => row(key, flow).map(Word::Constant),
            }
        });
        Self { words: Arc::new(words.collect()), machine, cpu: 0 }
    }

    /// For another CPU.
    pub(crate) fn on(&self, cpu: usize) -> Self {
        assert!(cpu < CPUS);
        Self { words: Arc::clone(&self.words), cpu, ..*self }
    }

    /// What this CPU sees.
    pub(crate) fn view(&self) -> View<'_> {
        View { table: self, writes_left: None }
    }

    /// The same for a CPU that stops after so many writes: nobody sees what it would have written later.
    pub(crate) fn view_until<'a>(&'a self, writes_left: &'a Cell<u32>) -> View<'a> {
        View { table: self, writes_left: Some(writes_left) }
    }

    /// How many rows there are of a key. For when nobody is at it any more.
    pub(crate) fn count(&self, key: &Name) -> usize {
        let is_its = |place: &Place<'_>| (0..Name::HEAD).all(|word| place.load(word) == key.word(word));
        self.places().filter(|place| place.status() == FlowState::LIVE && is_its(place)).count()
    }

    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let view = self.view();
        (0..2 * WAYS as usize).map(move |index| Place { view, at: index * Name::ROW })
    }

    /// The flow of a key.
    pub(crate) fn flow(&self, key: &Name) -> Option<Flow> {
        find_whole(&self.view(), key).map(|found| *found.flow())
    }
}

fn row(key: &Name, flow: &Flow) -> [u64; Name::ROW] {
    let [head, origin, times] = Flow { state: flow.state.with(FlowState::LIVE), ..*flow }.words();
    [key.word(0), key.word(1), head, origin, times]
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
        Some(Place { view: *self, at: index as usize * WAYS as usize * Name::ROW })
    }

    fn mask(&self) -> u32 {
        1
    }

    fn hash_key(&self, _index: usize) -> u64 {
        0
    }

    fn order(&self) {
        self.table.machine.order();
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

    fn status(self) -> u32 {
        self.load(Name::HEAD) as u32 & FlowState::STATUS
    }

    /// Whether it is the word of a row that others may exchange while the row is being written.
    fn is_times(self, word: usize) -> bool {
        (self.at + word) % Name::ROW == Name::HEAD + 2
    }

    fn shared(self, word: usize) -> &'a Shared {
        let Word::Shared(shared) = self.word(word) else { panic!("somebody wrote what nobody may change") };
        shared
    }
}

impl Words for Place<'_> {
    fn from(self, words: usize) -> Self {
        Self { at: self.at + words, ..self }
    }

    fn load(self, word: usize) -> u64 {
        match self.word(word) {
            Word::Shared(shared) => shared.load(self.view.table.machine, self.view.table.cpu),
            Word::Constant(value) => *value,
        }
    }

    fn store(self, word: usize, value: u64) {
        let Table { machine, cpu, .. } = *self.view.table;
        if !self.view.may_write() {
            return;
        }
        if self.is_times(word) {
            self.shared(word).store_beside_exchanges(machine, cpu, value);
        } else {
            self.shared(word).store(machine, cpu, value);
        }
    }

    fn store_low(self, word: usize, value: u32) {
        if self.view.may_write() {
            self.shared(word).store_low(self.view.table.machine, self.view.table.cpu, value);
        }
    }

    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        self.view.may_write() && self.shared(word).exchange(self.view.table.machine, self.view.table.cpu, old, new)
    }
}
