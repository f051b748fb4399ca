//! What the engine needs of the network and transport headers, read once and checked once.
//!
//! IPv4 (RFC 791) and IPv6 (RFC 8200) differ in [`IpVersion`] alone; everything above is written once and
//! compiled for both. TCP is RFC 9293, UDP RFC 768.

use crate::{
    packet::{
        Packet,
        octets::{load16, load32},
    },
    unlikely,
};
use bg_common::{Addr, Be16, Family, FlowKey4, FlowKey6, Protocol};
use core::mem::offset_of;
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// Flag bits of a TCP header's fourteenth octet.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Resets a connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
}

/// A parsed packet: where its headers stand, and what they say.
#[derive(Clone, Copy)]
pub struct Headers<V: IpVersion> {
    /// Offset of the IP header in the frame.
    pub l3: usize,
    /// Offset of the transport header in the frame.
    pub l4: usize,
    /// Source address as on the wire.
    pub src: V::Address,
    /// Destination address as on the wire.
    pub dst: V::Address,
    /// Source and destination port as the four octets stand on the wire.
    pub ports: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// TCP flags; zero for UDP.
    pub flags: u8,
    /// TCP sequence number as on the wire; zero for UDP.
    pub sequence: u32,
    /// TCP acknowledgment number as on the wire; zero for UDP.
    pub acknowledgment: u32,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Octets of the IP packet, header included.
    pub ip_len: u32,
}

impl<V: IpVersion> Headers<V> {
    /// Source port.
    #[inline(always)]
    pub const fn src_port(&self) -> Be16 {
        Be16(self.ports as u16)
    }

    /// Destination port.
    #[inline(always)]
    pub const fn dst_port(&self) -> Be16 {
        Be16((self.ports >> 16) as u16)
    }

    /// A SYN that opens a connection, not the answer to one.
    #[inline(always)]
    pub const fn opens_connection(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }
}

/// Both ports as one word, in the order of the wire.
#[inline(always)]
pub const fn ports(src: Be16, dst: Be16) -> u32 {
    src.0 as u32 | (dst.0 as u32) << 16
}

/// What parsing has found.
pub enum Parsed<V: IpVersion> {
    /// A packet of a kind that we may own.
    Whole(Headers<V>),
    /// Ports can be read, but the packet is cut short or a length field lies.
    Malformed(Headers<V>),
    /// Of no concern to us: another protocol, a fragment, or too little to tell.
    Other,
}

/// One version of the Internet Protocol.
pub trait IpVersion: Copy {
    /// Family in the maps.
    const FAMILY: Family;
    /// An address, as words that stand as on the wire.
    type Address: Copy + PartialEq;
    /// Key of the flow table.
    type Key: crate::flow_table::Tuple;

    /// Reads the headers from offset `l3` on. `frame_len` is the length of the whole frame, of which
    /// the packet's bytes may be only the first part (tc).
    fn parse(packet: &Packet<'_>, l3: usize, frame_len: usize) -> Parsed<Self>;
    /// Builds a flow key.
    fn key(src: Self::Address, dst: Self::Address, ports: u32, protocol: Protocol) -> Self::Key;
    /// Hash that chooses among backends: the same for the same five-tuple, always and everywhere.
    fn hash(headers: &Headers<Self>) -> u32;
    /// The address as maps keep it.
    fn widen(address: Self::Address) -> Addr;
    /// The address as packets bear it.
    fn narrow(address: &Addr) -> Self::Address;
}

/// IPv4.
#[derive(Clone, Copy)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy)]
pub struct V6;

impl IpVersion for V4 {
    const FAMILY: Family = Family::V4;
    type Address = u32;
    type Key = FlowKey4;

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
            protocol,
            flags: 0,
            sequence: 0,
            acknowledgment: 0,
            hop_limit: ip.ttl,
            ip_len: u16::from_be(load16(&ip.tot_len)) as u32,
        };
        transport(packet, headers, header_len, frame_len)
    }

    #[inline(always)]
    fn key(src: u32, dst: u32, ports: u32, protocol: Protocol) -> FlowKey4 {
        FlowKey4 { src, dst, ports, protocol: protocol as u32 }
    }

    #[inline(always)]
    fn hash(headers: &Headers<Self>) -> u32 {
        let hash = mix(u64::from(headers.src) << 32 | u64::from(headers.dst));
        fold(mix(hash ^ (u64::from(headers.ports) << 8 | headers.protocol as u64)))
    }

    #[inline(always)]
    fn widen(address: u32) -> Addr {
        Addr([address, 0, 0, 0])
    }

    #[inline(always)]
    fn narrow(address: &Addr) -> u32 {
        address.0[0]
    }
}

impl IpVersion for V6 {
    const FAMILY: Family = Family::V6;
    type Address = [u32; 4];
    type Key = FlowKey6;

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
            protocol,
            flags: 0,
            sequence: 0,
            acknowledgment: 0,
            hop_limit: ip.hop_limit,
            ip_len: Ipv6Hdr::LEN as u32 + u16::from_be(load16(&ip.payload_len)) as u32,
        };
        transport(packet, headers, Ipv6Hdr::LEN, frame_len)
    }

    #[inline(always)]
    fn key(src: [u32; 4], dst: [u32; 4], ports: u32, protocol: Protocol) -> FlowKey6 {
        FlowKey6 { src: Addr(src), dst: Addr(dst), ports, protocol: protocol as u32 }
    }

    #[inline(always)]
    fn hash(headers: &Headers<Self>) -> u32 {
        let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        let hash = mix(pair(headers.src[0], headers.src[1]));
        let hash = mix(hash ^ pair(headers.src[2], headers.src[3]));
        let hash = mix(hash ^ pair(headers.dst[0], headers.dst[1]));
        let hash = mix(hash ^ pair(headers.dst[2], headers.dst[3]));
        fold(mix(hash ^ (u64::from(headers.ports) << 8 | headers.protocol as u64)))
    }

    #[inline(always)]
    fn widen(address: [u32; 4]) -> Addr {
        Addr(address)
    }

    #[inline(always)]
    fn narrow(address: &Addr) -> [u32; 4] {
        address.0
    }
}

/// Reads ports and what TCP tells, and checks the length fields against each other and the frame.
#[inline(always)]
fn transport<V: IpVersion>(
    packet: &Packet<'_>,
    mut headers: Headers<V>,
    ip_header_len: usize,
    frame_len: usize,
) -> Parsed<V> {
    let Some(ports) = packet.header::<[u8; 4]>(headers.l4) else { return Parsed::Other };
    headers.ports = load32(ports);
    // A packet beyond 64 KiB, which only a GSO stack hands out (tc), says zero where its length would be.
    if unlikely(headers.ip_len <= ip_header_len as u32) && frame_len > 0xffff {
        headers.ip_len = (frame_len - headers.l3) as u32;
    }
    let ip_end = headers.l3 + headers.ip_len as usize;
    let needed = match headers.protocol {
        Protocol::Tcp => {
            // As octets: the header's own type keeps flags in a bit field without a name for the octet. One
            // check covers all of it.
            let Some(tcp) = packet.header::<[[u8; 4]; TcpHdr::LEN / 4]>(headers.l4) else {
                return Parsed::Malformed(headers);
            };
            let [_, sequence, acknowledgment, [words, flags, ..], _] = tcp;
            headers.sequence = load32(sequence);
            headers.acknowledgment = load32(acknowledgment);
            headers.flags = *flags;
            let header_len = ((words >> 4) as usize) * 4;
            if header_len < TcpHdr::LEN {
                return Parsed::Malformed(headers);
            }
            header_len
        }
        Protocol::Udp => {
            let Some(udp) = packet.header::<UdpHdr>(headers.l4) else { return Parsed::Malformed(headers) };
            let datagram_len = u16::from_be(load16(&udp.len)) as usize;
            if datagram_len < UdpHdr::LEN && frame_len <= 0xffff {
                return Parsed::Malformed(headers);
            }
            datagram_len
        }
    };
    if headers.l4 + needed > ip_end || ip_end > frame_len {
        return Parsed::Malformed(headers);
    }
    Parsed::Whole(headers)
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

const _: () = assert!(offset_of!(TcpHdr, seq) == 4 && offset_of!(TcpHdr, window) == 14);
