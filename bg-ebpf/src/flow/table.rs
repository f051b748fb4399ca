//! The flow table: set-associative, in memory that all CPUs and user space share, without a lock.
//!
//! A row is the key, then the three words of a [`Flow`]. The first of these, the *head*, holds status, state and version; it
//! changes by compare-exchange alone, or by the CPU that has claimed the row. A bucket is eight rows. A key has two buckets,
//! and in each it begins at the row that its hash names. A new flow goes to its first bucket while two rows are free
//! there, so most flows stand in the first cache line that is looked at.
//!
//! | step | what it does | what others see |
//! | --- | --- | --- |
//! | claim | head: whatever it was → BUSY, next version, the new flow's hash (compare-exchange) | the old flow is gone |
//! | check | both buckets: is the key there, or is its hash being written? then the old head is put back | |
//! | fill | key, origin, times (plain stores) | BUSY |
//! | publish | head: → LIVE, the same version (store, after all others) | the whole row |
//! | note | head: other state bits (compare-exchange) | the row, before or after |
//! | find | head, key, origin, times, and the head again: the same version, or it was none | |
//!
//! - *No duplicates.* Claims are ordered, being compare-exchanges, so of two CPUs that open one flow the later one
//!   sees the earlier one's claim when it checks, and gives up. If both see each other, both do; their packets go to the same
//!   backend all the same, since that follows from the five-tuple, and the next packet opens the flow.
//! - *No torn rows.* A reader takes nothing that it cannot find twice under one version.
//! - *Giving up loses no flow.* Before the check nothing but the head has changed, and it is put back. A note that falls into
//!   these nanoseconds is lost.
//! - *Nobody waits.* A writer that is stopped half-way leaves a row BUSY, which costs its bucket a row, and
//!   nobody else anything. A BPF program runs to its end, so it does not stay.

pub use super::victim::{Place, Survey};
use super::{
    bucket::{WAYS, index, row, second, unrolled_row},
    key::{Key, Match, VIP_SHIFT},
    memory::{Memory, Words},
    row::FlowRef,
    victim::{Rank, rank, survey, two_empty},
};
use crate::hint::{rolled, unlikely};
use bg_common::{Flow, FlowState};

/// How [`insert`] and [`replace`] have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stored {
    /// The flow has no row: its key is there already, or other CPUs are at all places.
    No = 0,
    /// The flow has a row.
    Yes = 1,
    /// The flow has a row, and has evicted an open flow in which both ends had taken part.
    Evicted = 2,
}

impl Stored {
    /// From what a global function has returned.
    #[inline(always)]
    pub const fn from_u32(stored: u32) -> Self {
        match stored {
            0 => Self::No,
            1 => Self::Yes,
            _ => Self::Evicted,
        }
    }
}

const STATUS: u64 = FlowState::STATUS as u64;
const LIVE: u64 = FlowState::LIVE as u64;
const BUSY: u64 = FlowState::BUSY as u64;
const IDENTITY: u64 = FlowState::IDENTITY as u64;
/// In the head of a row that is being written: the hash of the new flow.
const HASH: u64 = 0xffff_ffff << 32;

/// Zero if the row's key is the one looked for.
#[inline(always)]
fn difference<K: Key, W: Words>(row: W, key: &K, matching: Match) -> u64 {
    let last = K::HEAD - 1;
    let mut difference = (row.load(last) ^ key.word(last)) & matching.mask();
    for word in 0..last {
        difference |= row.load(word) ^ key.word(word);
    }
    difference
}

/// The row of a key. Of [`Match::Client`] there may be several: this is one of them.
#[inline(always)]
pub fn find<K: Key, M: Memory<K>>(memory: &M, key: &K, hash: u32, matching: Match) -> Option<FlowRef<M::Words>> {
    read(memory, find_row(memory, key, hash, matching)?, key, matching)
}

/// The row that [`find`] reads.
#[inline(always)]
pub fn find_row<K: Key, M: Memory<K>>(memory: &M, key: &K, hash: u32, matching: Match) -> Option<M::Words> {
    let mask = memory.mask();
    match find_in(memory.bucket(hash & mask)?, hash, 0..WAYS, unrolled_row::<K, _>, key, matching) {
        Some(row) => Some(row),
        // A loop: few flows stand here.
        None => find_in(memory.bucket(second(hash, mask))?, hash, rolled(WAYS), row::<K, _>, key, matching),
    }
}

#[inline(always)]
fn find_in<K: Key, W: Words>(
    bucket: W,
    hash: u32,
    turns: impl Iterator<Item = u32>,
    row: impl Fn(W, u32, u32) -> W,
    key: &K,
    matching: Match,
) -> Option<W> {
    for turn in turns {
        let row = row(bucket, hash, turn);
        if unlikely(difference(row, key, matching) == 0) && row.load(K::HEAD) & STATUS == LIVE {
            return Some(row);
        }
    }
    None
}

/// The flow in a row, if it has the key, and stays for as long as it takes to read it.
///
/// All is read before anything is asked of it: what a missing row would leave undefined, the compiler may still
/// move about, and the verifier refuses that.
#[inline(always)]
pub fn read<K: Key, M: Memory<K>>(memory: &M, row: M::Words, key: &K, matching: Match) -> Option<FlowRef<M::Words>> {
    let head = row.load(K::HEAD);
    memory.order();
    let difference = difference(row, key, matching);
    let vip = (row.load(K::HEAD - 1) >> VIP_SHIFT) as u16;
    let (origin, times) = (row.load(K::HEAD + 1), row.load(K::HEAD + 2));
    memory.order();
    let again = row.load(K::HEAD);
    let found = FlowRef::new(row.from(K::HEAD), vip, Flow::from_words([head, origin, times]));
    (difference == 0 && head & STATUS == LIVE && (again ^ head) & IDENTITY == 0).then_some(found)
}

/// Puts a flow in the place of the one that was found under its key, whatever has been noted of that one since. Who opens
/// the flow at the same time sees the key there, so the claim needs no hash.
#[inline(always)]
pub fn replace<K: Key, M: Memory<K>>(memory: &M, there: FlowRef<M::Words>, flow: &Flow) -> Stored {
    let version = there.state().next(0);
    let old = there.words().load(0);
    let is_same = (old ^ there.flow().words()[0]) & IDENTITY == 0;
    if !is_same || !there.words().exchange(0, old, claim(version, 0)) {
        return Stored::No;
    }
    publish(memory, there.words(), version, flow);
    Stored::Yes
}

/// The head of a row that is being written.
#[inline(always)]
fn claim(version: FlowState, hash: u32) -> u64 {
    u64::from(version.0) | BUSY | u64::from(hash) << 32
}

#[inline(always)]
fn publish<K, M: Memory<K>>(memory: &M, head: M::Words, version: FlowState, flow: &Flow) {
    let [state, origin, times] = flow.words();
    // A row begins without a next hop, number zero. The rest of that half is the version: a CPU that still has the
    // row of the flow before in hand shall not find its times unchanged, and cache another client's next hop here. Below the version is room
    // for a mark (`policy::trips::mark`).
    let times = times | u64::from(version.0 << 2) << 32;
    head.store(1, origin);
    head.store(2, times);
    memory.order();
    head.store(0, state & !IDENTITY | u64::from(version.0) | LIVE);
}

/// Whether another row than the one at the index `own` holds the key, or is being written for a flow of this hash.
///
/// A row that another CPU has claimed counts by the key that stands there, too: that CPU may give up, and then the
/// flow of this key is there again.
#[inline(always)]
fn is_there<K: Key, M: Memory<K>>(memory: &M, bucket: M::Words, own: u32, hash: u32, key: &K) -> bool {
    for index in 0..WAYS {
        let head = bucket.load(index as usize * K::ROW + K::HEAD);
        if unlikely(head & (STATUS | HASH) == (BUSY | u64::from(hash) << 32)) && index != own {
            return true;
        }
    }
    // Who has published the flow before its claim was looked for has written the key before that.
    memory.order();
    for index in 0..WAYS {
        let row = bucket.from(index as usize * K::ROW);
        if unlikely(difference(row, key, Match::Whole) == 0) && row.load(K::HEAD) & STATUS != 0 && index != own {
            return true;
        }
    }
    false
}

/// What the bucket at an index has for a new flow of a generation.
#[inline(always)]
pub fn survey_at<K: Key, M: Memory<K>>(memory: &M, bucket: u32, hash: u32, now: u32, generation: u32) -> Survey {
    match memory.bucket(bucket) {
        Some(bucket) => survey::<K, _>(bucket, hash, now, generation),
        None => Survey::NOTHING,
    }
}

/// Where a new flow goes. `survey` is [`survey_at`] for a bucket.
#[inline(always)]
pub fn choose<K: Key, M: Memory<K>>(memory: &M, hash: u32, survey: impl Fn(u32) -> Survey) -> Place {
    let mask = memory.mask();
    let Some(first) = memory.bucket(hash & mask) else { return Place::NONE };
    if let Some(turn) = two_empty::<K, _>(first, hash) {
        return Place::new(false, Rank::empty(turn));
    }
    let first = survey(hash & mask);
    if first.free < 2 {
        let other = survey(second(hash, mask));
        if first.yields_to(other) {
            return Place::new(true, other.best);
        }
    }
    Place::new(false, first.best)
}

/// Stores a flow under a key that was not found.
#[inline(always)]
pub fn insert<K: Key, M: Memory<K>>(memory: &M, key: &K, hash: u32, flow: &Flow, now: u32) -> Stored {
    let place = choose(memory, hash, |bucket| survey_at(memory, bucket, hash, now, flow.generation));
    insert_at(memory, key, hash, flow, now, place)
}

/// Stores a flow under a key that was not found, in the place that [`choose`] has chosen.
#[inline(always)]
pub fn insert_at<K: Key, M: Memory<K>>(memory: &M, key: &K, hash: u32, flow: &Flow, now: u32, place: Place) -> Stored {
    let mask = memory.mask();
    let (Some(first), Some(second)) = (memory.bucket(hash & mask), memory.bucket(second(hash, mask))) else {
        return Stored::No;
    };
    let (is_second, best) = (place.is_second(), place.rank());
    if !best.is_to_be_had() {
        return Stored::No;
    }
    let turn = best.turn();
    let row = row::<K, _>(if is_second { second } else { first }, hash, turn);
    let head = row.from(K::HEAD);
    let old = head.load(0);
    memory.order();
    // Unless another CPU has been here since, or the row was seen with the times of the flow before: a flow that
    // was just opened is not what was chosen.
    let is_as_chosen = if best.is_empty() {
        old & STATUS == 0
    } else {
        rank(old, head.load(1), head.load(2), turn, now, flow.generation).0 == best
    };
    if !is_as_chosen {
        return Stored::No;
    }
    let version = FlowState(old as u32).next(0);
    if !head.exchange(0, old, claim(version, hash)) {
        return Stored::No;
    }
    // The claim comes before the check, whatever the compare-exchange of this machine orders.
    memory.order();
    for half in rolled(2) {
        let bucket = if half == 0 { first } else { second };
        let own = if (half != 0) == is_second { index(hash, turn) } else { WAYS };
        if is_there(memory, bucket, own, hash, key) {
            head.store(0, old);
            return Stored::No;
        }
    }
    for word in 0..K::HEAD {
        row.store(word, key.word(word));
    }
    publish(memory, head, version, flow);
    if best.is_assured() { Stored::Evicted } else { Stored::Yes }
}

/// Takes a flow out, if its row is still as it was found.
#[inline(always)]
pub fn remove<W: Words>(there: FlowRef<W>) -> bool {
    let empty = there.state().next(FlowState::EMPTY);
    there.words().exchange(0, there.flow().words()[0], u64::from(empty.0))
}
