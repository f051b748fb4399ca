//! Instants at which a live word changes by itself.

use crate::LiveWord;
use bytemuck::{Pod, Zeroable};

/// The clock of an instant.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockId {
    /// `CLOCK_BOOTTIME`. Nobody can set it, so it measures durations.
    Boot = 0,
    /// `CLOCK_TAI`. It follows the wall clock, without leap seconds. Programs can read it since Linux 6.1.
    Tai = 1,
}

impl ClockId {
    /// The clock with this number in the maps.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        if n == Self::Tai as u8 { Self::Tai } else { Self::Boot }
    }
}

/// What has made a generation.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// An apply, or a program that writes no timing.
    #[default]
    Unknown = 0,
    /// A switch.
    Switch = 1,
    /// A rollback.
    Rollback = 2,
    /// A share of new flows was set.
    Split = 3,
    /// A scheduled switch or a ramp was cancelled.
    Cancelled = 4,
    /// The deadline for a confirmation has passed.
    Expired = 5,
    /// A condition has taken the switch back: [`Timing::conditions`].
    Tripped = 6,
}

impl Cause {
    /// The cause with this number in the maps.
    pub const fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Switch,
            2 => Self::Rollback,
            3 => Self::Split,
            4 => Self::Cancelled,
            5 => Self::Expired,
            6 => Self::Tripped,
            _ => Self::Unknown,
        }
    }
}

/// When a generation takes effect, and when it is taken back. Like [`SwitchTerms`](crate::SwitchTerms), two per deployment, chosen by
/// the generation's parity. Programs read the instants if [`LiveFlags::TIMED`](crate::LiveFlags::TIMED) is set.
///
/// All instants and durations are nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Timing {
    /// When the word takes effect, by `clock`; zero if it has taken effect. Until then `before` is in force.
    pub activate_at: u64,
    /// The word of the generation before. Its terms stand in the other slot.
    pub before: LiveWord,
    /// If not zero, the share moves linearly from that of `before` to the word's own in this time from `activate_at` on, and the word takes effect at the end.
    pub ramp: u64,
    /// The time for a confirmation, from the moment when the word takes effect. Zero: none is needed.
    pub window: u64,
    /// When the word is taken back, by [`ClockId::Boot`]; zero is never.
    pub revert_at: u64,
    /// Until when new flows are held, by [`ClockId::Boot`]. Read if [`LiveFlags::HOLD`](crate::LiveFlags::HOLD) is set, also by
    /// packets that go by `before`: a freeze writes it to both slots.
    pub hold_until: u64,
    /// When the generation was made, by [`ClockId::Boot`].
    pub made_at: u64,
    /// The generation. If it is not the word's, the word was changed by a program that writes no timing, and nothing here is about it.
    pub generation: u32,
    /// Ticks that a drain may last; zero is without end. A drain that packets begin uses it.
    pub drain_timeout: u32,
    /// What happens to open flows when the word takes effect or is taken back: 0 drain, 1 cut.
    pub on_switch: u8,
    /// [`ClockId`] of `activate_at`.
    pub clock: u8,
    /// [`Cause`].
    pub cause: u8,
    /// [`Conditions`](crate::Conditions) that take the word back while it is timed; those that have, if that is the cause.
    pub conditions: u8,
    /// What was kept when this generation was made, so that it outlives ties, cancelled ramps and what is taken back. The first byte is the colour: 0 unknown,
    /// 1 blue, 2 green. The second is the last change then: 1 of the share, 2 of the colour, 3 back. The third is 1 if the other colour was kept before, and
    /// nothing has gone back from it since. The last is 1 if this generation itself changes nothing about the others. The data path reads none of them.
    pub kept: [u8; 4],
}

crate::assert_layout!(
    Timing, size 72, align 8,
    activate_at at 0, before at 8, ramp at 16, window at 24, revert_at at 32, hold_until at 40, made_at at 48,
    generation at 56, drain_timeout at 60, on_switch at 64, clock at 65, cause at 66, conditions at 67, kept at 68
);
