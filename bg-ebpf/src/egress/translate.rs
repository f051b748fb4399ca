//! Carrying out a decision on an ICMP error: its end that the two networks know by different addresses is replaced in the packet
//! that it quotes, and in the error's own header.
//!
//! All checksums follow by RFC 1624 arithmetic, from values that were read before the first change. An error's checksums are
//! always finished, whoever has sent it. That of the quoted packet may not be, if its sender left it to a network card; nobody
//! checks it.

use super::rewrite::{End, Writer};
use crate::wire::{
    checksum::Delta,
    ethernet,
    headers::{IpVersion, V4, V6},
    icmp::{self, IcmpError},
};
use bg_common::{Addr, Be16, Family, NextHop, Protocol};
use core::mem::offset_of;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

/// What to replace in an error, and where: one end of the quoted packet. In the error's own header it is the other end's
/// address, if that is the same one. The destination of an error is the source of the packet that it quotes, and the
/// machine that a packet was sent to may be the one that complains of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Translation {
    /// New address.
    pub address: Addr,
    /// What a checksum sees of the change of address.
    address_change: Delta,
    /// The same with that of the port.
    change: Delta,
    /// New port.
    pub port: Be16,
    /// Offset of the quoted address in the frame.
    quoted_at: u8,
    /// Offset of the quoted port in the frame.
    port_at: u8,
    /// Offset of the error's own address in the frame; zero if that stays.
    own_at: u8,
}

impl Translation {
    /// Of an end of the quoted packet.
    #[inline(always)]
    pub fn new<V: IpVersion>(error: &IcmpError, end: End, address: Addr, port: Be16) -> Self {
        let (old, old_port, other, is_own) = match end {
            End::Source => (&error.src, error.src_port, End::Destination, true),
            End::Destination => (&error.dst, error.dst_port, End::Source, error.is_from_dst != 0),
        };
        let offset = |end: End| match V::FAMILY {
            Family::V4 => end.v4_offset() as u8,
            Family::V6 => end.v6_offset() as u8,
        };
        let address_change = replaced(old, &address);
        Self {
            address,
            address_change,
            change: address_change.word(old_port.0, port.0),
            port,
            quoted_at: error.quoted_l3 + offset(end),
            port_at: error.quoted_l4 + end.port_offset() as u8,
            own_at: if is_own { error.l3 + offset(other) } else { 0 },
        }
    }
}

/// Replaces what the translation names, with all checksums that cover it. `None`: the packet could not be written and must not
/// be sent. With a next hop the MAC addresses are replaced, too, and the hop limit is counted down.
#[inline(always)]
pub fn translate(
    family: Family,
    error: &IcmpError,
    new: &Translation,
    hop: NextHop,
    writer: &mut impl Writer,
) -> Option<()> {
    // What has changed of the bytes that the ICMP checksum covers.
    let mut covered = new.change;
    let is_v4 = family == Family::V4;

    put_address(family, new.quoted_at.into(), &new.address, writer)?;
    writer.put16(new.port_at.into(), new.port.0)?;
    if is_v4 {
        let check = new.address_change.apply(error.quoted_ip_checksum);
        covered = covered.word(error.quoted_ip_checksum, check);
        writer.put16(usize::from(error.quoted_l3) + offset_of!(Ipv4Hdr, check), check)?;
    }
    if error.transport_checksum_at != 0 {
        let mut check = new.change.apply(error.transport_checksum);
        if error.protocol == Protocol::Udp as u8 && check == 0 {
            check = 0xffff;
        }
        covered = covered.word(error.transport_checksum, check);
        writer.put16(error.transport_checksum_at.into(), check)?;
    }

    let mut own_header = Delta::NONE;
    if new.own_at != 0 {
        own_header = new.address_change;
        put_address(family, new.own_at.into(), &new.address, writer)?;
    }
    let l3 = usize::from(error.l3);
    let hop_limit = error.hop_limit.wrapping_sub(1);
    if is_v4 {
        if hop.is_some() {
            let counted_down = u16::from_ne_bytes([hop_limit, V4::ICMP]);
            own_header = own_header.word(u16::from_ne_bytes([error.hop_limit, V4::ICMP]), counted_down);
            writer.put16(l3 + offset_of!(Ipv4Hdr, ttl), counted_down)?;
        }
        writer.put16(l3 + offset_of!(Ipv4Hdr, check), own_header.apply(error.ip_checksum))?;
    } else {
        covered = covered.and(own_header);
        if hop.is_some() {
            writer.put16(l3 + offset_of!(Ipv6Hdr, next_hdr), u16::from_ne_bytes([V6::ICMP, hop_limit]))?;
        }
    }
    writer.put16(usize::from(error.l4) + icmp::CHECKSUM, covered.apply(error.checksum))?;
    if hop.is_some() {
        writer.put_macs(ethernet::macs_towards(hop))?;
    }
    Some(())
}

/// What a checksum sees replaced with an address. Words that an address does not have are zero before and after.
#[inline(always)]
const fn replaced(old: &Addr, new: &Addr) -> Delta {
    let ([a, b, c, d], [e, f, g, h]) = (old.0, new.0);
    Delta::NONE.double_word(a, e).double_word(b, f).double_word(c, g).double_word(d, h)
}

/// Stores an address.
#[inline(always)]
pub(super) fn put_address(family: Family, at: usize, address: &Addr, writer: &mut impl Writer) -> Option<()> {
    let [a, b, c, d] = address.0;
    writer.put32(at, a)?;
    if family == Family::V6 {
        writer.put32(at + 4, b)?;
        writer.put32(at + 8, c)?;
        writer.put32(at + 12, d)?;
    }
    Some(())
}
