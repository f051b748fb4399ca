//! Unpacking what the modes `ipip` and `gue` have encapsulated, on a backend (`bgctl decap`).
//!
//! A packet is unpacked if its outer destination and its inner destination are addresses of this host, and its outer source is in one of the prefixes
//! that were given. Everything else passes unmodified: it may be another tunnel's.
//!
//! ECN follows RFC 6040, section 4.2: a congestion that was experienced on the way is told to the packet inside, or the packet is dropped if its transport
//! does not know ECN. DSCP and TTL of the outer header are dropped with it. Outer checksums are not verified: the outer header's is by every router before, and
//! that of UDP covers what the inner ones cover.
//!
//! GUE is understood in version 0 without options, and in version 1, which is an IP packet right behind the UDP header.

use crate::{
    hint::opaque,
    wire::{
        checksum::Delta,
        ethernet::{self, Ethernet},
        headers::{IpHeader as _, IpVersion, V4, V6},
        packet::{
            Packet,
            bytes::{load16, store16},
        },
    },
};
use bg_common::{Addr, Be16, Family, Protocol};
use core::mem::offset_of;
use network_types::{ip::Ipv4Hdr, udp::UdpHdr};

/// What becomes of a frame, other than a number of bytes to cut off its front.
pub const PASS: u32 = 0;
/// As [`PASS`].
pub const DROP: u32 = u32::MAX;

/// Offset of the outer header: frames with tags pass.
const L3: usize = size_of::<Ethernet>();

/// IANA numbers of the protocols that are encapsulated.
const IPV4: u8 = 4;
const IPV6: u8 = 41;

/// Bits of ECN.
const ECN: u8 = 3;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// What is counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Unpacked.
    Unpacked = 0,
    /// Passed: from another source than those that may send.
    OtherSource = 1,
    /// Passed: for this host, but what is inside is not.
    OtherDestination = 2,
    /// Dropped: congestion was experienced, and what is inside does not know ECN.
    Congested = 3,
}

/// Which packets are unpacked.
pub trait Unpacking {
    /// Whether it is an address of this host.
    fn is_ours(&self, family: Family, address: &Addr) -> bool;
    /// Whether this address may send encapsulated packets.
    fn may_send(&self, family: Family, address: &Addr) -> bool;
    /// The UDP port of GUE.
    fn gue_port(&self) -> Be16;
    /// Counts.
    fn count(&self, what: Count);
}

/// Unpacks a frame in place: writes the link layer's header in front of what is inside. Returns how many bytes to cut off its front,
/// [`PASS`] or [`DROP`]. `writer` may work on the same bytes.
#[inline(always)]
pub fn unpack(packet: &Packet<'_>, writer: &mut Packet<'_>, world: &impl Unpacking) -> u32 {
    let Some((ether_type, L3)) = ethernet::payload(packet) else { return PASS };
    let found = match ether_type {
        ethernet::IPV4 => of_version::<V4>(packet, writer, world),
        ethernet::IPV6 => of_version::<V6>(packet, writer, world),
        _ => None,
    };
    found.unwrap_or(PASS)
}

#[inline(always)]
fn of_version<V: IpVersion>(packet: &Packet<'_>, writer: &mut Packet<'_>, world: &impl Unpacking) -> Option<u32> {
    let ip = V::header(packet, L3)?;
    let header_len = ip.header_len();
    let (outer_len, inner) = match ip.protocol() {
        protocol @ (IPV4 | IPV6) => (header_len, protocol),
        protocol if protocol == Protocol::Udp as u8 => in_gue(packet, header_len, world)?,
        _ => return None,
    };
    // Fragments are for the host's stack to put together.
    if ip.fragment() != 0 || !world.is_ours(V::FAMILY, &V::widen(ip.dst())) {
        return None;
    }
    if !world.may_send(V::FAMILY, &V::widen(ip.src())) {
        world.count(Count::OtherSource);
        return None;
    }
    let [first, second] = *packet.header::<[u8; 2]>(L3)?;
    let ecn = traffic_class_of(V::FAMILY, first, second) & ECN;
    // The verifier has to see that it is no negative number.
    let start = opaque(outer_len as u64) as usize & 0x7f;
    if inner == IPV6 {
        finish::<V6>(packet, start, ecn, writer, world)
    } else {
        finish::<V4>(packet, start, ecn, writer, world)
    }
}

/// Bytes of all headers around a packet in GUE, and its protocol.
#[inline(always)]
fn in_gue(packet: &Packet<'_>, header_len: usize, world: &impl Unpacking) -> Option<(usize, u8)> {
    let udp = packet.header::<UdpHdr>(L3 + header_len)?;
    if Be16(load16(&udp.dst)) != world.gue_port() {
        return None;
    }
    let len = header_len + UdpHdr::LEN;
    let [first, protocol, flags @ ..] = *packet.header::<[u8; 4]>(L3 + len)?;
    match first >> 4 {
        4 => Some((len, IPV4)),
        6 => Some((len, IPV6)),
        _ if first == 0 && flags == [0, 0] && (protocol == IPV4 || protocol == IPV6) => Some((len + 4, protocol)),
        _ => None,
    }
}

/// Unpacks the packet behind so many bytes of outer headers.
#[inline(always)]
fn finish<V: IpVersion>(
    packet: &Packet<'_>,
    start: usize,
    outer: u8,
    writer: &mut Packet<'_>,
    world: &impl Unpacking,
) -> Option<u32> {
    let at = start + L3;
    let ip = V::header(packet, at)?;
    let check = ip.checksum();
    if !world.is_ours(V::FAMILY, &V::widen(ip.dst())) {
        world.count(Count::OtherDestination);
        return None;
    }
    let [first, second] = *packet.header::<[u8; 2]>(at)?;
    let macs = *packet.header::<[u8; 12]>(0)?;
    // Nothing is read any more.
    let old = traffic_class_of(V::FAMILY, first, second);
    let ecn = match (old & ECN, outer) {
        (0, CE) => {
            world.count(Count::Congested);
            return Some(DROP);
        }
        (1.., CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (ecn, _) => ecn,
    };
    if ecn != old & ECN {
        let new = old & !ECN | ecn;
        let words = match V::FAMILY {
            Family::V4 => [first, new],
            Family::V6 => [first & 0xf0 | new >> 4, new << 4 | second & 0xf],
        };
        if V::FAMILY == Family::V4 {
            let check = Delta::NONE.word(u16::from_ne_bytes([first, second]), u16::from_ne_bytes(words)).apply(check);
            store16(writer.header_mut(at + offset_of!(Ipv4Hdr, check))?, check);
        }
        *writer.header_mut(at)? = words;
    }
    let ether_type = match V::FAMILY {
        Family::V4 => ethernet::IPV4,
        Family::V6 => ethernet::IPV6,
    };
    *writer.header_mut(start)? = macs;
    store16(writer.header_mut(start + 12)?, ether_type.0);
    world.count(Count::Unpacked);
    Some(start as u32)
}

/// DSCP and ECN, in the first two bytes of a header.
#[inline(always)]
const fn traffic_class_of(family: Family, first: u8, second: u8) -> u8 {
    match family {
        Family::V4 => second,
        Family::V6 => first << 4 | second >> 4,
    }
}
