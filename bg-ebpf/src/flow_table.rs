//! The flow table: set-associative, in memory that all CPUs and user space share, without a lock.
//!
//! An entry is a row of words: the addresses, then the three words of a [`Flow`]. Its *head*, the first of those
//! three, holds ports, protocol, status, state and version; whoever changes a head does so by compare-exchange, or has
//! claimed it. A bucket is four entries, a five-tuple has two candidate buckets, and in each it begins with the
//! entry that its hash names: at half load most flows stand in the first cache line that is looked at.
//!
//! | step | what it does | what others see |
//! | --- | --- | --- |
//! | claim | head: whatever it was → BUSY, next version, our ports and protocol (compare-exchange) | the old entry is gone |
//! | look about | both buckets: is the tuple there, or being written? then the claim is given up | |
//! | fill | addresses, origin, times (plain stores) | BUSY |
//! | publish | head: → LIVE, the same version (store, after all others) | the whole entry |
//! | note | head: more state bits (compare-exchange) | the entry, before or after |
//! | find | head, addresses, origin, times, and the head again: the same version, or it was none | |
//!
//! - *No duplicates.* Claims are ordered, being compare-exchanges, so of two CPUs that open one tuple the later
//!   sees the earlier one's claim when it looks about. It gives up. If both see each other both do; their packets
//!   go to the same backend all the same, since that follows from the tuple, and the next packet opens the flow.
//! - *No torn entries.* A reader takes nothing that it cannot find twice under one version.
//! - *Nobody waits.* A writer that is stopped half-way leaves an entry BUSY, which costs its bucket a place, and
//!   nobody else anything. A BPF program runs to its end, so it does not stay.
//!
//! Who gives way when no place is empty: first a flow that has ended, or was silent for longer than it says it may be;
//! then a TCP flow whose sender has never gone beyond its SYN, so that a flood of SYNs displaces itself; then the one
//! that has been silent longest.

use crate::{flow_ref::FlowRef, opaque, unlikely};
use bg_common::{Flow, FlowKey4, FlowKey6, FlowState};

/// Entries of a bucket.
pub const WAYS: u32 = bg_common::FLOW_WAYS;

/// A row of words in shared memory.
pub trait Words: Copy {
    /// The row from this word on.
    fn from(self, word: usize) -> Self;
    /// The row that this is so many words behind the beginning of.
    fn before(self, words: usize) -> Self;
    /// Loads a word, once.
    fn load(self, word: usize) -> u64;
    /// Stores a word, once.
    fn store(self, word: usize, value: u64);
    /// Stores the lower half of a word, once.
    fn store_low(self, word: usize, value: u32);
    /// Replaces a word if it has not changed: exactly one of those who try at once does. Orders everything.
    fn exchange(self, word: usize, old: u64, new: u64) -> bool;
}

/// Memory of a table for one kind of tuple.
pub trait Memory<K> {
    /// Access to its words.
    type Words: Words;
    /// A bucket: [`WAYS`] entries one after the other.
    fn bucket(&self, index: u32) -> Option<Self::Words>;
    /// Number of buckets less one; a power of two less one.
    fn mask(&self) -> u32;
    /// Key of the hash, below 11.
    fn hash_key(&self, index: usize) -> u64;
    /// Loads and stores before it come before those after it.
    fn order(&self);
}

/// A five-tuple as words.
pub trait Tuple: Copy {
    /// Words of an entry.
    const ENTRY: usize;
    /// Words of the addresses: the head comes after them.
    const HEAD: usize;
    /// A word of the addresses.
    fn address(&self, word: usize) -> u64;
    /// Both ports.
    fn ports(&self) -> u32;
    /// The bit of its protocol in a [`FlowState`].
    fn protocol(&self) -> u32;
    /// Keyed hash; see [`bg_common::FlowHash`].
    fn hash(&self, memory: &impl Memory<Self>) -> u32;
}

/// How [`insert`] and [`replace`] have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is there.
    Yes,
    /// It is there, in the place of a flow that was open.
    PushedOut,
    /// It is not: the tuple is there already, or somebody else is at it.
    No,
}

const PORTS: u64 = 0xffff_ffff;
const LIVE: u64 = (FlowState::LIVE as u64) << 32;
const BUSY: u64 = (FlowState::BUSY as u64) << 32;
const STATUS: u64 = (FlowState::STATUS as u64) << 32;
const TUPLE: u64 = PORTS | (FlowState::UDP as u64) << 32;
const REPLY: u64 = (FlowState::REPLY as u64) << 32;
const IDENTITY: u64 = (FlowState::IDENTITY as u64) << 32;

/// A tuple's part of a head.
#[inline(always)]
fn tuple_bits<K: Tuple>(key: &K) -> u64 {
    u64::from(key.ports()) | u64::from(key.protocol()) << 32
}

/// Index of the other candidate bucket. A function of the hash alone, as the first is.
#[inline(always)]
fn second(hash: u32, mask: u32) -> u32 {
    let first = hash & mask;
    let second = (u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & mask;
    if second == first { first ^ (mask & 1) } else { second }
}

/// The entry of a bucket that comes as the `nth` for this hash.
#[inline(always)]
fn entry<K: Tuple, W: Words>(bucket: W, hash: u32, nth: u32) -> W {
    bucket.from((hash >> 30 ^ nth) as usize % WAYS as usize * K::ENTRY)
}

#[inline(always)]
fn has_address<K: Tuple, W: Words>(entry: W, key: &K) -> bool {
    let mut differing = 0;
    for word in 0..K::HEAD {
        differing |= entry.load(word) ^ key.address(word);
    }
    differing == 0
}

/// The entry of a tuple.
#[inline(always)]
pub fn find<K: Tuple, M: Memory<K>>(memory: &M, key: &K) -> Option<FlowRef<M::Words>> {
    let (entry, head) = locate(memory, key)?;
    let (origin, times) = (entry.load(1), entry.load(2));
    memory.order();
    if (entry.load(0) ^ head) & (IDENTITY | TUPLE) != 0 {
        return None;
    }
    Some(FlowRef::new(entry, Flow::from_words([head, origin, times])))
}

/// Head of a tuple's entry, and what stood there when its addresses were compared.
#[inline(always)]
fn locate<K: Tuple, M: Memory<K>>(memory: &M, key: &K) -> Option<(M::Words, u64)> {
    let hash = key.hash(memory);
    let mask = memory.mask();
    match locate_in(memory, memory.bucket(hash & mask)?, hash, key) {
        None => locate_in(memory, memory.bucket(second(hash, mask))?, hash, key),
        found => found,
    }
}

#[inline(always)]
fn locate_in<K: Tuple, M: Memory<K>>(memory: &M, bucket: M::Words, hash: u32, key: &K) -> Option<(M::Words, u64)> {
    let wanted = tuple_bits(key) | LIVE;
    for nth in 0..WAYS {
        let entry = entry::<K, _>(bucket, hash, nth);
        let head = entry.load(K::HEAD);
        if head & (TUPLE | STATUS) == wanted {
            memory.order();
            if has_address(entry, key) {
                return Some((entry.from(K::HEAD), head));
            }
        }
    }
    None
}

/// [`find`] in little code and on little stack, for who is in no hurry.
///
/// All is read before anything is asked of it: what a missing entry would leave undefined, the compiler may still
/// move about, and the verifier refuses that.
#[inline(always)]
pub fn find_slowly<K: Tuple, M: Memory<K>>(memory: &M, key: &K) -> Option<FlowRef<M::Words>> {
    let hash = key.hash(memory);
    let mask = memory.mask();
    let mut at = memory.bucket(hash & mask)?.from(K::HEAD);
    for nth in 0..rolled(2 * WAYS) {
        let bucket = if nth < WAYS { hash & mask } else { second(hash, mask) };
        let Some(bucket) = memory.bucket(bucket) else { break };
        let entry = entry::<K, _>(bucket, hash, nth % WAYS);
        if entry.load(K::HEAD) & (TUPLE | STATUS) == tuple_bits(key) | LIVE {
            memory.order();
            if has_address(entry, key) {
                at = entry.from(K::HEAD);
                break;
            }
        }
    }
    let head = at.load(0);
    memory.order();
    let is_its_address = has_address(at.before(K::HEAD), key);
    let (origin, times) = (at.load(1), at.load(2));
    memory.order();
    let is_same = (at.load(0) ^ head) & (IDENTITY | TUPLE) == 0;
    let found = FlowRef::new(at, Flow::from_words([head, origin, times]));
    (is_same && is_its_address && head & (TUPLE | STATUS) == tuple_bits(key) | LIVE).then_some(found)
}

/// Stores a flow under a tuple: in the place of the entry that there is, if it `replaces` one.
#[inline(always)]
pub fn store<K: Tuple, M: Memory<K>>(memory: &M, key: &K, flow: &Flow, replaces: bool, now: u32) -> Stored {
    if replaces && let Some(there) = find_slowly(memory, key) {
        replace::<K, M>(memory, there, flow)
    } else {
        insert(memory, key, flow, now)
    }
}

/// Puts a flow in the place of the entry that was found under its tuple.
#[inline(always)]
pub fn replace<K: Tuple, M: Memory<K>>(memory: &M, there: FlowRef<M::Words>, flow: &Flow) -> Stored {
    let old = there.flow().words()[0];
    let version = there.flow().state.next(0);
    let tuple = old & TUPLE;
    let busy = tuple | BUSY | u64::from(version.0) << 32;
    if !there.words().exchange(0, old, busy) {
        return Stored::No;
    }
    publish(memory, there.words(), tuple, version, flow);
    Stored::Yes
}

#[inline(always)]
fn publish<K, M: Memory<K>>(memory: &M, entry: M::Words, tuple: u64, version: FlowState, flow: &Flow) {
    let [head, origin, times] = flow.words();
    let state = (head & !(TUPLE | IDENTITY)) | u64::from(version.0) << 32;
    // A reply's entry begins with no next hop, place zero. The rest of the note is the version: who still has the
    // entry before this one in hand shall not find its times unchanged, and cache another client's next hop here.
    let times = if head & REPLY != 0 { times & PORTS | u64::from(version.0) << 32 } else { times };
    entry.store(1, origin);
    entry.store(2, times);
    memory.order();
    entry.store(0, tuple | LIVE | state);
}

/// A bound that the compiler does not know: a loop that is no part of the hot path stays a loop, and small.
#[inline(always)]
pub fn rolled(bound: u32) -> u32 {
    opaque(bound.into()) as u32
}

/// What the places of a bucket are worth to a newcomer.
#[derive(Clone, Copy)]
struct Survey {
    /// Worth of the best place; see [`worth`].
    best: u64,
    /// Places that nobody misses.
    free: u64,
}

/// How a place is worth more than another: by class, then by silence, then by its turn in the bucket.
mod class {
    /// Where it stands in a [`super::worth`].
    pub(super) const SHIFT: u32 = 40;
    /// An open flow.
    pub(super) const OPEN: u64 = 1;
    /// A connection that its client has never confirmed.
    pub(super) const UNCONFIRMED: u64 = 2;
    /// A flow that has ended, or was silent for longer than it may be.
    pub(super) const OVER: u64 = 4;
    /// Nobody.
    pub(super) const EMPTY: u64 = 8;
}

/// What a place is worth to a newcomer, and whether anybody would miss what is there. Zero but for the turn: it is
/// being written.
///
/// Without a branch: of eight places the verifier would follow each way through each. So bits are moved to where they
/// are wanted, and `opaque` keeps the compiler from seeing a condition in them.
#[inline(always)]
fn worth(head: u64, times: u64, nth: u32, now: u32) -> (u64, u64) {
    use FlowState as S;
    let state = FlowState((head >> 32) as u32);
    let bits = opaque(head >> 32);
    let at = |mask: u32| bits >> mask.trailing_zeros();
    let is_live = at(S::LIVE) & 1;
    let is_empty = !(at(S::LIVE) | at(S::BUSY)) & 1;
    // Another CPU may have seen a later tick than this one had read: that is no silence.
    let silence = now.wrapping_sub(times as u32);
    let silence = u64::from(silence) & opaque(u64::from(silence >> 31).wrapping_sub(1));
    let is_silent = opaque(u64::from(state.limit()).wrapping_sub(silence)) >> 63;
    let has_ended = at(S::CLIENT_RESET) | at(S::BACKEND_RESET) | at(S::GONE) | (at(S::CLIENT_FIN) & at(S::BACKEND_FIN));
    let is_over = has_ended & 1 | is_silent;
    let is_unconfirmed = !(at(S::UDP) | at(S::ESTABLISHED)) & 1;
    let class = class::OPEN | (class::UNCONFIRMED * is_unconfirmed) | (class::OVER * is_over);
    let if_live = 0_u64.wrapping_sub(opaque(is_live));
    let worth = if_live & (class << class::SHIFT | silence << 2) | (class::EMPTY * is_empty) << class::SHIFT;
    (worth | u64::from(WAYS - 1 - nth), is_empty | (is_live & is_over))
}

/// The best place of a bucket.
#[inline(always)]
fn survey<K: Tuple, W: Words>(bucket: W, hash: u32, now: u32) -> Survey {
    let mut survey = Survey { best: 0, free: 0 };
    for nth in 0..rolled(WAYS) {
        let entry = entry::<K, _>(bucket, hash, nth);
        let (worth, free) = worth(entry.load(K::HEAD), entry.load(K::HEAD + 2), nth, now);
        // The greater one, without a branch.
        let is_less = opaque((survey.best.wrapping_sub(worth) as i64 >> 63) as u64);
        survey.best ^= (survey.best ^ worth) & is_less;
        survey.free += free;
    }
    survey
}

/// How many places of a bucket hold the tuple, or are claimed for what may be it.
#[inline(always)]
fn count_of<K: Tuple, M: Memory<K>>(memory: &M, bucket: M::Words, hash: u32, key: &K) -> u32 {
    let mut count = 0;
    for nth in 0..WAYS {
        let entry = entry::<K, _>(bucket, hash, nth);
        let head = entry.load(K::HEAD);
        if unlikely((head ^ tuple_bits(key)) & TUPLE == 0 && head & STATUS != 0) {
            memory.order();
            if head & STATUS == BUSY || has_address(entry, key) {
                count += 1;
            }
        }
    }
    count
}

/// A set of the places of a bucket: how many are in it, and the first one's turn.
struct Places {
    count: u64,
    first: u32,
}

/// Places of a bucket that are empty. Without a branch, as [`worth`], and much shorter.
#[inline(always)]
fn empty_places<K: Tuple, W: Words>(bucket: W, hash: u32) -> Places {
    // By the set's bits: how many there are, and which is the lowest.
    const COUNTS: u64 = 0x4332_3221_3221_2110;
    const LOWEST: u64 = 0x0102_0103_0102_0100;
    let mut set = 0;
    for nth in 0..WAYS {
        let status = opaque(entry::<K, _>(bucket, hash, nth).load(K::HEAD) & STATUS);
        set |= (status.wrapping_sub(1) >> 63) << nth;
    }
    Places { count: COUNTS >> (4 * set) & 0xf, first: (LOWEST >> (4 * set)) as u32 & 0xf }
}

/// Stores a flow under a tuple that was not found.
#[inline(always)]
pub fn insert<K: Tuple, M: Memory<K>>(memory: &M, key: &K, flow: &Flow, now: u32) -> Stored {
    let hash = key.hash(memory);
    let mask = memory.mask();
    let (Some(first), Some(second)) = (memory.bucket(hash & mask), memory.bucket(second(hash, mask))) else {
        return Stored::No;
    };
    // The better of two buckets: the one with more places that are empty, or else that nobody misses; or else with
    // the better place.
    let (in_first, in_second) = (empty_places::<K, _>(first, hash), empty_places::<K, _>(second, hash));
    let mut is_second = in_second.count > in_first.count;
    let mut nth = if is_second { in_second.first } else { in_first.first };
    let mut best = class::EMPTY << class::SHIFT | u64::from(WAYS - 1 - nth);
    if in_first.count + in_second.count == 0 {
        let (in_first, in_second) = (survey::<K, _>(first, hash, now), survey::<K, _>(second, hash, now));
        is_second = in_second.free > in_first.free || (in_first.free == 0 && in_second.best >> 2 > in_first.best >> 2);
        best = if is_second { in_second.best } else { in_first.best };
        nth = WAYS - 1 - best as u32 % WAYS;
    }
    if best < u64::from(WAYS) {
        return Stored::No;
    }
    let entry = entry::<K, _>(if is_second { second } else { first }, hash, nth);
    let head = entry.from(K::HEAD);
    let old = head.load(0);
    memory.order();
    // Unless another CPU has been here since, or its entry was seen with the times of the one before it: a flow that
    // was just opened is not what was given away.
    if worth(old, head.load(2), nth, now).0 != best {
        return Stored::No;
    }
    let tuple = tuple_bits(key);
    let version = FlowState((old >> 32) as u32).next(0);
    if !head.exchange(0, old, tuple | BUSY | u64::from(version.0) << 32) {
        return Stored::No;
    }
    // The claim comes before the look about, whatever the compare-exchange of this machine is worth.
    memory.order();
    // Our own claim is one of them.
    if count_of(memory, first, hash, key) + count_of(memory, second, hash, key) > 1 {
        head.store(0, u64::from(version.0) << 32);
        return Stored::No;
    }
    for word in 0..K::HEAD {
        entry.store(word, key.address(word));
    }
    publish(memory, head, tuple, version, flow);
    if best >> class::SHIFT < class::OVER { Stored::PushedOut } else { Stored::Yes }
}

/// Takes an entry out, if it is still the one that was found.
pub fn remove<W: Words>(there: FlowRef<W>) -> bool {
    let empty = there.flow().state.next(FlowState::EMPTY);
    there.words().exchange(0, there.flow().words()[0], u64::from(empty.0) << 32)
}

/// A product of the hash: two words of a tuple.
#[inline(always)]
fn product<K>(memory: &impl Memory<K>, index: usize, a: u32, b: u32) -> u64 {
    let sum = |key: usize, word: u32| memory.hash_key(key).wrapping_add(word.into());
    sum(index, a).wrapping_mul(sum(index + 1, b))
}

/// The hash out of the sum of products. Where one word alone differs the sum is linear in it: ports in order would be a
/// progression, which by some keys falls into few buckets. Folded and multiplied, it is one no more.
#[inline(always)]
fn mixed(sum: u64) -> u32 {
    ((sum ^ sum >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

impl Tuple for FlowKey4 {
    const ENTRY: usize = 4;
    const HEAD: usize = 1;

    #[inline(always)]
    fn address(&self, _word: usize) -> u64 {
        u64::from(self.src) | u64::from(self.dst) << 32
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        self.ports
    }

    #[inline(always)]
    fn protocol(&self) -> u32 {
        if self.protocol == bg_common::Protocol::Udp as u32 { FlowState::UDP } else { 0 }
    }

    #[inline(always)]
    fn hash(&self, memory: &impl Memory<Self>) -> u32 {
        let sum = memory.hash_key(0).wrapping_add(product(memory, 1, self.src, self.dst)).wrapping_add(product(
            memory,
            3,
            self.ports,
            self.protocol,
        ));
        mixed(sum)
    }
}

impl Tuple for FlowKey6 {
    const ENTRY: usize = 8;
    const HEAD: usize = 4;

    #[inline(always)]
    fn address(&self, word: usize) -> u64 {
        let [s0, s1, s2, s3] = self.src.0;
        let [d0, d1, d2, d3] = self.dst.0;
        // Not by index: the bound check would be a panic.
        let (low, high) = match word {
            0 => (s0, s1),
            1 => (s2, s3),
            2 => (d0, d1),
            _ => (d2, d3),
        };
        u64::from(low) | u64::from(high) << 32
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        self.ports
    }

    #[inline(always)]
    fn protocol(&self) -> u32 {
        if self.protocol == bg_common::Protocol::Udp as u32 { FlowState::UDP } else { 0 }
    }

    #[inline(always)]
    fn hash(&self, memory: &impl Memory<Self>) -> u32 {
        let [s0, s1, s2, s3] = self.src.0;
        let [d0, d1, d2, d3] = self.dst.0;
        let sum = memory
            .hash_key(0)
            .wrapping_add(product(memory, 1, s0, s1))
            .wrapping_add(product(memory, 3, s2, s3))
            .wrapping_add(product(memory, 5, d0, d1))
            .wrapping_add(product(memory, 7, d2, d3))
            .wrapping_add(product(memory, 9, self.ports, self.protocol));
        mixed(sum)
    }
}
