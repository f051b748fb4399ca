//! Incremental update of internet checksums (RFC 1624, equation 3).
//!
//! Words are summed as they stand in memory: the ones' complement sum does not care about byte
//! order as long as all its words share one (RFC 1071, section 2).

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

#[inline(always)]
const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
