//! Backends: the targets of flows, and their next hops.

use crate::{Addr, Be16, Protocol};
use bytemuck::{Pod, Zeroable};

/// How a packet reaches its backend.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Its destination address and port are rewritten, and it is sent to the backend's next hop.
    Nat = 0,
    /// The backend is an address of this host. The packet is rewritten and passed to the host's own stack.
    Local = 1,
    /// The service's packets go to a listener of `bgctl serve` on this host, one for each colour, whose row is that of a [`Local`](Self::Local)
    /// backend. It connects to the backends, whose rows have this mode. They are for user space alone: no table names them, and no packet finds them.
    Tee = 2,
    /// Only the MAC addresses change: the backend is a neighbour of this host, and has the virtual address itself. It replies to the client directly.
    L2dsr = 3,
    /// The packet is encapsulated in IP, and the backend unpacks it. It has the virtual address itself, and replies to the client directly.
    Ipip = 4,
    /// The same with UDP and GUE in between, for networks that distribute packets by ports.
    Gue = 5,
}

impl Mode {
    /// The mode with this number in a map, if there is one.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Nat),
            1 => Some(Self::Local),
            2 => Some(Self::Tee),
            3 => Some(Self::L2dsr),
            4 => Some(Self::Ipip),
            5 => Some(Self::Gue),
            _ => None,
        }
    }

    /// Whether the client's packets reach the backend as they are, so that its replies go straight to the client: this host sees one
    /// direction of the flow only.
    #[inline(always)]
    pub const fn is_direct(self) -> bool {
        self as u8 >= Self::L2dsr as u8
    }

    /// Whether packets are encapsulated.
    #[inline(always)]
    pub const fn is_tunnel(self) -> bool {
        self as u8 >= Self::Ipip as u8
    }
}

/// The identity of a slot: an epoch that distinguishes the successive backends of the slot,
/// and whether the slot is in use. It is one 64-bit word, so that it changes at once.
///
/// A flow holds the epoch of its backend. If the slot has another epoch, or is not in use,
/// the flow's backend is gone.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Identity {
    /// Grows by one each time the slot gets a backend.
    pub epoch: u32,
    /// 1 while the slot holds a backend, else 0.
    pub in_use: u32,
}

/// A cached next hop: egress interface and both MAC addresses.
///
/// The data path writes both words without a lock, on whichever CPU did the look-up. All
/// writers of a cache write it for the same destination. So if a reader gets one word of an
/// older and one of a newer look-up, it has at worst the source MAC of a path that was right a
/// moment ago. Interface and destination MAC, which decide where the frame goes, share a word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// Egress ifindex in the upper 16 bits, destination MAC in the lower 48 (its first byte lowest).
    /// Zero is unknown.
    pub ifindex_and_dmac: u64,
    /// Egress MTU in the upper 16 bits, source MAC in the lower 48.
    pub mtu_and_smac: u64,
    /// Tick of the look-up.
    pub learned: u32,
    /// Tick at which XDP last left a packet to tc. The redirect in tc shows the kernel that the neighbour is in use.
    pub asked: u32,
}

impl NextHop {
    /// Packs the result of a look-up. An interface whose index does not fit into 16 bits is not cached.
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

    /// No next hop: the host's stack has to route the packet, or is the destination.
    pub const NONE: Self = Self { ifindex_and_dmac: 0, mtu_and_smac: 0, learned: 0, asked: 0 };

    /// Whether it names an interface.
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

    /// The largest IP packet that the egress interface sends, in bytes.
    #[inline(always)]
    pub const fn mtu(self) -> u32 {
        (self.mtu_and_smac >> 48) as u32
    }

    /// Destination MAC: 48 bits, first byte lowest.
    #[inline(always)]
    pub const fn dmac(self) -> u64 {
        self.ifindex_and_dmac & 0xffff_ffff_ffff
    }

    /// Source MAC: 48 bits, first byte lowest.
    #[inline(always)]
    pub const fn smac(self) -> u64 {
        self.mtu_and_smac & 0xffff_ffff_ffff
    }
}

/// A row of the `backends` map, which is a cache line.
///
/// While a flow may refer to a row, only its [`NextHop`] cache changes. Removing a backend
/// ends its [`Identity`], and the slot is reused with the next epoch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// The identity of the slot.
    pub identity: Identity,
    /// Address of the backend.
    pub addr: Addr,
    /// Port of the backend.
    pub port: Be16,
    /// [`crate::Protocol`] of its service. With [`Backend::DIRECT`] if the backend replies to clients directly: no packet's source is taken for its
    /// address then.
    pub protocol: u8,
    /// [`crate::Family`].
    pub family: u8,
    /// Index of its service.
    pub service: u16,
    /// Its [`crate::Colour`].
    pub colour: u8,
    /// [`Mode`].
    pub mode: u8,
    /// Next hop towards it.
    pub next_hop: NextHop,
    /// The number of the next row with the same hash in `backend_index`, plus one. Zero ends the list. Rows of backends that reply to
    /// clients directly ([`Mode::is_direct`]) are in no list: there it is their own number, plus one.
    pub next: u32,
    /// Index of its service's deployment.
    pub deployment: u16,
    /// [`crate::Vip::salt`] of its service.
    pub salt: u16,
}

impl Backend {
    /// The flag in `protocol`.
    pub const DIRECT: u8 = 0x80;

    /// Protocol of its service.
    #[inline(always)]
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_u8(self.protocol & !Self::DIRECT)
    }

    /// Whether it replies to clients directly ([`Mode::is_direct`]).
    #[inline(always)]
    pub const fn is_direct(&self) -> bool {
        self.protocol & Self::DIRECT != 0
    }
}

/// A row of the `backend_info` array, by the backend's slot: what user space has to read back. The data path does not
/// read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendInfo {
    /// The weight of the backend, which determines its share of the colour's new flows.
    pub weight: u32,
    /// What is known of the backend's health. Bits 0 and 1: 0 unknown, 1 up, 2 down. Bit 8: if no backend of the colour
    /// may get new flows, none is sent to this one either. Bits 16 to 31: the part of its weight that a backend that has returned
    /// does without for the time being, in basis points.
    pub health: u32,
}

/// A row of `next_hops`: a next hop towards clients. It has a number, which a flow's row can name.
///
/// The CPU that claims the row writes the first word, and the second right after it. Neither changes later, so a
/// number always means the same interface, MAC addresses and MTU.
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
crate::assert_layout!(BackendInfo, size 8, align 4, weight at 0, health at 4);
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
