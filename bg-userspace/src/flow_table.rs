//! The flow tables in this process's memory: read as a whole, on all CPUs, while the programs write them; and thinned
//! out entry by entry. How an entry is written, and why what is read here is never torn, is in
//! [`bg_ebpf::flow_table`].

use std::{
    marker::PhantomData,
    net::SocketAddr,
    ops::Range,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

use bg_common::{Addr, Backend, FLOW_WAYS, Family, Flow, FlowHash, FlowKey4, FlowKey6, FlowState};
use bg_ebpf::{
    flow_ref::FlowRef,
    flow_table::{self, Memory, Tuple, Words},
};

/// A bucket of `flows4`.
pub(crate) type Bucket4 = [u64; FLOW_WAYS as usize * FlowKey4::ENTRY];
/// A bucket of `flows6`.
pub(crate) type Bucket6 = [u64; FLOW_WAYS as usize * FlowKey6::ENTRY];

const WAYS: usize = FLOW_WAYS as usize;

/// A five-tuple of either family.
pub(crate) trait FlowKey: Tuple {
    const FAMILY: Family;
    /// From the words of the addresses, and what the head says.
    fn from_entry(address: impl Fn(usize) -> u64, flow: &Flow) -> Self;
    fn source(&self) -> Addr;
    fn destination(&self) -> Addr;
    /// That of the reply, if this is the forward direction: from the backend to the client.
    fn reply(&self, backend: &Backend) -> Self;
}

impl FlowKey for FlowKey4 {
    const FAMILY: Family = Family::V4;

    fn from_entry(address: impl Fn(usize) -> u64, flow: &Flow) -> Self {
        let (src, dst) = halves(address(0));
        Self { src, dst, ports: flow.ports, protocol: flow.state.protocol() as u32 }
    }

    fn source(&self) -> Addr {
        Addr([self.src, 0, 0, 0])
    }

    fn destination(&self) -> Addr {
        Addr([self.dst, 0, 0, 0])
    }

    fn reply(&self, backend: &Backend) -> Self {
        Self { src: backend.addr.0[0], dst: self.src, ports: reply_ports(self.ports, backend), ..*self }
    }
}

impl FlowKey for FlowKey6 {
    const FAMILY: Family = Family::V6;

    fn from_entry(address: impl Fn(usize) -> u64, flow: &Flow) -> Self {
        let of_words = |first: usize| {
            let ((a, b), (c, d)) = (halves(address(first)), halves(address(first + 1)));
            Addr([a, b, c, d])
        };
        Self { src: of_words(0), dst: of_words(2), ports: flow.ports, protocol: flow.state.protocol() as u32 }
    }

    fn source(&self) -> Addr {
        self.src
    }

    fn destination(&self) -> Addr {
        self.dst
    }

    fn reply(&self, backend: &Backend) -> Self {
        Self { src: backend.addr, dst: self.src, ports: reply_ports(self.ports, backend), ..*self }
    }
}

fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

fn reply_ports(ports: u32, backend: &Backend) -> u32 {
    let [a, b, _, _] = ports.to_ne_bytes();
    let [p, q] = backend.port.host().to_be_bytes();
    u32::from_ne_bytes([p, q, a, b])
}

/// Source and destination of a five-tuple.
pub(crate) fn ends(key: &impl FlowKey) -> (SocketAddr, SocketAddr) {
    fn end<K: FlowKey>(_: &K, addr: Addr, port: [u8; 2]) -> SocketAddr {
        SocketAddr::new(addr.to_ip(K::FAMILY), u16::from_be_bytes(port))
    }
    let [a, b, c, d] = key.ports().to_ne_bytes();
    (end(key, key.source(), [a, b]), end(key, key.destination(), [c, d]))
}

/// Words of a table from one on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    all: &'a [AtomicU64],
    first: usize,
}

impl Words for Row<'_> {
    fn from(self, word: usize) -> Self {
        Self { first: self.first + word, ..self }
    }

    fn before(self, words: usize) -> Self {
        Self { first: self.first - words, ..self }
    }

    fn load(self, word: usize) -> u64 {
        self.all[self.first + word].load(Ordering::Relaxed)
    }

    fn store(self, word: usize, value: u64) {
        self.all[self.first + word].store(value, Ordering::Relaxed);
    }

    fn store_low(self, word: usize, value: u32) {
        let low = |old: u64| Some(old & !u64::from(u32::MAX) | u64::from(value));
        // It is always some value.
        let _ = self.all[self.first + word].fetch_update(Ordering::Relaxed, Ordering::Relaxed, low);
    }

    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        self.all[self.first + word].compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// One flow table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowTable<'a, K> {
    words: &'a [AtomicU64],
    hash: &'a FlowHash,
    key: PhantomData<K>,
}

impl<'a, K: FlowKey> Memory<K> for FlowTable<'a, K> {
    type Words = Row<'a>;

    fn bucket(&self, index: u32) -> Option<Row<'a>> {
        let first = index as usize * WAYS * K::ENTRY;
        (first < self.words.len()).then_some(Row { all: self.words, first })
    }

    fn mask(&self) -> u32 {
        self.buckets() as u32 - 1
    }

    fn hash_key(&self, index: usize) -> u64 {
        self.hash.0[index]
    }

    fn order(&self) {
        fence(Ordering::AcqRel);
    }
}

/// An entry that is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    /// Of either direction.
    Either,
    /// Of the forward direction.
    Forward,
}

impl Which {
    /// Bits of a head that are looked at, and what they have to be.
    const fn bits(self) -> (u64, u64) {
        let looked_at = match self {
            Self::Either => FlowState::STATUS,
            Self::Forward => FlowState::STATUS | FlowState::REPLY,
        };
        ((looked_at as u64) << 32, (FlowState::LIVE as u64) << 32)
    }
}

/// An entry that was read as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a, K> {
    pub(crate) key: K,
    pub(crate) flow: Flow,
    row: Row<'a>,
}

impl<K: FlowKey> Entry<'_, K> {
    /// The client: it sends the forward direction and gets the reply.
    pub(crate) fn client(&self) -> Addr {
        if self.flow.state.has(FlowState::REPLY) { self.key.destination() } else { self.key.source() }
    }

    /// Takes the flow out of its place, whatever is noted in the entry meanwhile. `false` if it was gone already.
    pub(crate) fn remove(mut self) -> bool {
        let was = self.flow.state;
        loop {
            if flow_table::remove(FlowRef::new(self.row.from(K::HEAD), self.flow)) {
                return true;
            }
            match read::<K>(self.row) {
                Some(now)
                    if (now.flow.state.0 ^ was.0) & FlowState::IDENTITY == 0 && now.flow.ports == self.flow.ports =>
                {
                    self = now;
                }
                _ => return false,
            }
        }
    }
}

/// The entry in a place, if a flow stands there, and stays for as long as it takes to read it.
#[inline]
fn read<K: FlowKey>(row: Row<'_>) -> Option<Entry<'_, K>> {
    // A version and what goes with it: ports, protocol and direction never change under one.
    const SAME: u64 = (FlowState::IDENTITY as u64 | FlowState::UDP as u64) << 32 | u32::MAX as u64;
    let at = row.from(K::HEAD);
    let head = at.load(0);
    if head >> 32 & u64::from(FlowState::STATUS) != u64::from(FlowState::LIVE) {
        return None;
    }
    fence(Ordering::Acquire);
    let flow = Flow::from_words([head, at.load(1), at.load(2)]);
    let key = K::from_entry(|word| row.load(word), &flow);
    fence(Ordering::Acquire);
    ((at.load(0) ^ head) & SAME == 0).then_some(Entry { key, flow, row })
}

impl<'a, K: FlowKey> FlowTable<'a, K> {
    /// Of all words of a map, a power of two of buckets.
    pub(crate) fn new(words: &'a [AtomicU64], hash: &'a FlowHash) -> Self {
        Self { words, hash, key: PhantomData }
    }

    fn buckets(&self) -> usize {
        self.words.len() / (WAYS * K::ENTRY)
    }

    /// The entry of a five-tuple.
    pub(crate) fn find(&self, key: &K) -> Option<Flow> {
        flow_table::find(self, key).map(|there| *there.flow())
    }

    /// Calls `each` with the entries of some buckets.
    #[inline]
    fn each_of(&self, buckets: Range<usize>, which: Which, mut each: impl FnMut(Entry<'a, K>)) {
        let (looked_at, wanted) = which.bits();
        let bucket_words = WAYS * K::ENTRY;
        let words = &self.words[buckets.start * bucket_words..buckets.end * bucket_words];
        for (number, bucket) in words.chunks_exact(bucket_words).enumerate() {
            let first = (buckets.start + number) * bucket_words;
            // Heads first, without a branch for each: which places are taken cannot be predicted.
            let mut found = 0_u32;
            for nth in 0..WAYS {
                let head = bucket[nth * K::ENTRY + K::HEAD].load(Ordering::Relaxed);
                found |= u32::from(head & looked_at == wanted) << nth;
            }
            while found != 0 {
                let nth = found.trailing_zeros() as usize;
                found &= found - 1;
                let row = Row { all: self.words, first: first + nth * K::ENTRY };
                if let Some(entry) = read::<K>(row) {
                    each(entry);
                }
            }
        }
    }

    /// Calls `each` with every entry, on all CPUs: each thread adds to an own sum, and all sums are returned. Entries
    /// that come or go meanwhile may be missed; none is torn.
    pub(crate) fn fold<A: Send>(
        &self,
        which: Which,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, Entry<'a, K>) + Sync,
    ) -> Vec<A>
    where
        K: Sync,
    {
        /// Buckets of a piece of work: worth a thread, and few enough that no CPU is left with a large one at the end.
        const PIECE: usize = 8192;
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
                self.each_of(start..end, which, |entry| each(&mut sum, entry));
            }
        };
        std::thread::scope(|scope| {
            // Where no more threads can be made, those that are there do all of it.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..threads).filter_map(spawn).collect();
            let mut sums = vec![work()];
            // A thread that has panicked has told so; its panic goes on in this one.
            sums.extend(
                others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            );
            sums
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bg_common::{Be16, FlowBackend};
    use bg_ebpf::flow_table::{Stored, insert, replace};

    use super::*;

    type Table<'a> = FlowTable<'a, FlowKey4>;

    fn memory(buckets: usize) -> Vec<AtomicU64> {
        (0..buckets * WAYS * FlowKey4::ENTRY).map(|_| AtomicU64::new(0)).collect()
    }

    fn key(number: u32) -> FlowKey4 {
        FlowKey4 { src: number, dst: !number, ports: number.rotate_left(7), protocol: 6 }
    }

    fn flow(number: u32, state: u32) -> Flow {
        let ports = key(number).ports;
        let state = FlowState(state);
        Flow { ports, state, backend: FlowBackend(number), generation: number, last_seen: number, note: number }
    }

    fn all(table: &Table<'_>, which: Which) -> Vec<(FlowKey4, Flow)> {
        table.fold(which, Vec::new, |all, entry| all.push((entry.key, entry.flow))).concat()
    }

    #[test]
    fn what_is_inserted_is_read_and_found() {
        let memory = memory(1 << 15);
        let table = Table::new(&memory, &FlowHash::PUBLIC);
        let count = 60_000;
        for number in 0..count {
            let state = if number % 3 == 0 { FlowState::REPLY } else { 0 };
            // At tick zero none has been silent for long.
            assert_ne!(insert(&table, &key(number), &flow(number, state), 0), Stored::No);
        }
        let either: HashMap<_, _> = all(&table, Which::Either).into_iter().collect();
        assert!(either.len() > count as usize * 999 / 1000);
        for (key, found) in &either {
            assert_eq!(table.find(key), Some(*found));
            assert_eq!(*key, self::key(found.generation));
        }
        let forward = all(&table, Which::Forward);
        assert_eq!(forward.len(), either.values().filter(|flow| !flow.state.has(FlowState::REPLY)).count());
        assert!(forward.iter().all(|(key, flow)| either[key] == *flow && !flow.state.has(FlowState::REPLY)));
    }

    #[test]
    fn an_ipv6_flow_is_read_and_found() {
        let memory: Vec<_> = (0..2 * WAYS * FlowKey6::ENTRY).map(|_| AtomicU64::new(0)).collect();
        let table = FlowTable::<FlowKey6>::new(&memory, &FlowHash::PUBLIC);
        let key = FlowKey6 { src: Addr([1, 2, 3, 4]), dst: Addr([5, 6, 7, 8]), ports: 9, protocol: 17 };
        insert(&table, &key, &Flow { ports: 9, state: FlowState(FlowState::UDP), ..Flow::default() }, 0);
        assert_eq!(table.fold(Which::Forward, Vec::new, |all, entry| all.push(entry.key)).concat(), [key]);
        assert!(table.find(&key).is_some());
    }

    #[test]
    fn an_entry_that_is_being_written_is_not_there() {
        let memory = memory(2);
        let table = Table::new(&memory, &FlowHash::PUBLIC);
        insert(&table, &key(1), &flow(1, 0), 0);
        let head = memory.iter().skip(1).step_by(4).find(|head| head.load(Ordering::Relaxed) != 0).unwrap();
        let live = head.load(Ordering::Relaxed);
        let status = u64::from(FlowState::STATUS) << 32;
        head.store(live & !status | u64::from(FlowState::BUSY) << 32, Ordering::Relaxed);
        assert!(all(&table, Which::Either).is_empty() && table.find(&key(1)).is_none());
        head.store(live, Ordering::Relaxed);
        assert_eq!(all(&table, Which::Either).len(), 1);
    }

    #[test]
    fn an_entry_that_changes_while_it_is_read_is_not_torn() {
        let memory = memory(2);
        let table = Table::new(&memory, &FlowHash::PUBLIC);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // All fields tell which flow it is; the table is so small that each pushes out another.
            scope.spawn(|| {
                for number in 0..400_000 {
                    if insert(&table, &key(number), &flow(number, 0), number) != Stored::No && number % 2 == 0 {
                        let there = flow_table::find(&table, &key(number)).unwrap();
                        replace::<FlowKey4, _>(&table, there, &flow(number, FlowState::CLIENT_FIN));
                    }
                }
                is_over.store(true, Ordering::Relaxed);
            });
            let mut seen = 0;
            while !is_over.load(Ordering::Relaxed) {
                for (key, flow) in all(&table, Which::Either) {
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
    fn an_entry_is_removed_whatever_is_noted_meanwhile_and_no_other_in_its_place() {
        let memory = memory(2);
        let table = Table::new(&memory, &FlowHash::PUBLIC);
        insert(&table, &key(1), &flow(1, 0), 0);
        let entry = table.fold(Which::Either, Vec::new, |all, entry| all.push(entry)).concat()[0];
        let mut there = flow_table::find(&table, &key(1)).unwrap();
        there.note(FlowState::CLIENT_FIN);
        assert!(entry.remove());
        assert!(table.find(&key(1)).is_none() && !entry.remove());
        insert(&table, &key(1), &flow(1, 0), 0);
        assert!(!entry.remove(), "the same tuple, but another flow");
        assert!(table.find(&key(1)).is_some());
    }

    #[test]
    fn the_reply_comes_from_the_backend() {
        let backend = Backend { addr: Addr([9, 0, 0, 0]), port: Be16::new(8443), ..Backend::default() };
        let key = FlowKey4 { src: 1, dst: 2, ports: u32::from_ne_bytes([0xc0, 0x01, 0x01, 0xbb]), protocol: 6 };
        let reply = key.reply(&backend);
        assert_eq!((reply.src, reply.dst, ends(&reply).0.port(), ends(&reply).1.port()), (9, 1, 8443, 0xc001));
        let client: SocketAddr = "1.0.0.0:49153".parse().unwrap();
        assert_eq!(ends(&key), (client, "2.0.0.0:443".parse().unwrap()));
    }
}
