//! Answering a packet by an ICMP error for its sender (RFC 792, RFC 4443).
//!
//! | reason | what it says |
//! | --- | --- |
//! | [`Reason::Refused`] | port unreachable, as a host says that has no such service: it makes a connected socket fail at once |
//! | [`Reason::TooBig`] | fragmentation needed (RFC 1191), or packet too big |
//! | [`Reason::TimeExceeded`] | time exceeded in transit |
//! | [`Reason::NoHost`] | host unreachable, or address unreachable |
//!
//! The source is the virtual address that the packet was sent to, the one address that is known to be routed back.
//!
//! The error quotes the packet as it has come, as much of it as a packet has room for that every link takes (RFC 1812, section 4.3.2.3; RFC 4443,
//! section 2.4). [`Room`] says how to make room for its headers, between the Ethernet header and the datagram, and [`write`] fills the room.
//!
//! A packet that its sender has left to a network card bears an unfinished checksum, and stays so when it is quoted. Whoever finishes it
//! makes the sum of the bytes that it covers the complement of what stands in the checksum's field now, so the checksum of the error is known before (local checksum
//! offload, Documentation/networking/checksum-offloads.rst of Linux).

use super::{
    rewrite::{End, Writer},
    translate::put_address,
};
use crate::{
    verdict::Reason,
    wire::{
        checksum::Sum,
        ethernet::{self, Ethernet},
        headers::{IpHeader, IpVersion},
        icmp,
        packet::{Packet, bytes::load16},
        transport::checksum_offset,
    },
};
use bg_common::{Family, Protocol};
use core::mem::offset_of;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

/// The two words of the ICMP header, without its checksum: type, code and what follows, as on the wire.
#[inline(always)]
const fn icmp_header(reason: Reason, family: Family) -> (u16, u32) {
    let mtu = match reason {
        Reason::TooBig(mtu) => mtu,
        _ => 0,
    };
    let (kind, code) = match (family, reason) {
        (Family::V4, Reason::Refused) => (3, 3),
        (Family::V4, Reason::TooBig(_)) => (3, 4),
        (Family::V4, Reason::TimeExceeded) => (11, 0),
        (Family::V4, Reason::NoHost) => (3, 1),
        (Family::V6, Reason::Refused) => (1, 4),
        (Family::V6, Reason::TooBig(_)) => (2, 0),
        (Family::V6, Reason::TimeExceeded) => (3, 0),
        (Family::V6, Reason::NoHost) => (1, 3),
    };
    // In IPv4 the MTU has the last two bytes, which are the low ones of the word in network order.
    (u16::from_ne_bytes([kind, code]), mtu.to_be())
}

/// Offset of the IP header: tags among a frame's bytes are not supported.
const L3: usize = size_of::<Ethernet>();

/// TTL and hop limit of an error.
const HOP_LIMIT: u8 = 64;

/// The precedence of network control, which errors have (RFC 1812, section 4.3.2.5).
const TOS: u8 = 0xc0;

/// The flag "do not fragment" of an IPv4 header.
const DONT_FRAGMENT: u8 = 0x40;

/// Bytes of the error's headers.
pub const fn headers_len(family: Family) -> usize {
    match family {
        Family::V4 => Ipv4Hdr::LEN + icmp::HEADER_LEN,
        Family::V6 => Ipv6Hdr::LEN + icmp::HEADER_LEN,
    }
}

/// Bytes that the error's IP packet has at most.
const fn longest(family: Family) -> usize {
    match family {
        Family::V4 => 576,
        Family::V6 => 1280,
    }
}

/// Bytes of a packet that are quoted at most.
pub const fn most_quoted(family: Family) -> usize {
    longest(family) - headers_len(family)
}

/// Bytes of the datagram's packet that are quoted.
#[inline(always)]
fn quoted_len<V: IpVersion>(ip: impl IpHeader<V>) -> usize {
    let (len, most) = (ip.ip_len() as usize, most_quoted(V::FAMILY));
    // The length of a packet beyond 64 KiB, which only a GSO stack hands out, is zero there.
    if len > ip.header_len() && len < most { len } else { most }
}

/// What to do with a datagram's frame before [`write`].
#[derive(Clone, Copy)]
pub struct Room {
    /// The length that it is cut to.
    pub kept: usize,
    /// Bytes that are inserted behind its Ethernet header then.
    pub inserted: usize,
}

impl Room {
    /// For a datagram whose IP header stands at `l3`. `None`: it is not answered.
    #[inline(always)]
    pub fn new<V: IpVersion>(packet: &Packet<'_>, l3: usize) -> Option<Self> {
        let ip = V::header(packet, L3)?;
        (l3 == L3).then_some(Self { kept: L3 + quoted_len(ip), inserted: headers_len(V::FAMILY) })
    }
}

/// Fills the room with the headers of the error. Of a packet of which only a part is there, because another error has quoted it, `part` is its length: whoever
/// has quoted it has finished all checksums. `None`: it could not be written, and must not be sent.
#[inline(always)]
pub fn write<V: IpVersion>(
    packet: &Packet<'_>,
    reason: Reason,
    part: Option<usize>,
    writer: &mut impl Writer,
) -> Option<()> {
    let (l4, quoted_l3) = (L3 + headers_len(V::FAMILY) - icmp::HEADER_LEN, L3 + headers_len(V::FAMILY));
    let quoted = V::header(packet, quoted_l3)?;
    let (len, header_len) = (part.unwrap_or_else(|| quoted_len(quoted)), quoted.header_len());
    let (client, vip) = (V::widen(quoted.src()), V::widen(quoted.dst()));
    let unfinished = if part.is_some() {
        None
    } else {
        let protocol = Protocol::from_u8(quoted.protocol())?;
        let checksum = load16(packet.header(quoted_l3 + header_len + checksum_offset(protocol))?);
        Some(Sum::of_bytes(packet, quoted_l3, header_len)?.word(!checksum))
    };
    let whole = Sum::of_bytes(packet, quoted_l3, len)?;
    let macs = ethernet::swapped_macs(packet)?;
    // Nothing is read any more.

    let word = u32::from_ne_bytes;
    let ends = Sum::ZERO.address(&vip).address(&client);
    let (kind, rest) = icmp_header(reason, V::FAMILY);
    let pseudo_header = match V::FAMILY {
        Family::V4 => {
            let [high, low] = ((headers_len(V::FAMILY) + len) as u16).to_be_bytes();
            let (first, second) = (word([0x45, TOS, high, low]), word([0, 0, DONT_FRAGMENT, 0]));
            let third = u16::from_ne_bytes([HOP_LIMIT, V::ICMP]);
            let check = !ends.double_word(first).double_word(second).word(third).fold();
            writer.put32(L3, first)?;
            writer.put32(L3 + 4, second)?;
            writer.put16(L3 + offset_of!(Ipv4Hdr, ttl), third)?;
            writer.put16(L3 + offset_of!(Ipv4Hdr, check), check)?;
            put_address(V::FAMILY, L3 + End::Source.v4_offset(), &vip, writer)?;
            put_address(V::FAMILY, L3 + End::Destination.v4_offset(), &client, writer)?;
            Sum::ZERO
        }
        Family::V6 => {
            let payload_len = ((icmp::HEADER_LEN + len) as u16).to_be_bytes();
            let [high, low] = payload_len;
            writer.put32(L3, word([0x60, 0, 0, 0]))?;
            writer.put32(L3 + 4, word([high, low, V::ICMP, HOP_LIMIT]))?;
            put_address(V::FAMILY, L3 + End::Source.v6_offset(), &vip, writer)?;
            put_address(V::FAMILY, L3 + End::Destination.v6_offset(), &client, writer)?;
            ends.word(u16::from_ne_bytes(payload_len)).word(u16::from(V::ICMP).to_be())
        }
    };
    let before = pseudo_header.word(kind).double_word(rest);
    let finished = !before.and(whole).fold();
    let unfinished = unfinished.map_or(finished, |sum| !before.and(sum).fold());
    writer.put32(l4, kind.into())?;
    writer.put32(l4 + 4, rest)?;
    writer.put_checksum(l4 + icmp::CHECKSUM, unfinished, finished)?;
    writer.put_macs(macs)
}
