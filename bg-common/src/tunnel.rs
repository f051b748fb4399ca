//! How packets to a backend are encapsulated.

use crate::{Addr, Be16};
use bytemuck::{Pod, Zeroable};

/// The UDP port that GUE is received at by default (RFC draft-ietf-intarea-gue, IANA).
pub const GUE_PORT: u16 = 6080;

/// A row of the `tunnels` array, by the backend's slot: the outer header of packets to it. Only backends in the modes `ipip` and `gue`
/// have one.
///
/// User space changes it while packets use it. A packet that meets a mixture of an old and a new address bears a source that nobody has, and
/// is lost at worst.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tunnel {
    /// Source address, of the backend's family. Zero: none is known, and packets are dropped.
    pub source: Addr,
    /// The bits of the address's last word (of IPv4 its only one) that each flow's hash sets, so that networks and receive queues spread
    /// flows: in network order. They are zero in `source`.
    pub spread: u32,
    /// Destination port of the UDP header, if there is one.
    pub port: Be16,
    /// Always zero.
    pub reserved: u16,
}

crate::assert_layout!(Tunnel, size 24, align 8, source at 0, spread at 16, port at 20, reserved at 22);
