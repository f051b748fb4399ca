//! The flow tables, mapped into this process. They are read on all CPUs while the programs write them, and single rows can be
//! removed. [`bg_ebpf::flow::table`] describes how rows are written, and why a reader never gets a torn row.

use std::{
    marker::PhantomData,
    net::SocketAddr,
    ops::Range,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

use bg_common::{Addr, Be16, FLOW_WAYS, Family, Flow, FlowBackend, FlowKey4, FlowKey6, FlowState};
use bg_ebpf::flow::{key::Key, memory::Words, row::FlowRef, table};

/// A bucket of `flows4`.
pub(crate) type Bucket4 = [u64; FLOW_WAYS as usize * FlowKey4::ROW];
/// A bucket of `flows6`.
pub(crate) type Bucket6 = [u64; FLOW_WAYS as usize * FlowKey6::ROW];

const WAYS: usize = FLOW_WAYS as usize;

/// The key of an IPv4 or IPv6 flow.
pub(crate) trait FlowKey: Key + PartialEq {
    const FAMILY: Family;
    /// The key in these words.
    fn from_words(word: impl Fn(usize) -> u64) -> Self;
    /// The client's address.
    fn address(&self) -> Addr;
    /// The client's port.
    fn port(&self) -> Be16;
    /// The row of `vips` to which the client sends.
    fn vip(&self) -> u16;

    /// The client's address and port.
    fn client(&self) -> SocketAddr {
        SocketAddr::new(self.address().to_ip(Self::FAMILY), self.port().host())
    }
}

impl FlowKey for FlowKey4 {
    const FAMILY: Family = Family::V4;

    fn from_words(word: impl Fn(usize) -> u64) -> Self {
        bytemuck::cast(word(0))
    }

    fn address(&self) -> Addr {
        Addr([self.client, 0, 0, 0])
    }

    fn port(&self) -> Be16 {
        self.port
    }

    fn vip(&self) -> u16 {
        self.vip
    }
}

impl FlowKey for FlowKey6 {
    const FAMILY: Family = Family::V6;

    fn from_words(word: impl Fn(usize) -> u64) -> Self {
        bytemuck::cast([word(0), word(1), word(2)])
    }

    fn address(&self) -> Addr {
        self.client
    }

    fn port(&self) -> Be16 {
        self.port
    }

    fn vip(&self) -> u16 {
        self.vip
    }
}

/// The words of a table from a certain one on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a>(&'a [AtomicU64], usize);

impl<'a> Row<'a> {
    /// The words from the one at `first` on.
    pub(crate) fn new(words: &'a [AtomicU64], first: usize) -> Self {
        Self(words, first)
    }
}

impl Words for Row<'_> {
    fn from(self, words: usize) -> Self {
        Self(self.0, self.1 + words)
    }

    fn load(self, word: usize) -> u64 {
        self.0[self.1 + word].load(Ordering::Relaxed)
    }

    fn store(self, word: usize, value: u64) {
        self.0[self.1 + word].store(value, Ordering::Relaxed);
    }

    fn store_low(self, word: usize, value: u32) {
        let low = |old: u64| Some(old & !u64::from(u32::MAX) | u64::from(value));
        // Every word is a valid value.
        let _ = self.0[self.1 + word].fetch_update(Ordering::Relaxed, Ordering::Relaxed, low);
    }

    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        self.0[self.1 + word].compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// A row that was read consistently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a, K> {
    pub(crate) key: K,
    pub(crate) flow: Flow,
    row: Row<'a>,
}

impl<'a, K: FlowKey> Entry<'a, K> {
    /// The word with its state.
    pub(crate) fn head(&self) -> &'a AtomicU64 {
        &self.row.0[self.row.1 + K::HEAD]
    }

    /// Sets bits of the flow's state, unless another flow has taken over the row.
    pub(crate) fn note(self, bits: u32) {
        FlowRef::new(self.row.from(K::HEAD), self.key.vip(), self.flow).set(bits);
    }

    /// Has the flow go on at another backend. Every reader finds the one or the other, because the origin is one word, which no program writes but
    /// with a new flow. Should another flow have taken over the row, its backend is replaced only if it is the same.
    fn repoint(self, to: FlowBackend) {
        let origin = |flow: Flow| flow.words()[1];
        self.row.from(K::HEAD).exchange(1, origin(self.flow), origin(Flow { backend: to, ..self.flow }));
    }

    /// Removes the flow from its row, even if its state has changed meanwhile. Returns `false` if it was already gone.
    pub(crate) fn remove(mut self) -> bool {
        let was = (self.key, self.flow.state);
        loop {
            if table::remove(FlowRef::new(self.row.from(K::HEAD), self.key.vip(), self.flow)) {
                return true;
            }
            match read::<K>(self.row) {
                Some(now) if now.key == was.0 && (now.flow.state.0 ^ was.1.0) & FlowState::IDENTITY == 0 => self = now,
                _ => return false,
            }
        }
    }
}

/// The flow in a row, if there is one and it is still there after it was read.
#[inline]
fn read<K: FlowKey>(row: Row<'_>) -> Option<Entry<'_, K>> {
    const IDENTITY: u64 = FlowState::IDENTITY as u64;
    let at = row.from(K::HEAD);
    let head = at.load(0);
    fence(Ordering::Acquire);
    let key = K::from_words(|word| row.load(word));
    let flow = Flow::from_words([head, at.load(1), at.load(2)]);
    fence(Ordering::Acquire);
    let is_same = (at.load(0) ^ head) & IDENTITY == 0;
    (is_same && head & STATUS == LIVE).then_some(Entry { key, flow, row })
}

const STATUS: u64 = FlowState::STATUS as u64;
const LIVE: u64 = FlowState::LIVE as u64;
const EMPTY: u64 = FlowState::EMPTY as u64;

/// One flow table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowTable<'a, K> {
    words: &'a [AtomicU64],
    key: PhantomData<K>,
}

impl<'a, K: FlowKey> FlowTable<'a, K> {
    const BUCKET_WORDS: usize = WAYS * K::ROW;

    /// The table in the words of a map.
    pub(crate) fn new(words: &'a [AtomicU64]) -> Self {
        Self { words, key: PhantomData }
    }

    fn buckets(&self) -> usize {
        self.words.len() / Self::BUCKET_WORDS
    }

    /// Calls `each` with the flows of some buckets; see [`fold`](Self::fold).
    #[inline]
    fn each_of(&self, buckets: Range<usize>, mut each: impl FnMut(Option<Entry<'a, K>>)) {
        let words = &self.words[buckets.start * Self::BUCKET_WORDS..buckets.end * Self::BUCKET_WORDS];
        for bucket in words.chunks_exact(Self::BUCKET_WORDS) {
            // Heads first, without a branch for each, because branch prediction cannot know which rows hold a flow.
            let mut found = 0_u32;
            for nth in 0..WAYS {
                let head = bucket[nth * K::ROW + K::HEAD].load(Ordering::Relaxed);
                found |= u32::from(head & STATUS != EMPTY) << nth;
            }
            while found != 0 {
                let nth = found.trailing_zeros() as usize;
                found &= found - 1;
                each(read::<K>(Row(&bucket[nth * K::ROW..][..K::ROW], 0)));
            }
        }
    }

    /// Calls `each` with every flow, on all CPUs. Each thread has its own sum, and all sums are returned. Flows
    /// that are added or removed meanwhile may be missed, but none is torn. `None` stands for a row that is being written: a program
    /// that opens a flow first claims the row of another flow, and restores its head if it gives up. In between, that other flow
    /// is not visible.
    pub(crate) fn fold<A: Send>(
        &self,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, Option<Entry<'a, K>>) + Sync,
    ) -> Vec<A>
    where
        K: Sync,
    {
        /// Buckets of one work item: enough for a thread, but so few that no CPU has much left at the end.
        const PIECE: usize = 4096;
        let pieces = self.buckets().div_ceil(PIECE);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(pieces);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut sum = empty();
            loop {
                let start = next.fetch_add(1, Ordering::Relaxed) * PIECE;
                if start >= self.buckets() {
                    return sum;
                }
                let end = (start + PIECE).min(self.buckets());
                self.each_of(start..end, |entry| each(&mut sum, entry));
            }
        };
        std::thread::scope(|scope| {
            // If no more threads can be created, the present ones do all the work.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..threads).filter_map(spawn).collect();
            let mut sums = vec![work()];
            // A thread has panicked and said so. Its panic continues in this thread.
            sums.extend(
                others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            );
            sums
        })
    }

    /// Removes flows. Returns whether there may be more of them: if one was found, or a row is being written.
    pub(crate) fn remove(&self, is_unwanted: impl Fn(&K, &Flow) -> bool + Sync) -> bool
    where
        K: Sync,
    {
        self.change(|entry| is_unwanted(&entry.key, &entry.flow).then(|| entry.remove()).is_some())
    }

    /// Has flows go on at the backends that follow theirs. Returns whether there may be more of them, or programs that have found one at its old
    /// backend.
    pub(crate) fn repoint(&self, follows: impl Fn(FlowBackend) -> Option<FlowBackend> + Sync) -> bool
    where
        K: Sync,
    {
        self.change(|entry| follows(entry.flow.backend).map(|to| entry.repoint(to)).is_some())
    }

    /// Calls `change` with every flow. Returns whether it has changed one, or a row is being written.
    fn change(&self, change: impl Fn(Entry<'a, K>) -> bool + Sync) -> bool
    where
        K: Sync,
    {
        // A program may have claimed the row of such a flow at this moment. So it is looked at once more.
        let found = self.fold(|| false, |found, entry| *found |= entry.is_none_or(&change));
        found.contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bg_common::FlowHash;
    use bg_ebpf::flow::{
        key::Match,
        memory::Memory,
        table::{Stored, find, insert, replace},
    };

    use super::*;

    impl<'a, K: FlowKey> Memory<K> for FlowTable<'a, K> {
        type Words = Row<'a>;

        fn bucket(&self, index: u32) -> Option<Row<'a>> {
            let first = index as usize * Self::BUCKET_WORDS;
            (first < self.words.len()).then_some(Row(self.words, first))
        }

        fn mask(&self) -> u32 {
            self.buckets() as u32 - 1
        }

        fn hash_key(&self, index: usize) -> u64 {
            FlowHash::PUBLIC.0[index]
        }

        fn order(&self) {
            fence(Ordering::AcqRel);
        }
    }

    type Table<'a> = FlowTable<'a, FlowKey4>;

    fn memory<K: FlowKey>(buckets: usize) -> Vec<AtomicU64> {
        (0..buckets * WAYS * K::ROW).map(|_| AtomicU64::new(0)).collect()
    }

    fn key(number: u32) -> FlowKey4 {
        FlowKey4 { client: number, port: Be16(number as u16), vip: (number >> 3) as u16 }
    }

    fn flow(number: u32, state: u32) -> Flow {
        let (backend, state) = (FlowBackend(number), FlowState(state));
        Flow { state, note: number, backend, generation: number, last_seen: number, ..Flow::default() }
    }

    fn store(table: &Table<'_>, number: u32, now: u32) -> Stored {
        insert(table, &key(number), key(number).hash(0, table), &flow(number, FlowState::OWN), now)
    }

    fn found<'a>(table: &Table<'a>, number: u32) -> Option<FlowRef<Row<'a>>> {
        find(table, &key(number), key(number).hash(0, table), Match::Whole)
    }

    fn all(table: &Table<'_>) -> Vec<(FlowKey4, Flow)> {
        table.fold(Vec::new, |all, entry| all.extend(entry.map(|entry| (entry.key, entry.flow)))).concat()
    }

    #[test]
    fn what_is_inserted_is_read() {
        let memory = memory::<FlowKey4>(1 << 14);
        let table = Table::new(&memory);
        let count = 60_000;
        for number in 0..count {
            // At tick zero none has been silent for long.
            assert_ne!(store(&table, number, 0), Stored::No);
        }
        let read: HashMap<_, _> = all(&table).into_iter().collect();
        assert!(read.len() > count as usize * 999 / 1000);
        for (key, flow) in &read {
            assert_eq!(found(&table, flow.generation).unwrap().flow(), flow);
            assert_eq!((*key, flow.note), (self::key(flow.generation), flow.generation));
        }
    }

    #[test]
    fn an_ipv6_flow_is_read() {
        let memory = memory::<FlowKey6>(2);
        let table = FlowTable::<FlowKey6>::new(&memory);
        let client: SocketAddr = "[2001:db8::7]:49153".parse().unwrap();
        let key = FlowKey6 { client: client.ip().into(), reserved: 0, port: Be16::new(client.port()), vip: 9 };
        insert(&table, &key, key.hash(5, &table), &Flow { note: 3, ..Flow::default() }, 0);
        let [(read, flow)] =
            table.fold(Vec::new, |all, entry| all.extend(entry.map(|entry| (entry.key, entry.flow)))).concat()[..]
        else {
            panic!("one flow")
        };
        assert_eq!((read, read.client(), read.vip(), flow.note), (key, client, 9, 3));
    }

    #[test]
    fn a_row_that_is_being_written_is_not_there_and_may_come_back() {
        let memory = memory::<FlowKey4>(2);
        let table = Table::new(&memory);
        store(&table, 1, 0);
        let head = memory.iter().skip(FlowKey4::HEAD).step_by(FlowKey4::ROW);
        let head = head.into_iter().find(|head| head.load(Ordering::Relaxed) != 0).unwrap();
        let live = head.load(Ordering::Relaxed);
        head.store(live & !STATUS | u64::from(FlowState::BUSY), Ordering::Relaxed);
        assert!(all(&table).is_empty());
        assert!(table.remove(|_, _| true), "there may be more");
        head.store(live, Ordering::Relaxed);
        assert_eq!(all(&table).len(), 1);
        assert!(table.remove(|_, _| true) && !table.remove(|_, _| true));
    }

    #[test]
    fn a_row_that_changes_while_it_is_read_is_not_torn() {
        let memory = memory::<FlowKey4>(2);
        let table = Table::new(&memory);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // All fields tell which flow it is; the table is so small that each evicts another.
            scope.spawn(|| {
                for number in 0..400_000 {
                    if store(&table, number, number) != Stored::No && number % 2 == 0 {
                        let there = found(&table, number).unwrap();
                        replace::<FlowKey4, _>(&table, there, &flow(number, FlowState::CLIENT_FIN));
                    }
                }
                is_over.store(true, Ordering::Relaxed);
            });
            let mut seen = 0;
            while !is_over.load(Ordering::Relaxed) {
                for (key, flow) in all(&table) {
                    let number = flow.generation;
                    assert_eq!((key, flow.backend.0), (self::key(number), number));
                    assert_eq!((flow.last_seen, flow.note), (number, number));
                    seen += 1;
                }
            }
            assert!(seen > 0);
        });
    }

    #[test]
    fn a_flow_goes_on_at_the_backend_that_follows_its_own_and_no_other_flow_does() {
        let memory = memory::<FlowKey4>(2);
        let table = Table::new(&memory);
        (1..=3).for_each(|number| assert_ne!(store(&table, number, 0), Stored::No));
        let follows = |backend| (backend == FlowBackend(2)).then_some(FlowBackend(9));
        assert!(table.repoint(follows), "programs may have found it before");
        assert!(!table.repoint(follows));
        let was = |number| Flow { state: found(&table, number).unwrap().state(), ..flow(number, 0) };
        let now = |number| Flow { hop: was(number).hop, ..*found(&table, number).unwrap().flow() };
        assert_eq!([1, 2, 3].map(now), [was(1), Flow { backend: FlowBackend(9), ..was(2) }, was(3)]);

        let found_before = table.fold(Vec::new, |all, entry| all.extend(entry)).concat();
        let entry = found_before.into_iter().find(|entry| entry.flow.generation == 1).unwrap();
        replace::<FlowKey4, _>(&table, found(&table, 1).unwrap(), &Flow { backend: FlowBackend(5), ..flow(1, 0) });
        entry.repoint(FlowBackend(9));
        assert_eq!(found(&table, 1).unwrap().backend(), FlowBackend(5), "another flow has taken over the row");
    }

    #[test]
    fn a_flow_is_removed_whatever_is_noted_meanwhile_and_no_other_in_its_place() {
        let memory = memory::<FlowKey4>(2);
        let table = Table::new(&memory);
        store(&table, 1, 0);
        let entry = table.fold(Vec::new, |all, entry| all.extend(entry)).concat()[0];
        found(&table, 1).unwrap().set(FlowState::CLIENT_FIN);
        assert!(entry.remove());
        assert!(found(&table, 1).is_none() && !entry.remove());
        store(&table, 1, 0);
        assert!(!entry.remove(), "the same key, but another flow");
        assert!(found(&table, 1).is_some());
    }
}
