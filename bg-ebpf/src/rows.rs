//! Rows of `vips`, `backends` and `next_hops`, which user space and other CPUs change while they are read.
//!
//! They are never borrowed. Each field is read or written by one volatile access, and each is one of which any
//! mixture of old and new is harmless; `bg-common` says why where it declares them.

use crate::{
    flow::memory::{RawWords, Words as _},
    wire::headers::IpVersion,
};
use bg_common::{Addr, Backend, Be16, Family, FlowBackend, Identity, NextHop, Protocol, ServiceKey, Tunnel, Vip};

macro_rules! read {
    ($row:expr, $($field:tt)+) => {
        // SAFETY: the world hands out pointers to whole rows that live as long as the program runs;
        // the type of each field is valid for any bytes.
        unsafe { (&raw const (*$row).$($field)+).read_volatile() }
    };
}

macro_rules! half {
    ($row:expr, $($address:ident).+, $nth:expr) => {
        // SAFETY: as above; an address begins at a multiple of eight bytes, and `IpVersion` asks for its two halves.
        unsafe { (&raw const (*$row).$($address).+).cast::<u64>().wrapping_add($nth).read_volatile() }
    };
}

/// Port, protocol and family, as both kinds of rows hold them side by side.
#[inline(always)]
const fn endpoint<V: IpVersion>(port: Be16, protocol: Protocol) -> u32 {
    port.0 as u32 | (protocol as u32) << 16 | (V::FAMILY as u32) << 24
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Vip, key) % 8 == 0 && offset_of!(ServiceKey, addr) % 8 == 0 && align_of::<Vip>() == 8);
    assert!(offset_of!(Backend, addr) % 8 == 0 && align_of::<Backend>() == 8);
    assert!(offset_of!(ServiceKey, protocol) == offset_of!(ServiceKey, port) + 2);
    assert!(offset_of!(ServiceKey, family) == offset_of!(ServiceKey, port) + 3);
    assert!(offset_of!(Backend, protocol) == offset_of!(Backend, port) + 2);
    assert!(offset_of!(Backend, family) == offset_of!(Backend, port) + 3);
};

/// A row of `vips`.
#[derive(Clone, Copy)]
pub struct VipRef(pub *const Vip);

impl VipRef {
    /// Whether it is this address, port and protocol.
    #[inline(always)]
    pub fn is_at<V: IpVersion>(self, address: V::Address, port: Be16, protocol: Protocol) -> bool {
        // SAFETY: four bytes of a row that lives as long as the program runs: port, protocol and family.
        let rest = unsafe { (&raw const (*self.0).key.port).cast::<u32>().read_volatile() };
        rest == endpoint::<V>(port, protocol) && address == V::of_halves(|nth| half!(self.0, key.addr, nth))
    }

    /// Whether another row holds the same address, port and protocol.
    #[inline(always)]
    pub fn has_key_of(self, other: Self) -> bool {
        let word = |row: Self, word: usize| {
            // SAFETY: five words of a row that lives as long as the program runs.
            unsafe { (&raw const (*row.0).key).cast::<u32>().add(word).read_volatile() }
        };
        const { assert!(size_of::<ServiceKey>() == 5 * 4) };
        (0..5).fold(0, |difference, nth| difference | (word(self, nth) ^ word(other, nth))) == 0
    }

    /// The whole address.
    #[inline(always)]
    pub fn key(self) -> ServiceKey {
        read!(self.0, key)
    }

    /// Address.
    #[inline(always)]
    pub fn address<V: IpVersion>(self) -> V::Address {
        V::of_halves(|nth| half!(self.0, key.addr, nth))
    }

    /// Port.
    #[inline(always)]
    pub fn port(self) -> Be16 {
        read!(self.0, key.port)
    }

    /// Whether there is no address in this row.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        read!(self.0, key.family) == 0
    }

    /// See [`Vip::salt`].
    #[inline(always)]
    pub fn salt(self) -> u16 {
        read!(self.0, salt)
    }

    /// See [`Vip::is_mirrored`].
    #[inline(always)]
    pub fn is_mirrored(self) -> bool {
        read!(self.0, is_mirrored) != 0
    }

    /// See [`Vip::next`].
    #[inline(always)]
    pub fn next(self) -> u32 {
        read!(self.0, next)
    }
}

/// A row of `backends`.
#[derive(Clone, Copy)]
pub struct BackendRef(pub *mut Backend);

impl BackendRef {
    /// Whose slot it is. One load: both halves change at once.
    #[inline(always)]
    pub fn identity(self) -> Identity {
        // SAFETY: an aligned field of eight bytes, of a row that lives as long as the program runs.
        let word = unsafe { (&raw const (*self.0).identity).cast::<u64>().read_volatile() };
        Identity { epoch: word as u32, in_use: (word >> 32) as u32 }
    }

    /// Whether the slot still holds this backend.
    #[inline(always)]
    pub fn is(self, backend: FlowBackend) -> bool {
        backend.is(self.identity())
    }

    /// Whether it is this address, port and protocol.
    #[inline(always)]
    pub fn is_at<V: IpVersion>(self, address: V::Address, port: Be16, protocol: Protocol) -> bool {
        // SAFETY: four bytes of a row that lives as long as the program runs: port, protocol and family.
        let rest = unsafe { (&raw const (*self.0).port).cast::<u32>().read_volatile() };
        rest == endpoint::<V>(port, protocol) && address == V::of_halves(|nth| half!(self.0, addr, nth))
    }

    /// Address.
    #[inline(always)]
    pub fn address<V: IpVersion>(self) -> V::Address {
        // SAFETY: a field of a row that lives as long as the program runs. No such field changes while a flow refers
        // to the row, and a flow that does not would be over.
        V::of_halves(|nth| half!(self.0, addr, nth))
    }

    /// Address, as maps keep it.
    #[inline(always)]
    pub fn whole_address(self) -> Addr {
        read!(self.0, addr)
    }

    /// Port.
    #[inline(always)]
    pub fn port(self) -> Be16 {
        read!(self.0, port)
    }

    /// [`bg_common::Family`], as a number.
    #[inline(always)]
    pub fn family(self) -> u8 {
        read!(self.0, family)
    }

    /// [`bg_common::Mode`], as a number.
    #[inline(always)]
    pub fn mode(self) -> u8 {
        read!(self.0, mode)
    }

    /// Index of the service that it serves.
    #[inline(always)]
    pub fn service(self) -> u16 {
        read!(self.0, service)
    }

    /// Index of that service's deployment.
    #[inline(always)]
    pub fn deployment(self) -> u16 {
        read!(self.0, deployment)
    }

    /// Colour that it belongs to, as a number.
    #[inline(always)]
    pub fn colour(self) -> u8 {
        read!(self.0, colour)
    }

    /// See [`Vip::salt`].
    #[inline(always)]
    pub fn salt(self) -> u16 {
        read!(self.0, salt)
    }

    /// See [`Backend::next`].
    #[inline(always)]
    pub fn next(self) -> u32 {
        read!(self.0, next)
    }

    /// Next hop towards it.
    #[inline(always)]
    pub fn next_hop(self) -> HopCache {
        // SAFETY: three words of a row that lives as long as the program runs.
        HopCache(unsafe { RawWords::new((&raw mut (*self.0).next_hop).cast()) })
    }
}

/// A row of `tunnels`.
#[derive(Clone, Copy)]
pub struct TunnelRef(pub *const Tunnel);

impl TunnelRef {
    /// The source address of a flow's outer headers.
    #[inline(always)]
    pub fn source(self, family: u8, hash: u32) -> Addr {
        let Addr([a, b, c, d]) = read!(self.0, source);
        let spread = hash.to_be() & read!(self.0, spread);
        if family == Family::V6 as u8 { Addr([a, b, c, d | spread]) } else { Addr([a | spread, b, c, d]) }
    }

    /// Destination port of the UDP header.
    #[inline(always)]
    pub fn port(self) -> Be16 {
        read!(self.0, port)
    }
}

/// A cached next hop, in a backend's row or in `next_hops`; see [`NextHop`] for why it needs no lock.
#[derive(Clone, Copy)]
pub struct HopCache(pub RawWords);

impl HopCache {
    /// What is cached.
    #[inline(always)]
    pub fn read(self) -> NextHop {
        let times = self.0.load(2);
        NextHop {
            ifindex_and_dmac: self.0.load(0),
            mtu_and_smac: self.0.load(1),
            learned: times as u32,
            asked: (times >> 32) as u32,
        }
    }

    /// Caches a look-up.
    #[inline(always)]
    pub fn write(self, hop: NextHop) {
        self.0.store(0, hop.ifindex_and_dmac);
        self.0.store(1, hop.mtu_and_smac);
        self.write_times(hop);
    }

    /// Caches when it was looked up and asked. Another CPU may do the same at the same time: then one of two recent
    /// ticks is lost, and the next packet looks again.
    #[inline(always)]
    pub fn write_times(self, hop: NextHop) {
        self.0.store(2, u64::from(hop.learned) | u64::from(hop.asked) << 32);
    }
}
