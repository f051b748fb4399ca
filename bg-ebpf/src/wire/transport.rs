//! TCP (RFC 9293) and UDP (RFC 768).

use super::{
    headers::{Headers, IpHeader as _, IpVersion, Parsed, Transport},
    packet::{
        Packet,
        bytes::{load16, load32},
    },
};
use crate::hint::unlikely;
use bg_common::Protocol;
use core::mem::offset_of;
use network_types::{tcp::TcpHdr, udp::UdpHdr};

/// Reads the headers from offset `l3` on. `frame_len` is the length of the whole frame, of which the packet's bytes may be
/// only the first part (tc).
#[inline(always)]
pub fn parse<V: IpVersion>(packet: &Packet<'_>, l3: usize, frame_len: usize) -> Parsed<V> {
    let Some(ip) = V::header(packet, l3) else { return Parsed::Other };
    // Of a fragment only the first has ports (RFC 791): all of them are left to the host.
    if ip.fragment() != 0 {
        return Parsed::Other;
    }
    let Some(protocol) = Protocol::from_u8(ip.protocol()) else {
        return if ip.protocol() == V::ICMP { Parsed::Icmp } else { Parsed::Other };
    };
    let headers = Headers {
        l3,
        l4: l3 + ip.header_len(),
        src: ip.src(),
        dst: ip.dst(),
        ports: 0,
        transport: Transport::of(protocol),
        hop_limit: ip.hop_limit(),
        ip_len: ip.ip_len(),
    };
    transport(packet, headers, ip.header_len(), frame_len)
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
    let needed = match headers.protocol() {
        Protocol::Tcp => {
            // As bytes: the header's own type keeps flags in a bit field without a name for the byte. One
            // check covers all of it.
            let Some(tcp) = packet.header::<[[u8; 4]; TcpHdr::LEN / 4]>(headers.l4) else {
                return Parsed::Malformed(headers);
            };
            let [_, sequence, acknowledgment, [words, flags, ..], _] = tcp;
            headers.transport.sequence = load32(sequence);
            headers.transport.acknowledgment = load32(acknowledgment);
            headers.transport.flags = *flags;
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

/// Offset of the checksum in the transport header.
#[inline(always)]
pub const fn checksum_offset(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => offset_of!(TcpHdr, check),
        Protocol::Udp => offset_of!(UdpHdr, check),
    }
}

const _: () = assert!(offset_of!(TcpHdr, seq) == 4 && offset_of!(TcpHdr, window) == 14);
