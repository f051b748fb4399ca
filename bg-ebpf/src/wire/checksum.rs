//! Incremental update of internet checksums (RFC 1624, equation 3).
//!
//! Words are summed as they stand in memory: the ones' complement sum does not care about byte
//! order as long as all its words share one (RFC 1071, section 2).

use super::packet::{
    Packet,
    bytes::{load16, load32},
};
use crate::hint::{opaque, rolled};
use bg_common::Addr;

/// What has been replaced in the bytes that a checksum covers: the sum of `~old + new` over all
/// replaced words, not folded yet.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Delta(u64);

impl Delta {
    /// Nothing replaced.
    pub const NONE: Self = Self(0);

    /// One aligned 16-bit word replaced.
    #[inline(always)]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Two neighbouring 16-bit words replaced.
    #[inline(always)]
    pub const fn double_word(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Four neighbouring 16-bit words replaced.
    #[inline(always)]
    pub const fn quad_word(self, old: u64, new: u64) -> Self {
        self.double_word(old as u32, new as u32).double_word((old >> 32) as u32, (new >> 32) as u32)
    }

    /// What two parts of the bytes have seen replaced.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum field after the replacement, from the field before it. Three folds are enough for sums
    /// below 2³⁷, that is for more than thirty double words; no packet here has more than twelve replaced.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + !checksum as u64)
    }
}

/// A sum of 16-bit words, not folded yet.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Sum(u64);

impl Sum {
    /// Of no words.
    pub const ZERO: Self = Self(0);

    /// With one more word.
    #[inline(always)]
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// With two more words.
    #[inline(always)]
    pub const fn double_word(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    /// With the words of an address. Words that it does not have are zero.
    #[inline(always)]
    pub const fn address(self, &Addr([a, b, c, d]): &Addr) -> Self {
        self.double_word(a).double_word(b).double_word(c).double_word(d)
    }

    /// Of `len` bytes of a packet, from the offset `from` on. `None`: they are not all there, or too many.
    #[inline(always)]
    pub fn of_bytes(packet: &Packet<'_>, from: usize, len: usize) -> Option<Self> {
        match sum_of(packet, from, len) {
            NO_SUM => None,
            sum => Some(Self(sum.into())),
        }
    }

    /// With the words of both.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The ones' complement sum. A checksum is its complement.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        fold(self.0)
    }
}

/// No sum: bytes are missing.
const NO_SUM: u32 = u32::MAX;

/// Bytes that are summed at most.
const LONGEST: usize = 1280;

/// A call, and the sum is folded: so the verifier recognizes what comes after it, and does not follow it for each turn of the loop.
#[inline(never)]
fn sum_of(packet: &Packet<'_>, from: usize, len: usize) -> u32 {
    // Hidden from the compiler, which knows the bounds from the callers and would not compare: the verifier has to see them.
    let len = opaque(len as u64) as usize;
    if len > LONGEST {
        return NO_SUM;
    }
    let (mut sum, mut at, end) = (0, from, from + (len & !3));
    for _ in rolled(LONGEST as u32 / 4) {
        if at >= end {
            break;
        }
        let Some(words) = packet.header::<[u8; 4]>(at) else { return NO_SUM };
        sum += u64::from(load32(words));
        at += 4;
    }
    // Anew: of `end`, which was compared in each turn, Linux 6.1 thinks contradictory things.
    let rest = from + (opaque(len as u64) as usize & !3);
    if len & 2 != 0 {
        let Some(word) = packet.header::<[u8; 2]>(rest) else { return NO_SUM };
        sum += u64::from(load16(word));
    }
    if len & 1 != 0 {
        let Some([last]) = packet.header::<[u8; 1]>(rest + (len & 2)) else { return NO_SUM };
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    fold(sum).into()
}

#[inline(always)]
const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
