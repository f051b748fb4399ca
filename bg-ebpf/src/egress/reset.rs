//! Ending a TCP connection by one of its segments: a reset for the segment's sender, and one for its receiver.
//!
//! An end of a connection accepts a reset whose sequence number is the next one that it expects (RFC 5961). For the sender of a
//! segment that is the segment's acknowledgment, for the receiver the segment's own sequence number, if it is in order. An end that
//! expects another number answers with its own, and that answer is a segment of the same kind. So the data path needs to
//! know no sequence numbers, and no stack has to answer. Options and payload are cut off.

use super::{
    rewrite::{End, Writer},
    translate::put_address,
};
use crate::wire::{
    checksum::{Delta, Sum},
    ethernet,
    headers::{IpHeader as _, IpVersion, tcp_flags},
    packet::{Packet, bytes::load32},
    transport::checksum_offset,
};
use bg_common::{Family, Protocol};
use core::mem::offset_of;
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

/// TTL and hop limit of a reset.
const HOP_LIMIT: u8 = 64;

/// A segment that was turned into a reset to its sender.
#[derive(Clone, Copy)]
pub struct Turned {
    /// The length that the frame is to have.
    pub len: usize,
    /// The sequence number of the segment, in network order. A second turn makes a reset to its receiver with it.
    pub sequence: u32,
}

/// The sequence number of a reset, in network order.
#[derive(Clone, Copy)]
pub enum Sequence {
    /// The segment's acknowledgment. A SYN has none: then the reset acknowledges the SYN instead (RFC 9293, 3.10.7.1).
    Acknowledged,
    /// This one.
    Number(u32),
}

/// Turns the segment whose IP header stands at `l3` round, and into a reset. `None`: it could not be written, and must not be sent.
#[inline(always)]
pub fn turn<V: IpVersion>(
    packet: &Packet<'_>,
    l3: usize,
    number: Sequence,
    writer: &mut impl Writer,
) -> Option<Turned> {
    let ip = V::header(packet, l3)?;
    let (header_len, hop_limit, ip_len, ip_checksum) = (ip.header_len(), ip.hop_limit(), ip.ip_len(), ip.checksum());
    let (src, dst) = (V::widen(ip.src()), V::widen(ip.dst()));
    let l4 = l3 + header_len;
    let [ports, own, acknowledgment, [_, flags, ..], ..] = packet.header::<[[u8; 4]; TcpHdr::LEN / 4]>(l4)?;
    let (ports, own) = (load32(ports).rotate_left(16), load32(own));
    let (sequence, acknowledged, flags) = match number {
        Sequence::Number(number) => (number, 0, tcp_flags::RST),
        Sequence::Acknowledged if flags & tcp_flags::ACK != 0 => (load32(acknowledgment), 0, tcp_flags::RST),
        Sequence::Acknowledged => (0, u32::from_be(own).wrapping_add(1).to_be(), tcp_flags::RST | tcp_flags::ACK),
    };
    let macs = ethernet::swapped_macs(packet)?;
    // Nothing is read any more.

    let word = |first, second| u16::from_ne_bytes([first, second]);
    let tcp = Protocol::Tcp as u8;
    match V::FAMILY {
        Family::V4 => {
            let (old_len, new_len) = ((ip_len as u16).to_be(), ((header_len + TcpHdr::LEN) as u16).to_be());
            let (old_ttl, new_ttl) = (word(hop_limit, tcp), word(HOP_LIMIT, tcp));
            let check = Delta::NONE.word(old_len, new_len).word(old_ttl, new_ttl).apply(ip_checksum);
            writer.put16(l3 + offset_of!(Ipv4Hdr, tot_len), new_len)?;
            writer.put16(l3 + offset_of!(Ipv4Hdr, ttl), new_ttl)?;
            writer.put16(l3 + offset_of!(Ipv4Hdr, check), check)?;
            put_address(V::FAMILY, l3 + End::Source.v4_offset(), &dst, writer)?;
            put_address(V::FAMILY, l3 + End::Destination.v4_offset(), &src, writer)?;
        }
        Family::V6 => {
            writer.put16(l3 + offset_of!(Ipv6Hdr, payload_len), (TcpHdr::LEN as u16).to_be())?;
            writer.put16(l3 + offset_of!(Ipv6Hdr, next_hdr), word(tcp, HOP_LIMIT))?;
            put_address(V::FAMILY, l3 + End::Source.v6_offset(), &dst, writer)?;
            put_address(V::FAMILY, l3 + End::Destination.v6_offset(), &src, writer)?;
        }
    }
    let offset_and_flags = u32::from_ne_bytes([(TcpHdr::LEN as u8 / 4) << 4, flags, 0, 0]);
    writer.put32(l4, ports)?;
    writer.put32(l4 + 4, sequence)?;
    writer.put32(l4 + 8, acknowledged)?;
    writer.put32(l4 + 12, offset_and_flags)?;
    writer.put16(l4 + offset_of!(TcpHdr, urg_ptr), 0)?;
    let ends = Sum::ZERO.address(&src).address(&dst);
    let pseudo_header = ends.word(u16::from(tcp).to_be()).word((TcpHdr::LEN as u16).to_be());
    let numbers = Sum::ZERO.double_word(sequence).double_word(acknowledged);
    let header = numbers.double_word(ports).double_word(offset_and_flags);
    let (unfinished, finished) = (pseudo_header.fold(), !pseudo_header.and(header).fold());
    writer.put_checksum(l4 + checksum_offset(Protocol::Tcp), unfinished, finished)?;
    writer.put_macs(macs)?;
    Some(Turned { len: l4 + TcpHdr::LEN, sequence: own })
}

const _: () = assert!(offset_of!(TcpHdr, check) == 16 && offset_of!(TcpHdr, urg_ptr) == 18);
