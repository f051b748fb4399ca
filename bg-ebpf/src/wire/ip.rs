//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use super::{
    headers::{FRAGMENT_OFFSET, IpHeader, IpVersion, V4, V6},
    packet::{
        Header, Packet,
        bytes::{load16, load32, load64},
    },
};
use bg_common::{Addr, Family, Protocol};
use network_types::ip::Ipv4Hdr;

/// The flag "more fragments" of an IPv4 header.
const MORE_FRAGMENTS: u16 = 0x2000;

impl IpVersion for V4 {
    const FAMILY: Family = Family::V4;
    const ICMP: u8 = 1;
    type Address = u32;

    #[inline(always)]
    fn header<'a>(packet: &'a Packet<'_>, l3: usize) -> Option<impl IpHeader<Self> + 'a> {
        let ip = packet.header::<Ipv4Hdr>(l3)?;
        (ip.vihl >> 4 == 4 && ip.header_len() >= Ipv4Hdr::LEN).then_some(ip)
    }

    #[inline(always)]
    fn tuple_hash(src: u32, dst: u32, ports: u32, protocol: Protocol) -> u32 {
        let hash = mix(u64::from(src) << 32 | u64::from(dst));
        fold(mix(hash ^ (u64::from(ports) << 8 | protocol as u64)))
    }

    #[inline(always)]
    fn is_of_one_host(address: u32) -> bool {
        let [first, ..] = address.to_ne_bytes();
        first != 0 && first < 224
    }

    #[inline(always)]
    fn widen(address: u32) -> Addr {
        Addr([address, 0, 0, 0])
    }

    #[inline(always)]
    fn narrow(address: &Addr) -> u32 {
        address.0[0]
    }

    #[inline(always)]
    fn of_halves(half: impl Fn(usize) -> u64) -> u32 {
        half(0) as u32
    }
}

impl IpVersion for V6 {
    const FAMILY: Family = Family::V6;
    const ICMP: u8 = 58;
    type Address = [u64; 2];

    #[inline(always)]
    fn header<'a>(packet: &'a Packet<'_>, l3: usize) -> Option<impl IpHeader<Self> + 'a> {
        let header = packet.header::<Ipv6Header>(l3)?;
        (header.version_and_flow[0] >> 4 == 6).then_some(header)
    }

    #[inline(always)]
    fn tuple_hash(src: [u64; 2], dst: [u64; 2], ports: u32, protocol: Protocol) -> u32 {
        let hash = mix(src[0].rotate_left(32));
        let hash = mix(hash ^ src[1].rotate_left(32));
        let hash = mix(hash ^ dst[0].rotate_left(32));
        let hash = mix(hash ^ dst[1].rotate_left(32));
        fold(mix(hash ^ (u64::from(ports) << 8 | protocol as u64)))
    }

    #[inline(always)]
    fn is_of_one_host([low, high]: [u64; 2]) -> bool {
        let [first, ..] = low.to_ne_bytes();
        low | high != 0 && first != 0xff
    }

    #[inline(always)]
    fn widen([low, high]: [u64; 2]) -> Addr {
        Addr([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32])
    }

    #[inline(always)]
    fn narrow(&Addr([a, b, c, d]): &Addr) -> [u64; 2] {
        let half = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [half(a, b), half(c, d)]
    }

    #[inline(always)]
    fn of_halves(half: impl Fn(usize) -> u64) -> [u64; 2] {
        [half(0), half(1)]
    }
}

impl IpHeader<V4> for &Ipv4Hdr {
    #[inline(always)]
    fn header_len(self) -> usize {
        ((self.vihl & 0xf) as usize) * 4
    }

    #[inline(always)]
    fn protocol(self) -> u8 {
        self.proto
    }

    #[inline(always)]
    fn src(self) -> u32 {
        load32(&self.src_addr)
    }

    #[inline(always)]
    fn dst(self) -> u32 {
        load32(&self.dst_addr)
    }

    #[inline(always)]
    fn hop_limit(self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn ip_len(self) -> u32 {
        u16::from_be(load16(&self.tot_len)) as u32
    }

    #[inline(always)]
    fn checksum(self) -> u16 {
        load16(&self.check)
    }

    #[inline(always)]
    fn fragment(self) -> u16 {
        u16::from_be(load16(&self.frags)) & (MORE_FRAGMENTS | FRAGMENT_OFFSET)
    }
}

/// An IPv6 header, whose addresses are two words each.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6Header {
    version_and_flow: [u8; 4],
    payload_len: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    src: [[u8; 8]; 2],
    dst: [[u8; 8]; 2],
}

// SAFETY: a struct of bytes and byte arrays.
unsafe impl Header for Ipv6Header {}

impl IpHeader<V6> for &Ipv6Header {
    #[inline(always)]
    fn header_len(self) -> usize {
        size_of::<Ipv6Header>()
    }

    #[inline(always)]
    fn protocol(self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn src(self) -> [u64; 2] {
        halves(&self.src)
    }

    #[inline(always)]
    fn dst(self) -> [u64; 2] {
        halves(&self.dst)
    }

    #[inline(always)]
    fn hop_limit(self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn ip_len(self) -> u32 {
        size_of::<Ipv6Header>() as u32 + u16::from_be(load16(&self.payload_len)) as u32
    }

    #[inline(always)]
    fn checksum(self) -> u16 {
        0
    }

    #[inline(always)]
    fn fragment(self) -> u16 {
        0
    }
}

#[inline(always)]
fn halves([low, high]: &[[u8; 8]; 2]) -> [u64; 2] {
    [load64(low), load64(high)]
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[inline(always)]
const fn fold(x: u64) -> u32 {
    (x ^ (x >> 32)) as u32
}
