//! Held packets: packets that would open a flow of a frozen deployment, kept until it is thawed.
//!
//! A deployment's row of `holds` is its queue, and `held` is one log for all queues. A packet asks for a place in the queue by
//! an atomic addition to [`Hold::claims`], which also tells whether the queue is open. If it is, an atomic addition to
//! the log's first word gives the packet room for its record. The record's first word is written last.
//!
//! A queue is closed by a compare-exchange that fails if another packet has asked for a place. So whoever plays the packets back
//! closes the queue only when it is empty, and no packet is overtaken by a later one of its flow.

use bytemuck::{Pod, Zeroable};

/// The bit of [`Hold::claims`] that is set while the queue is open.
pub const HOLD_OPEN: u64 = 1 << 63;

/// Bytes of the log. An array's value is at most 4 MiB on old kernels.
pub const HELD_LOG_BYTES: usize = 4 << 20;
/// Where the first record is. The words before it hold the number of bytes in use, from here on.
pub const HELD_LOG_START: usize = 64;
/// Bytes of the shortest frame that is held: an Ethernet header.
pub const MIN_HELD_FRAME: usize = 14;
/// Bytes of the longest frame that is held. Before Linux 6.18, a test run takes no frame that does not fit into a page.
pub const MAX_HELD_FRAME: usize = 3560;
/// The last place at which a record may begin, so that the longest one fits.
pub const LAST_HELD_RECORD: usize = HELD_LOG_BYTES - size_of::<HeldHeader>() - MAX_HELD_FRAME;
/// A `tc_index` (see `struct __sk_buff`) marks a copy for the mirror, plus the colour that it is for. [`Hold::mark`] is never one of these two.
pub const COPY_FOR: u16 = 0xb9c2;

/// The queue of a deployment: a row of `holds`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Hold {
    /// [`HOLD_OPEN`], and the number of packets that have asked for a place since the queue was opened.
    pub claims: u64,
    /// How many of them got no room in the log.
    pub lost: u64,
    /// Where in the log the queue begins.
    pub start: u64,
    /// Nonzero if packets are dropped rather than held.
    pub drops: u32,
    /// The `tc_index` of the packets that are played back, chosen at random each time; zero if none are. A packet keeps its index on its way into
    /// another network namespace, where another instance must not take it for one of its own.
    pub mark: u32,
}

/// The beginning of a record in the log, followed by the frame. Records are aligned to eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HeldHeader {
    /// Zero until the record is complete; see [`HeldState`].
    pub state: HeldState,
    /// When it was held, in nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// The interface that it came in by.
    pub ifindex: u32,
    /// The VLAN tag that is not among its bytes, as in `struct __sk_buff`; both zero if there is none.
    pub vlan_tci: u16,
    /// The protocol of that tag, in network byte order.
    pub vlan_protocol: u16,
}

/// What a record is: `progress:16 | deployment:16 | length:32`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HeldState(pub u64);

impl HeldState {
    const WAITS: u64 = 1;
    const DONE: u64 = 2;

    /// A frame of this length that waits to be played back.
    #[inline(always)]
    pub const fn waiting(deployment: u16, len: u32) -> Self {
        Self(Self::WAITS << 48 | (deployment as u64) << 32 | len as u64)
    }

    /// The same record when it has been played back, or could not be filled in.
    #[inline(always)]
    pub const fn done(self) -> Self {
        Self(self.0 & !(0xffff << 48) | Self::DONE << 48)
    }

    /// Whether the record is complete.
    pub const fn is_complete(self) -> bool {
        self.0 != 0
    }

    /// Whether the frame waits to be played back.
    pub const fn is_waiting(self) -> bool {
        self.0 >> 48 == Self::WAITS
    }

    /// Whether these values can be those of a record. Other ones are damaged.
    pub const fn is_sound(self) -> bool {
        matches!(self.0 >> 48, Self::WAITS | Self::DONE) && MIN_HELD_FRAME <= self.len() && self.len() <= MAX_HELD_FRAME
    }

    /// Index of the deployment.
    pub const fn deployment(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Bytes of the frame.
    #[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
    pub const fn len(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Bytes that a record takes in the log.
#[inline(always)]
pub const fn held_record_bytes(frame: usize) -> usize {
    size_of::<HeldHeader>() + ((frame + 7) & !7)
}

crate::assert_layout!(Hold, size 32, align 8, claims at 0, lost at 8, start at 16, drops at 24, mark at 28);
crate::assert_layout!(
    HeldHeader, size 24, align 8, state at 0, time at 8, ifindex at 16, vlan_tci at 20, vlan_protocol at 22
);
const _: () = assert!(LAST_HELD_RECORD.is_multiple_of(8) && HELD_LOG_START.is_multiple_of(8));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_told_from_the_memory_before_it() {
        assert!(!HeldState::default().is_complete());
        let state = HeldState::waiting(0, 14);
        assert!(state.is_complete() && state.is_waiting());
        let state = HeldState::waiting(u16::MAX, MAX_HELD_FRAME as u32);
        assert_eq!((state.deployment(), state.len(), state.is_waiting()), (u16::MAX, MAX_HELD_FRAME, true));
        let done = state.done();
        assert_eq!((done.deployment(), done.len()), (state.deployment(), state.len()));
        assert!(done.is_complete() && !done.is_waiting());
        assert!(state.is_sound() && done.is_sound());
        for damaged in [0, 1, 3 << 48 | 60, HeldState::waiting(0, 13).0, HeldState::waiting(0, 3561).0] {
            assert!(!HeldState(damaged).is_sound(), "{damaged:x}");
        }
    }

    #[test]
    fn the_longest_record_ends_with_the_log() {
        assert_eq!(LAST_HELD_RECORD + held_record_bytes(MAX_HELD_FRAME), HELD_LOG_BYTES);
    }
}
