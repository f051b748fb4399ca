//! Where rows stand: the two buckets of a hash, and the order in which their rows are looked at.

use super::{
    key::Key,
    memory::{Memory, Words},
};
use crate::hint::opaque;

/// Rows of a bucket.
pub const WAYS: u32 = bg_common::FLOW_WAYS;

/// Index of a hash's second bucket, which is another one than the first.
#[inline(always)]
pub fn second(hash: u32, mask: u32) -> u32 {
    let first = hash & mask;
    let second = (u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & mask;
    if second == first { first ^ (mask & 1) } else { second }
}

/// The index in its bucket of the row whose turn it is for this hash. The turn of the row at an index is found in the same way.
///
/// Before Linux 6.10 the verifier knows no bounds of an exclusive or of two unknown numbers. So the remainder is that of the
/// result, and `opaque` keeps the compiler from taking those of both numbers instead.
#[inline(always)]
pub fn index(hash: u32, turn: u32) -> u32 {
    opaque((hash >> 29 ^ turn).into()) as u32 % WAYS
}

/// The row of a bucket whose turn it is for this hash.
#[inline(always)]
pub fn row<K: Key, W: Words>(bucket: W, hash: u32, turn: u32) -> W {
    bucket.from(index(hash, turn) as usize * K::ROW)
}

/// The same for a turn that is a constant in an unrolled loop: two instructions less.
#[inline(always)]
pub fn unrolled_row<K: Key, W: Words>(bucket: W, hash: u32, turn: u32) -> W {
    bucket.from((hash >> 29 ^ turn) as usize % WAYS as usize * K::ROW)
}

/// The row in a place of the two buckets of a hash: the first [`WAYS`] places are the first bucket's.
#[inline(always)]
pub fn place<K: Key, M: Memory<K>>(memory: &M, hash: u32, place: u32) -> Option<M::Words> {
    let mask = memory.mask();
    let bucket = memory.bucket(if place < WAYS { hash & mask } else { second(hash, mask) })?;
    Some(row::<K, _>(bucket, hash, place % WAYS))
}
