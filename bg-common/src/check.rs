//! Health checks that go to a virtual address at a backend: the maps of the programs that `bgctl serve` loads for them.

use crate::{Addr, Be16};
use bytemuck::{Pod, Zeroable};

/// The key of a check that leaves by the device: the five-tuple of its connection there, without the addresses, which are always the device's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct CheckKey {
    /// Source and destination port as the four bytes stand on the wire.
    pub ports: u32,
    /// [`crate::Family`] of the packet.
    pub family: u32,
}

crate::assert_layout!(CheckKey, size 8, align 4, ports at 0, family at 4);

/// What becomes of the packets of a check.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CheckWay {
    /// The virtual address: destination of the packet.
    pub vip: Addr,
    /// This host's address: source of the packet.
    pub client: Addr,
    /// Source address of the outer header.
    pub outer_source: Addr,
    /// Address of the backend.
    pub backend: Addr,
    /// Address of the next hop on the way to it.
    pub next_hop: Addr,
    /// The interface by which the packets leave.
    pub ifindex: u32,
    /// What spreads checks over a network, as a flow's hash does.
    pub hash: u32,
    /// Destination port of GUE.
    pub gue_port: Be16,
    /// [`crate::Mode`] of the service.
    pub mode: u8,
    /// [`crate::Family`] of the backend.
    pub family: u8,
    /// [`crate::Family`] of the next hop.
    pub next_hop_family: u8,
    /// Zeros.
    pub reserved: [u8; 3],
}

crate::assert_layout!(CheckWay, size 96, align 8, vip at 0, client at 16, outer_source at 32, backend at 48, next_hop at 64, ifindex at 80, hash at 84, gue_port at 88, mode at 90, family at 91, next_hop_family at 92, reserved at 93);

/// The key of a reply to a check.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct CheckReplyKey {
    /// The virtual address: source of the packet.
    pub vip: Addr,
    /// This host's address: destination of the packet.
    pub client: Addr,
    /// Source and destination port as the four bytes stand on the wire.
    pub ports: u32,
    /// [`crate::Family`] of the packet.
    pub family: u32,
}

crate::assert_layout!(CheckReplyKey, size 40, align 4, vip at 0, client at 16, ports at 32, family at 36);

/// The device by which checks leave, and replies to them come back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CheckDevice {
    /// Its own address, by IPv4 and by IPv6.
    pub own: [Addr; 2],
    /// The address that stands for all virtual addresses there.
    pub peer: [Addr; 2],
    /// Its interface index.
    pub ifindex: u32,
}

crate::assert_layout!(CheckDevice, size 68, align 4, own at 0, peer at 32, ifindex at 64);
