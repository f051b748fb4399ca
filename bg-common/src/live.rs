//! The live word: an aligned 64-bit word for each deployment, which says to which colour new flows go.
//!
//! ```text
//! bit  63            32 31   28 27            14 13             0
//!      | generation:32 | flags:4 | previous_share:14 | target_share:14 |
//! ```
//!
//! A share is the part of new flows that goes to green, in basis points: 0 is all to blue,
//! [`FULL_SHARE`] all to green. A switch is one compare-exchange of this word. A packet reads the word
//! once, and everything that is decided for the packet follows from this reading.
//!
//! The rest is kept in [`SwitchTerms`] and [`Timing`](crate::Timing), two of each per deployment. Those of a generation
//! are written *before* the word is published, into the slot of the generation's parity. So a
//! packet that has read the word finds them there.

use bytemuck::{Pod, Zeroable};

/// The share at which all new flows go to green, in basis points.
pub const FULL_SHARE: u16 = 10_000;

/// One of the two environments.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Colour {
    /// The first environment, with index 0 wherever colours are indexes.
    Blue = 0,
    /// The second environment, with index 1.
    Green = 1,
}

impl Colour {
    /// Both colours, in the order of their indexes.
    pub const ALL: [Self; 2] = [Self::Blue, Self::Green];

    /// The other colour.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }

    /// The colour with this number in the maps: zero is blue, everything else green.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        if n == 0 { Self::Blue } else { Self::Green }
    }

    /// `"blue"` or `"green"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }

    /// The share of new flows that makes this colour the only live one.
    #[inline(always)]
    pub const fn full_share(self) -> u16 {
        match self {
            Self::Blue => 0,
            Self::Green => FULL_SHARE,
        }
    }
}

/// The flags of a live word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveFlags(pub u8);

impl LiveFlags {
    /// No flag. No switch concerns open flows, and their packets read no terms.
    pub const NONE: Self = Self(0);
    /// The word changes by itself: [`Timing`](crate::Timing) says when.
    pub const TIMED: Self = Self(0b0001);
    /// The deployment is frozen: packets that would open a flow are held, until [`Timing::hold_until`](crate::Timing::hold_until).
    pub const HOLD: Self = Self(0b0010);
    /// Flows of the idle colour may still be open. A TCP connection without a row may be one of them, and
    /// [`SwitchTerms::drain_deadline`] applies.
    pub const DRAINING: Self = Self(0b0100);
    /// [`SwitchTerms::ended_before`] applies.
    pub const CUT: Self = Self(0b1000);

    /// Whether all flags of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The union of both sets of flags.
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags without those of `other`.
    #[inline(always)]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The live word. Zero means that there is no deployment.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LiveWord(pub u64);

impl LiveWord {
    const SHARE_BITS: u32 = 14;
    const SHARE_MASK: u64 = (1 << Self::SHARE_BITS) - 1;

    /// Builds a word. Shares are basis points of new flows that go to green, at most [`FULL_SHARE`].
    pub const fn new(generation: u32, flags: LiveFlags, previous_share: u16, target_share: u16) -> Self {
        debug_assert!(previous_share <= FULL_SHARE && target_share <= FULL_SHARE && flags.0 < 16);
        Self(
            (generation as u64) << 32
                | (flags.0 as u64) << (2 * Self::SHARE_BITS)
                | (previous_share as u64) << Self::SHARE_BITS
                | target_share as u64,
        )
    }

    /// The number of changes of the deployment's live state so far. The first apply creates generation 1.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The four flag bits.
    #[inline(always)]
    pub const fn flags(self) -> LiveFlags {
        LiveFlags((self.0 >> (2 * Self::SHARE_BITS)) as u8 & 0xf)
    }

    /// The basis points of new flows that went to green before the last change.
    #[inline(always)]
    pub const fn previous_share(self) -> u16 {
        (self.0 >> Self::SHARE_BITS & Self::SHARE_MASK) as u16
    }

    /// The basis points of new flows that go to green.
    #[inline(always)]
    pub const fn target_share(self) -> u16 {
        (self.0 & Self::SHARE_MASK) as u16
    }

    /// The colour to which most new flows go.
    #[inline(always)]
    pub const fn live(self) -> Colour {
        Self::majority(self.target_share())
    }

    /// The colour to which most new flows went before the last change.
    #[inline(always)]
    pub const fn previous(self) -> Colour {
        Self::majority(self.previous_share())
    }

    /// The same word with other flags.
    #[inline(always)]
    pub const fn with_flags(self, flags: LiveFlags) -> Self {
        let mask = 0xf << (2 * Self::SHARE_BITS);
        Self(self.0 & !mask | (flags.0 as u64) << (2 * Self::SHARE_BITS))
    }

    /// The same word with another share of new flows that go to green, in basis points.
    #[inline(always)]
    pub const fn with_target_share(self, share: u16) -> Self {
        Self(self.0 & !Self::SHARE_MASK | share as u64 & Self::SHARE_MASK)
    }

    /// The index of the [`SwitchTerms`] that belong to this word.
    #[inline(always)]
    pub const fn terms_slot(self) -> usize {
        (self.generation() & 1) as usize
    }

    #[inline(always)]
    const fn majority(share: u16) -> Colour {
        if share > FULL_SHARE / 2 { Colour::Green } else { Colour::Blue }
    }
}

/// What a generation means for open flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SwitchTerms {
    /// For each colour, the generation before which flows have ended. Read if
    /// [`LiveFlags::CUT`] is set. Later generations keep it.
    pub ended_before: [u32; 2],
    /// The tick after which flows of the idle colour that were opened before this generation have
    /// ended; zero is never. Read if [`LiveFlags::DRAINING`] is set.
    pub drain_deadline: u32,
    /// Tick at which the drain began; zero if that is unknown. A drain ends before its deadline if no flow is left, but lasts for a
    /// minute at least; if this is zero, it ends by the deadline only. The data path does not read it.
    pub drain_began: u32,
}

crate::assert_layout!(LiveWord, size 8, align 8);
crate::assert_layout!(SwitchTerms, size 16, align 4, ended_before at 0, drain_deadline at 8, drain_began at 12);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_has_the_documented_bits() {
        let word = LiveWord::new(0x0102_0304, LiveFlags(0b1010), 10_000, 1);
        assert_eq!(word.0, 0x0102_0304 << 32 | 0b1010 << 28 | 10_000 << 14 | 1);
        assert_eq!(word.generation(), 0x0102_0304);
        assert_eq!(word.flags(), LiveFlags(0b1010));
        assert_eq!(word.previous_share(), 10_000);
        assert_eq!(word.target_share(), 1);
    }

    #[test]
    fn no_field_spills_into_its_neighbour() {
        let word = LiveWord::new(u32::MAX, LiveFlags(15), FULL_SHARE, FULL_SHARE);
        assert_eq!((word.generation(), word.flags().0), (u32::MAX, 15));
        assert_eq!((word.previous_share(), word.target_share()), (FULL_SHARE, FULL_SHARE));
        assert_eq!(word.with_flags(LiveFlags(5)), LiveWord::new(u32::MAX, LiveFlags(5), FULL_SHARE, FULL_SHARE));
        let word = LiveWord::new(0, LiveFlags(0), FULL_SHARE, 0);
        assert_eq!((word.previous(), word.live()), (Colour::Green, Colour::Blue));
    }

    #[test]
    fn neighbouring_generations_use_different_terms() {
        let slot = |generation| LiveWord::new(generation, LiveFlags::NONE, 0, 0).terms_slot();
        assert_ne!(slot(7), slot(8));
        assert_eq!(slot(7), slot(9));
    }
}
