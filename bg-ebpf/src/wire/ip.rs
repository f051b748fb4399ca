//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use super::{
    headers::{Headers, IpVersion, Parsed, Transport, V4, V6},
    packet::{
        Packet,
        bytes::{load16, load32},
    },
    transport::transport,
};
use bg_common::{Addr, Family, Protocol};
use core::mem::offset_of;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

impl IpVersion for V4 {
    const FAMILY: Family = Family::V4;
    type Address = u32;

    #[inline(always)]
    fn parse(packet: &Packet<'_>, l3: usize, frame_len: usize) -> Parsed<Self> {
        let Some(ip) = packet.header::<Ipv4Hdr>(l3) else { return Parsed::Other };
        let header_len = ((ip.vihl & 0xf) as usize) * 4;
        if ip.vihl >> 4 != 4 || header_len < Ipv4Hdr::LEN {
            return Parsed::Other;
        }
        // Of a fragment only the first has ports (RFC 791): all of them are left to the host.
        if u16::from_be(load16(&ip.frags)) & 0x3fff != 0 {
            return Parsed::Other;
        }
        let Some(protocol) = Protocol::from_u8(ip.proto) else { return Parsed::Other };
        let headers = Headers {
            l3,
            l4: l3 + header_len,
            src: load32(&ip.src_addr),
            dst: load32(&ip.dst_addr),
            ports: 0,
            transport: Transport::of(protocol),
            hop_limit: ip.ttl,
            ip_len: u16::from_be(load16(&ip.tot_len)) as u32,
        };
        transport(packet, headers, header_len, frame_len)
    }

    #[inline(always)]
    fn tuple_hash(src: u32, dst: u32, ports: u32, protocol: Protocol) -> u32 {
        let hash = mix(u64::from(src) << 32 | u64::from(dst));
        fold(mix(hash ^ (u64::from(ports) << 8 | protocol as u64)))
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
    fn is_same(address: u32, word: impl Fn(usize) -> u32) -> bool {
        address == word(0)
    }
}

impl IpVersion for V6 {
    const FAMILY: Family = Family::V6;
    type Address = [u32; 4];

    #[inline(always)]
    fn parse(packet: &Packet<'_>, l3: usize, frame_len: usize) -> Parsed<Self> {
        let Some(ip) = packet.header::<Ipv6Hdr>(l3) else { return Parsed::Other };
        let Some(addresses) = packet.header::<[[u8; 4]; 8]>(l3 + offset_of!(Ipv6Hdr, src_addr)) else {
            return Parsed::Other;
        };
        let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
        if ip.vcf[0] >> 4 != 6 {
            return Parsed::Other;
        }
        let Some(protocol) = Protocol::from_u8(ip.next_hdr) else { return Parsed::Other };
        let headers = Headers {
            l3,
            l4: l3 + Ipv6Hdr::LEN,
            src: [load32(s0), load32(s1), load32(s2), load32(s3)],
            dst: [load32(d0), load32(d1), load32(d2), load32(d3)],
            ports: 0,
            transport: Transport::of(protocol),
            hop_limit: ip.hop_limit,
            ip_len: Ipv6Hdr::LEN as u32 + u16::from_be(load16(&ip.payload_len)) as u32,
        };
        transport(packet, headers, Ipv6Hdr::LEN, frame_len)
    }

    #[inline(always)]
    fn tuple_hash(src: [u32; 4], dst: [u32; 4], ports: u32, protocol: Protocol) -> u32 {
        let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        let hash = mix(pair(src[0], src[1]));
        let hash = mix(hash ^ pair(src[2], src[3]));
        let hash = mix(hash ^ pair(dst[0], dst[1]));
        let hash = mix(hash ^ pair(dst[2], dst[3]));
        fold(mix(hash ^ (u64::from(ports) << 8 | protocol as u64)))
    }

    #[inline(always)]
    fn widen(address: [u32; 4]) -> Addr {
        Addr(address)
    }

    #[inline(always)]
    fn narrow(address: &Addr) -> [u32; 4] {
        address.0
    }

    #[inline(always)]
    fn is_same([a, b, c, d]: [u32; 4], word: impl Fn(usize) -> u32) -> bool {
        a == word(0) && b == word(1) && c == word(2) && d == word(3)
    }
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
