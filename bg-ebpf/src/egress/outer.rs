//! A packet on its way to a backend that replies to clients directly: as it is, but for its hop count (mode `l2dsr`), or encapsulated (`ipip`, `gue`).
//!
//! | field | of what is inside | why |
//! | --- | --- | --- |
//! | inner TTL, hop limit | one less | this host forwards the packet (RFC 2003, section 3.1; RFC 2473, section 3.1) |
//! | outer TTL, hop limit | 64 | the tunnel is a link of the packet's own way |
//! | outer DSCP and ECN | the same | RFC 2983, uniform model; RFC 6040, normal mode |
//! | outer "do not fragment" | the same; set for IPv6 | RFC 2003, section 3.1; RFC 4213, section 3.2 |
//! | outer identification | the same, if it may be fragmented | RFC 6864 |
//! | outer flow label, source port of GUE | the flow's hash | RFC 6438 |
//! | outer UDP checksum | none for IPv4; for IPv6 the right one | RFC 6936 |
//!
//! GUE is that of Linux (`ip fou add port 6080 gue`): version 0, without options: four bytes, the second of which is the protocol that follows.
//!
//! The outer UDP checksum needs no sum of the payload. The inner transport checksum makes the sum of the bytes that it covers the complement
//! of the pseudo-header's, whoever finishes it. If it is wrong, so is the outer one, and the packet is dropped a moment earlier. A checksum of zero is sent
//! if the inner packet has none (UDP), or one that does not cover all of it, and for packets that are yet to be segmented: Linux does not compute it for the segments. Linux receives
//! both (`fou_create` opens its socket without `use_udp6_rx_checksums`).

use super::{
    rewrite::{End, Writer},
    translate::put_address,
};
use crate::wire::{
    checksum::{Delta, Sum},
    ethernet::{self, Ethernet},
    headers::{IpHeader as _, IpVersion, V4, V6},
    packet::{
        Packet,
        bytes::{load16, load32},
    },
};
use bg_common::{Addr, Be16, Family, Mode, NextHop, Protocol};
use core::mem::offset_of;
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

/// Offset of the first IP header: frames with tags among their bytes are not sent to such backends.
const L3: usize = size_of::<Ethernet>();

/// Offset of the EtherType.
const ETHER_TYPE: usize = 12;

/// Bytes of the GUE header.
const GUE_LEN: usize = 4;

/// TTL and hop limit of the outer header.
const HOP_LIMIT: u8 = 64;

/// The flag "do not fragment" of an IPv4 header.
const DONT_FRAGMENT: u8 = 0x40;

/// IANA numbers of the protocols that are encapsulated.
const IN_IP: [u8; 2] = [4, 41];

/// The least source port of GUE, of 16,384: those for which nobody listens (RFC 6335).
const FIRST_SOURCE_PORT: u16 = 0xc000;

/// Where the packet goes, and in what.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Outer {
    /// MAC addresses.
    pub hop: NextHop,
    /// Source address of the outer header.
    pub src: Addr,
    /// Address of the backend.
    pub dst: Addr,
    /// The flow's hash.
    pub hash: u32,
    /// Bytes of the inner IP packet.
    pub ip_len: u32,
    /// Destination port of GUE.
    pub port: Be16,
    /// [`Family`] of the inner packet.
    pub inner: u8,
    /// [`Family`] of the backend.
    pub family: u8,
    /// [`Mode`].
    pub mode: u8,
    /// Bytes of the outer headers: [`room`].
    pub room: u8,
    /// Not zero if the packet is yet to be segmented.
    pub is_gso: u8,
    /// Not zero if the kernel's neighbour code is to find the MAC address.
    pub resolves: u8,
}

/// Bytes of the headers around a packet to a backend of this mode and family.
#[inline(always)]
pub const fn room(mode: u8, family: u8) -> u8 {
    let ip = if family == Family::V6 as u8 { Ipv6Hdr::LEN } else { Ipv4Hdr::LEN };
    if mode == Mode::Gue as u8 {
        (ip + UdpHdr::LEN + GUE_LEN) as u8
    } else if mode == Mode::Ipip as u8 {
        ip as u8
    } else {
        0
    }
}

/// What of the inner header the outer one needs.
struct Inside {
    /// DSCP and ECN.
    tos: u8,
    /// Bytes 4 to 7 of the outer IPv4 header: identification, flags.
    fragments: u32,
    /// The sum of all bytes, if there is a transport checksum.
    sum: Option<Sum>,
}

/// Counts the packet's hop down, and fills the room in front of it, behind the Ethernet header, with the outer headers. `None`: it could not
/// be written, and must not be sent.
#[inline(always)]
pub fn write(packet: &Packet<'_>, outer: &Outer, writer: &mut impl Writer) -> Option<()> {
    let at = L3 + usize::from(outer.room);
    let inside = if outer.inner == Family::V6 as u8 {
        count_down::<V6>(packet, at, outer, writer)?
    } else {
        count_down::<V4>(packet, at, outer, writer)?
    };
    if outer.room != 0 {
        write_outer(outer, &inside, writer)?;
    }
    writer.put_macs(ethernet::macs_towards(outer.hop))
}

/// Counts the hop down of the packet whose header stands at `at`. Nothing is read of it any more then.
#[inline(always)]
fn count_down<V: IpVersion>(packet: &Packet<'_>, at: usize, outer: &Outer, writer: &mut impl Writer) -> Option<Inside> {
    let ip = V::header(packet, at)?;
    let (header_len, protocol, hop_limit, check) = (ip.header_len(), ip.protocol(), ip.hop_limit(), ip.checksum());
    let ends = Sum::ZERO.address(&V::widen(ip.src())).address(&V::widen(ip.dst()));
    let [first, second] = packet.header::<[[u8; 4]; 2]>(at)?;
    let l4_len = (outer.ip_len as usize).wrapping_sub(header_len);
    let pseudo_header = ends.word(u16::from(protocol).to_be()).word((l4_len as u16).to_be());
    let has_checksum =
        outer.is_gso == 0 && (protocol != Protocol::Udp as u8 || covers_all(packet, at + header_len, l4_len)?);
    let new_limit = hop_limit.wrapping_sub(1);
    let [a, b, c, _] = *second;
    let [version, class, ..] = *first;
    let first = load32(first);
    // Nothing is read any more.
    let (tos, fragments, header, payload) = match V::FAMILY {
        Family::V4 => {
            let fragments = if c & DONT_FRAGMENT != 0 { [0, 0, DONT_FRAGMENT, 0] } else { [a, b, 0, 0] };
            let old = u16::from_ne_bytes([hop_limit, protocol]);
            let new = u16::from_ne_bytes([new_limit, protocol]);
            let check = Delta::NONE.word(old, new).apply(check);
            writer.put16(at + offset_of!(Ipv4Hdr, ttl), new)?;
            writer.put16(at + offset_of!(Ipv4Hdr, check), check)?;
            // Its own checksum makes the header's sum zero. ICMP has no pseudo-header.
            let payload = if protocol == V::ICMP { Sum::ZERO } else { Sum::ZERO.word(!pseudo_header.fold()) };
            (class, fragments, Sum::ZERO, payload)
        }
        Family::V6 => {
            let next_and_limit = u16::from_ne_bytes([c, new_limit]);
            writer.put16(at + offset_of!(Ipv6Hdr, next_hdr), next_and_limit)?;
            let header = ends.double_word(first).word(u16::from_ne_bytes([a, b])).word(next_and_limit);
            let payload = Sum::ZERO.word(!pseudo_header.fold());
            (version << 4 | class >> 4, [0, 0, DONT_FRAGMENT, 0], header, payload)
        }
    };
    let sum = if has_checksum { Some(header.and(payload)) } else { None };
    Some(Inside { tos, fragments: u32::from_ne_bytes(fragments), sum })
}

/// Whether a datagram has a checksum, which covers all `len` bytes behind the IP header: bytes behind the datagram's own end it does not cover.
#[inline(always)]
fn covers_all(packet: &Packet<'_>, l4: usize, len: usize) -> Option<bool> {
    let [datagram_len, checksum] = packet.header::<[[u8; 2]; 2]>(l4 + offset_of!(UdpHdr, len))?;
    Some(load16(checksum) != 0 && load16(datagram_len) == (len as u16).to_be())
}

#[inline(always)]
fn write_outer(outer: &Outer, inside: &Inside, writer: &mut impl Writer) -> Option<()> {
    let is_gue = outer.mode == Mode::Gue as u8;
    let is_v6 = outer.family == Family::V6 as u8;
    let inner = if outer.inner == Family::V6 as u8 { IN_IP[1] } else { IN_IP[0] };
    let protocol = if is_gue { Protocol::Udp as u8 } else { inner };
    let len = outer.ip_len + u32::from(outer.room);
    let ends = Sum::ZERO.address(&outer.src).address(&outer.dst);
    let word = u32::from_ne_bytes;
    let l4 = if is_v6 {
        let [high, low] = ((len - Ipv6Hdr::LEN as u32) as u16).to_be_bytes();
        let first = 6 << 28 | u32::from(inside.tos) << 20 | outer.hash & 0xf_ffff;
        writer.put16(ETHER_TYPE, ethernet::IPV6.0)?;
        writer.put32(L3, first.to_be())?;
        writer.put32(L3 + 4, word([high, low, protocol, HOP_LIMIT]))?;
        put_address(Family::V6, L3 + End::Source.v6_offset(), &outer.src, writer)?;
        put_address(Family::V6, L3 + End::Destination.v6_offset(), &outer.dst, writer)?;
        L3 + Ipv6Hdr::LEN
    } else {
        let [high, low] = (len as u16).to_be_bytes();
        let first = word([0x45, inside.tos, high, low]);
        let third = u16::from_ne_bytes([HOP_LIMIT, protocol]);
        let check = !ends.double_word(first).double_word(inside.fragments).word(third).fold();
        writer.put16(ETHER_TYPE, ethernet::IPV4.0)?;
        writer.put32(L3, first)?;
        writer.put32(L3 + 4, inside.fragments)?;
        writer.put16(L3 + offset_of!(Ipv4Hdr, ttl), third)?;
        writer.put16(L3 + offset_of!(Ipv4Hdr, check), check)?;
        put_address(Family::V4, L3 + End::Source.v4_offset(), &outer.src, writer)?;
        put_address(Family::V4, L3 + End::Destination.v4_offset(), &outer.dst, writer)?;
        L3 + Ipv4Hdr::LEN
    };
    if is_gue {
        let udp_len = (outer.ip_len + (UdpHdr::LEN + GUE_LEN) as u32) as u16;
        let source = (FIRST_SOURCE_PORT | (outer.hash >> 16) as u16 & !FIRST_SOURCE_PORT).to_be();
        let ports = u32::from(source) | u32::from(outer.port.0) << 16;
        let gue = word([0, inner, 0, 0]);
        let check = match inside.sum {
            Some(sum) if is_v6 => {
                let header = ends.word(u16::from(protocol).to_be()).word(udp_len.to_be());
                let header = header.double_word(ports).word(udp_len.to_be()).double_word(gue);
                match !header.and(Sum::ZERO.word(sum.fold())).fold() {
                    0 => 0xffff,
                    check => check,
                }
            }
            _ => 0,
        };
        writer.put32(l4, ports)?;
        writer.put32(l4 + 4, u32::from(udp_len.to_be()) | u32::from(check) << 16)?;
        writer.put32(l4 + 8, gue)?;
    }
    Some(())
}
