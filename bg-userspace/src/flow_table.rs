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
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut sums = vec![work()];
            // A thread that has panicked has told so; its panic goes on in this one.
            sums.extend(
                others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            );
            sums
        })
    }
}
