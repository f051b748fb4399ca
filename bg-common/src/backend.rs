//! Backends: where a flow is sent, and the next hop on the way there.

use crate::{Addr, Be16};
use bytemuck::{Pod, Zeroable};

/// How a packet reaches its backend.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Destination address and port rewritten, sent on to the backend's next hop.
    Nat = 0,
    /// The backend is an address of this host: rewritten and handed to the host's own stack.
    Local = 1,
}

impl Mode {
    /// The mode with this number in a map, if there is one.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Nat),
            1 => Some(Self::Local),
            _ => None,
        }
    }
}

/// Whose slot it is: an epoch that tells apart the backends which a slot held one after the other,
/// and whether it holds one now. One 64-bit word, so that it changes at once.
///
/// A flow remembers the epoch of its backend; a slot with another epoch, or none in use, means that
/// the flow's backend is gone.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Identity {
    /// Grows by one each time the slot is given to a backend.
    pub epoch: u32,
    /// 1 while the slot holds a backend, else 0.
    pub in_use: u32,
}

/// A cached next hop: egress interface and both MAC addresses.
///
/// Two words that the data path writes without a lock, from whichever CPU did the look-up. All
/// writers of one cache write it for the same destination, so a reader that meets one word of an
/// older and one of a newer look-up sees, at worst, the source MAC of a path that was right a
/// moment ago; interface and destination MAC, which decide where the frame goes, share a word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// Egress ifindex in the upper 16 bits, destination MAC in the lower 48 (its first octet lowest).
    /// Zero is unknown.
    pub ifindex_and_dmac: u64,
    /// Egress MTU in the upper 16 bits, source MAC in the lower 48.
    pub mtu_and_smac: u64,
    /// Tick of the look-up.
    pub learned: u32,
    /// Tick at which XDP last left a packet to tc, whose redirect shows the kernel that the neighbour is in use.
    pub asked: u32,
}

impl NextHop {
    /// Packs a look-up's result; an interface whose index does not fit into 16 bits is not cached.
    #[inline(always)]
    pub const fn pack(ifindex: u32, mtu: u32, dmac: u64, smac: u64, tick: u32) -> Self {
        let mtu = if mtu > 0xffff { 0xffff } else { mtu };
        if ifindex > 0xffff {
            return Self::NONE;
        }
        Self {
            ifindex_and_dmac: (ifindex as u64) << 48 | dmac,
            mtu_and_smac: (mtu as u64) << 48 | smac,
            learned: tick,
            asked: 0,
        }
    }

    /// Nowhere: the host's stack has to find the way, or is the destination.
    pub const NONE: Self = Self { ifindex_and_dmac: 0, mtu_and_smac: 0, learned: 0, asked: 0 };

    /// Whether it leads out of an interface.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.ifindex() != 0
    }

    /// Whether the neighbour's MAC address is known.
    #[inline(always)]
    pub const fn is_resolved(self) -> bool {
        self.dmac() != 0
    }

    /// Egress interface.
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        (self.ifindex_and_dmac >> 48) as u32
    }

    /// Largest IP packet that the egress interface takes, in bytes.
    #[inline(always)]
    pub const fn mtu(self) -> u32 {
        (self.mtu_and_smac >> 48) as u32
    }

    /// Destination MAC: 48 bits, first octet lowest.
    #[inline(always)]
    pub const fn dmac(self) -> u64 {
        self.ifindex_and_dmac & 0xffff_ffff_ffff
    }

    /// Source MAC: 48 bits, first octet lowest.
    #[inline(always)]
    pub const fn smac(self) -> u64 {
        self.mtu_and_smac & 0xffff_ffff_ffff
    }
}

/// One row of the `backends` map, a cache line.
///
/// A row is never changed while a flow may refer to it, but for its [`NextHop`] cache: a backend
/// that is removed ends its [`Identity`], and the slot is given away with the next epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// Whose slot it is.
    pub identity: Identity,
    /// Address of the backend.
    pub addr: Addr,
    /// Port of the backend.
    pub port: Be16,
    /// [`crate::Protocol`] of its service.
    pub protocol: u8,
    /// [`crate::Family`].
    pub family: u8,
    /// Index of the service it serves.
    pub service: u16,
    /// [`crate::Colour`] it belongs to.
    pub colour: u8,
    /// [`Mode`].
    pub mode: u8,
    /// Next hop towards it.
    pub next_hop: NextHop,
    /// The next row with the same hash in `backend_index`, plus one; zero ends the list.
    pub next: u32,
    /// Index of its service's deployment.
    pub deployment: u16,
    /// [`crate::Vip::salt`] of its service.
    pub salt: u16,
}

/// What user space must find again of a backend: a row of the `backend_info` array, at its slot. The data path does not
/// read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendInfo {
    /// Weight of its share of the colour's new flows.
    pub weight: u32,
    /// Always zero.
    pub reserved: u32,
}

/// A row of `next_hops`: where clients' packets go, numbered so that a flow's entry can name it.
///
/// The first word is written once, by whoever claims the row, and the second right after it. Neither changes later: a
/// number means the same interface, MAC addresses and MTU for ever.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NumberedHop {
    /// As in [`NextHop`]; zero is free.
    pub ifindex_and_dmac: u64,
    /// As in [`NextHop`].
    pub mtu_and_smac: u64,
    /// Always zero.
    pub reserved: u32,
    /// As in [`NextHop`].
    pub asked: u32,
}

crate::assert_layout!(Identity, size 8, align 8, epoch at 0, in_use at 4);
crate::assert_layout!(NextHop, size 24, align 8, ifindex_and_dmac at 0, mtu_and_smac at 8, learned at 16, asked at 20);
crate::assert_layout!(
    Backend, size 64, align 8,
    identity at 0, addr at 8, port at 24, protocol at 26, family at 27, service at 28, colour at 30, mode at 31,
    next_hop at 32, next at 56, deployment at 60, salt at 62
);
crate::assert_layout!(BackendInfo, size 8, align 4, weight at 0, reserved at 4);
crate::assert_layout!(
    NumberedHop, size 24, align 8,
    ifindex_and_dmac at 0, mtu_and_smac at 8, reserved at 16, asked at 20
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_survives_packing() {
        let (dmac, smac) = (0x0605_0403_0201, 0xffff_ffff_ffff);
        let hop = NextHop::pack(7, 1500, dmac, smac, 99);
        assert_eq!((hop.ifindex(), hop.mtu(), hop.dmac(), hop.smac(), hop.learned), (7, 1500, dmac, smac, 99));
        assert_eq!(NextHop::pack(1, 70_000, dmac, smac, 0).mtu(), 0xffff);
        assert_eq!(NextHop::pack(65_536, 1500, dmac, smac, 99), NextHop::default());
    }
}
