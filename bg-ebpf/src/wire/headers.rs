//! What the engine needs of the network and transport headers, read once and checked once.
//!
//! IPv4 and IPv6 differ in [`IpVersion`] alone; everything above is written once and compiled for both.

use super::packet::Packet;
use bg_common::{Addr, Be16, Family, Protocol};

/// Flag bits of a TCP header's fourteenth byte.
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

/// What a transport header says beside the ports.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Transport {
    /// TCP sequence number as on the wire; zero for UDP.
    pub sequence: u32,
    /// TCP acknowledgment number as on the wire; zero for UDP.
    pub acknowledgment: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// TCP flags; zero for UDP.
    pub flags: u8,
}

impl Transport {
    /// Of a protocol, before the header is read.
    #[inline(always)]
    pub const fn of(protocol: Protocol) -> Self {
        Self { sequence: 0, acknowledgment: 0, protocol, flags: 0 }
    }

    /// Whether it has all these TCP flags.
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// A TCP segment that a reset may answer. Its acknowledgment is the sequence number that makes its sender accept the reset.
    #[inline(always)]
    pub const fn can_be_reset(&self) -> bool {
        matches!(self.protocol, Protocol::Tcp) && self.flags & (tcp_flags::ACK | tcp_flags::RST) == tcp_flags::ACK
    }

    /// The same, or a SYN that opens a connection, which a reset refuses.
    #[inline(always)]
    pub const fn can_be_refused(&self) -> bool {
        self.can_be_reset() || (matches!(self.protocol, Protocol::Tcp) && self.opens_connection())
    }

    /// A SYN that opens a connection, not the answer to one.
    #[inline(always)]
    pub const fn opens_connection(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }
}

/// An IP header inside a packet. Each method reads from the packet when it is called.
pub trait IpHeader<V: IpVersion>: Copy {
    /// Bytes of the header, options included.
    fn header_len(self) -> usize;
    /// IANA number of the protocol that follows.
    fn protocol(self) -> u8;
    /// Source address as on the wire.
    fn src(self) -> V::Address;
    /// Destination address as on the wire.
    fn dst(self) -> V::Address;
    /// TTL or hop limit.
    fn hop_limit(self) -> u8;
    /// Bytes of the IP packet, header included.
    fn ip_len(self) -> u32;
    /// The header's own checksum as on the wire; IPv6 has none, and zero here.
    fn checksum(self) -> u16;
    /// IPv4: the fragment's offset in eight bytes, and above it whether more fragments follow. Zero: a whole packet.
    fn fragment(self) -> u16;
}

/// Bits of [`IpHeader::fragment`] that tell the offset.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

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
    /// Source and destination port as the four bytes stand on the wire.
    pub ports: u32,
    /// What else the transport header says.
    pub transport: Transport,
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

    /// Transport protocol.
    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        self.transport.protocol
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
    /// An ICMP message.
    Icmp,
    /// Of no concern to us: another protocol, a fragment, or too little to tell.
    Other,
}

/// One version of the Internet Protocol.
pub trait IpVersion: Copy {
    /// Family in the maps.
    const FAMILY: Family;
    /// IANA number of its ICMP.
    const ICMP: u8;
    /// An address, as words that stand as on the wire.
    type Address: Copy + PartialEq;

    /// The header at `l3`. `None`: it is not there, or none of this version.
    fn header<'a>(packet: &'a Packet<'_>, l3: usize) -> Option<impl IpHeader<Self> + 'a>;
    /// Hash that chooses among backends: the same for the same five-tuple, always and everywhere.
    fn tuple_hash(src: Self::Address, dst: Self::Address, ports: u32, protocol: Protocol) -> u32;
    /// Whether the address can be that of one host: neither unspecified, nor of a group, nor reserved (RFC 1122, section 3.2.1.3; RFC 4291).
    fn is_of_one_host(address: Self::Address) -> bool;
    /// The address as maps keep it.
    fn widen(address: Self::Address) -> Addr;
    /// The address as packets bear it.
    fn narrow(address: &Addr) -> Self::Address;
    /// The address out of the two halves of what maps keep.
    fn of_halves(half: impl Fn(usize) -> u64) -> Self::Address;
}

/// IPv4.
#[derive(Clone, Copy)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy)]
pub struct V6;
