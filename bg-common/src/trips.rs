//! Conditions that take a switch back, and what packets count for them.

use bytemuck::{Pod, Zeroable};

const RING: u32 = 32;

/// A set of conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions(pub u8);

impl Conditions {
    /// No condition.
    pub const NONE: Self = Self(0);
    /// Too many new flows were answered with a reset.
    pub const RESETS: Self = Self(0b001);
    /// Too many new flows had no answer after a second.
    pub const UNANSWERED: Self = Self(0b010);
    /// Flows were opened, and no new flow was answered for too long.
    pub const SILENCE: Self = Self(0b100);

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all conditions of `other` are among these.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The union of both sets.
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A share of flows that is too much.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Limit {
    /// Basis points. The condition holds if the share is greater.
    pub share: u32,
    /// The least number of flows of which it may be a share. Zero: this is no condition.
    pub least: u32,
}

/// The conditions that take a generation back, and its counters. Like [`Timing`](crate::Timing), two per deployment, chosen by the
/// generation's parity.
///
/// What is counted are the flows that a SYN or a first datagram has opened on the generation's colour, since its switch or ramp has begun, but
/// for those that are confined to the idle colour.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Trips {
    /// The generation. If it is another one, nothing here is about it.
    pub generation: u32,
    /// Ticks in a second, rounded up.
    pub second: u16,
    /// The colour that the generation switches to.
    pub colour: u16,
    /// The share of flows whose first answer was a reset, of all.
    pub resets: Limit,
    /// The share of flows that had no answer for a second, of those that are older or were sent again.
    pub unanswered: Limit,
    /// Nanoseconds; zero: this is no condition.
    pub silence: u64,
    /// Until when nobody judges, by [`ClockId::Boot`](crate::ClockId::Boot): the word was replaced a moment ago, or a command is about to replace it.
    pub paused_until: u64,
    /// Flows opened.
    pub opened: u64,
    /// Flows whose first answer was a reset.
    pub reset: u64,
    /// Flows that were judged: older than a second, or sent again.
    pub judged: u64,
    /// Those of them that had no answer then.
    pub missing: u64,
    /// Flows opened since an answer was heard last.
    pub opened_since_heard: u64,
    /// When one was heard last, or, if that is later, the first of these flows was opened; by [`ClockId::Boot`](crate::ClockId::Boot).
    pub heard_at: u64,
    /// The first tick whose flows are not among `judged` yet.
    pub unjudged_tick: u64,
    /// The flows of the ticks from there on that are not judged yet, by tick modulo [`Self::RING`]: all in the lower half, those without an answer in
    /// the upper one.
    pub young: [u64; RING as usize],
    /// When the generation has taken effect, by [`ClockId::Boot`](crate::ClockId::Boot), if it was scheduled; else zero.
    pub began_at: u64,
}

impl Trips {
    /// The number of ticks whose flows can be told apart. They last longer than a second at 1,000 timer ticks a second.
    pub const RING: u32 = RING;
    /// Flows that must have been opened since an answer was heard last, for silence to mean something.
    pub const LEAST_UNHEARD: u64 = 3;
    /// Nanoseconds after a change of the word in which nobody judges. Packets that have read the word before may still need its terms.
    pub const PAUSE: u64 = 10_000_000;

    /// Which conditions there are.
    pub const fn conditions(&self) -> Conditions {
        let mut conditions = Conditions::NONE;
        if self.resets.least != 0 {
            conditions = conditions.with(Conditions::RESETS);
        }
        if self.unanswered.least != 0 {
            conditions = conditions.with(Conditions::UNANSWERED);
        }
        if self.silence != 0 {
            conditions = conditions.with(Conditions::SILENCE);
        }
        conditions
    }
}

crate::assert_layout!(Limit, size 8, align 4, share at 0, least at 4);
crate::assert_layout!(
    Trips, size 360, align 8,
    generation at 0, second at 4, colour at 6, resets at 8, unanswered at 16, silence at 24, paused_until at 32, opened at 40, reset at 48,
    judged at 56, missing at 64, opened_since_heard at 72, heard_at at 80, unjudged_tick at 88, young at 96, began_at at 352
);
