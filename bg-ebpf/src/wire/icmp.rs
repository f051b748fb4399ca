//! ICMP errors (RFC 792, RFC 4443): what they say, and the packet that they quote.
//!
//! An error quotes the beginning of the packet that it is about, as its sender has received it. IPv4 requires eight bytes behind the
//! quoted IP header, so the ports are always there, and the transport checksum of UDP. That of TCP may be missing.

use super::{
    headers::{FRAGMENT_OFFSET, IpHeader as _, IpVersion},
    packet::{Packet, bytes::load16},
    transport::checksum_offset,
};
use bg_common::{Addr, Be16, Family, Protocol};

/// Bytes of an ICMP error before the quoted packet.
pub const HEADER_LEN: usize = 8;

/// Offset of the checksum in an ICMP header.
pub const CHECKSUM: usize = 2;

/// Bytes that must be quoted of the transport header.
const LEAST_QUOTED: usize = 8;

/// An ICMP error about a TCP or UDP packet. Any bytes are a value of this type.
///
/// Offsets are single bytes: so the verifier knows their bounds when they are loaded from memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct IcmpError {
    /// Source address of the quoted packet, and destination address of the error.
    pub src: Addr,
    /// Destination address of the quoted packet.
    pub dst: Addr,
    /// Source port of the quoted packet.
    pub src_port: Be16,
    /// Destination port of the quoted packet.
    pub dst_port: Be16,
    /// Bytes of the error's IP packet, header included.
    pub ip_len: u32,
    /// Checksum of the error's IPv4 header.
    pub ip_checksum: u16,
    /// Checksum of the ICMP message.
    pub checksum: u16,
    /// Checksum of the quoted IPv4 header.
    pub quoted_ip_checksum: u16,
    /// Checksum of the quoted transport header, if there is one at [`Self::transport_checksum_at`].
    pub transport_checksum: u16,
    /// Offset of the error's IP header in the frame.
    pub l3: u8,
    /// Offset of the ICMP header in the frame.
    pub l4: u8,
    /// Offset of the quoted IP header in the frame.
    pub quoted_l3: u8,
    /// Offset of the quoted transport header in the frame.
    pub quoted_l4: u8,
    /// Offset of the quoted transport header's checksum in the frame; zero if it is not quoted, or if UDP has none.
    pub transport_checksum_at: u8,
    /// TTL or hop limit of the error.
    pub hop_limit: u8,
    /// [`Protocol`] of the quoted packet.
    pub protocol: u8,
    /// Not zero if the destination of the quoted packet itself has sent the error.
    pub is_from_dst: u8,
}

impl IcmpError {
    /// Reads an ICMP message, no fragment of one, whose IP header stands at `l3`. `None`: it is no error, or not one about a TCP
    /// or UDP packet of the error's destination, or it is cut short.
    ///
    /// Each field is stored as soon as it is read: all of them together are more than the stack has room for.
    #[inline(always)]
    pub fn read<V: IpVersion>(&mut self, packet: &Packet<'_>, l3: usize, frame_len: usize) -> Option<()> {
        let ip = V::header(packet, l3)?;
        let l4 = l3 + ip.header_len();
        let [kind, _, checksum @ ..] = packet.header::<[u8; 4]>(l4)?;
        if !is_error(V::FAMILY, *kind) {
            return None;
        }
        (self.l3, self.l4) = (l3 as u8, l4 as u8);
        self.hop_limit = ip.hop_limit();
        self.ip_checksum = ip.checksum();
        self.checksum = load16(checksum);
        self.ip_len = ip.ip_len();
        let end = l3 + ip.ip_len() as usize;

        let quoted_l3 = l4 + HEADER_LEN;
        let quoted = V::header(packet, quoted_l3)?;
        let quoted_l4 = quoted_l3 + quoted.header_len();
        (self.quoted_l3, self.quoted_l4) = (quoted_l3 as u8, quoted_l4 as u8);
        self.quoted_ip_checksum = quoted.checksum();
        self.src = V::widen(quoted.src());
        self.dst = V::widen(quoted.dst());
        self.is_from_dst = (quoted.dst() == ip.src()).into();
        // The first of several fragments has ports.
        if quoted.fragment() & FRAGMENT_OFFSET != 0 || quoted.src() != ip.dst() {
            return None;
        }
        let protocol = Protocol::from_u8(quoted.protocol())?;
        if end > frame_len || quoted_l4 + LEAST_QUOTED > end {
            return None;
        }
        self.protocol = protocol as u8;
        let [src_port, dst_port] = packet.header::<[[u8; 2]; 2]>(quoted_l4)?;
        (self.src_port, self.dst_port) = (Be16(load16(src_port)), Be16(load16(dst_port)));
        self.transport_checksum_at = 0;
        let checksum_at = quoted_l4 + checksum_offset(protocol);
        if checksum_at + 2 <= end {
            self.transport_checksum = load16(packet.header(checksum_at)?);
            if protocol == Protocol::Tcp || self.transport_checksum != 0 {
                self.transport_checksum_at = checksum_at as u8;
            }
        }
        Some(())
    }
}

/// Whether a type of ICMP message quotes a packet that could not be delivered. A redirect, which quotes one as well, is for its
/// destination alone.
#[inline(always)]
const fn is_error(family: Family, kind: u8) -> bool {
    match family {
        // Destination unreachable, time exceeded, parameter problem.
        Family::V4 => matches!(kind, 3 | 11 | 12),
        // The same, and packet too big.
        Family::V6 => matches!(kind, 1..=4),
    }
}
