//! The parser, beside etherparse: an input is a frame.

use crate::look::{self, Look};
use bg_common::Protocol;
use bg_ebpf::wire::{
    ethernet,
    headers::{Headers, IpVersion, Parsed, V4, V6},
    icmp::IcmpError,
    packet::Packet,
    transport,
};
use bg_tests::guarded;
use std::net::SocketAddr;

/// Reads a frame by both parsers. Where the engine finds a whole packet, etherparse finds the same one, and the other way round.
pub fn parser(frame: &[u8]) -> u64 {
    guarded(&mut frame.to_vec(), |start, end| {
        // SAFETY: the memory of the copy, which is used here alone.
        let packet = unsafe { Packet::new(start, end) };
        read(&packet, frame);
    });
    1
}

fn read(packet: &Packet<'_>, frame: &[u8]) {
    let Some((ether_type, l3)) = ethernet::payload(packet) else {
        assert!(frame.len() < 22, "a frame of {} bytes has an EtherType", frame.len());
        return;
    };
    match ether_type {
        ethernet::IPV4 => of_version::<V4>(packet, l3, frame),
        ethernet::IPV6 => of_version::<V6>(packet, l3, frame),
        _ => assert!(!look::is_whole(frame) || !look::has_known_tags(frame), "a packet was overlooked"),
    }
}

fn of_version<V: IpVersion>(packet: &Packet<'_>, l3: usize, frame: &[u8]) {
    let is_ours = look::is_whole(frame) && look::has_known_tags(frame);
    match transport::parse::<V>(packet, l3, frame.len()) {
        Parsed::Whole(headers) => same(&headers, frame),
        Parsed::Malformed(_) => assert!(!is_ours, "a whole packet is malformed"),
        Parsed::Icmp => error::<V>(packet, l3, frame),
        Parsed::Other => assert!(!is_ours || Look::of(frame).is_some_and(|look| look.is_fragment), "not seen"),
    }
}

fn same<V: IpVersion>(headers: &Headers<V>, frame: &[u8]) {
    assert!(look::is_whole(frame), "no whole packet");
    let look = Look::of(frame).expect("a packet");
    assert_eq!((headers.l3, headers.l4), (look.l3, look.l4), "offsets");
    assert_eq!((headers.ip_len as usize, headers.hop_limit), (look.len, look.hop_limit), "length and hops");
    assert!(headers.l3 + headers.ip_len as usize <= frame.len(), "the packet is longer than its frame");
    assert!(!look.is_fragment, "a fragment");
    let protocol = if look.protocol == look::TCP { Protocol::Tcp } else { Protocol::Udp };
    assert_eq!(headers.protocol(), protocol, "protocol");
    let address = |address| V::widen(address).to_ip(V::FAMILY);
    let ends = [
        SocketAddr::new(address(headers.src), headers.src_port().host()),
        SocketAddr::new(address(headers.dst), headers.dst_port().host()),
    ];
    assert_eq!(Some(ends), look.ends(), "ends");
    if protocol == Protocol::Tcp {
        let tcp = &frame[look.l4..look.l4 + 20];
        let number = |at: usize| u32::from_ne_bytes(tcp[at..at + 4].try_into().expect("four"));
        let transport = headers.transport;
        assert_eq!((transport.sequence, transport.acknowledgment, transport.flags), (number(4), number(8), tcp[13]));
    }
}

/// An ICMP error that is understood lies in its frame with all that is to be read and written of it.
fn error<V: IpVersion>(packet: &Packet<'_>, l3: usize, frame: &[u8]) {
    let mut error = IcmpError::default();
    if error.read::<V>(packet, l3, frame.len()).is_none() {
        return;
    }
    let look = Look::of(frame).expect("a packet");
    let end = look.l3 + look.len;
    assert_eq!((usize::from(error.l3), usize::from(error.l4), error.ip_len as usize), (look.l3, look.l4, look.len));
    assert!(end <= frame.len(), "the packet is longer than its frame");
    let (quoted, transport) = (usize::from(error.quoted_l3), usize::from(error.quoted_l4));
    assert_eq!(quoted, look.l4 + 8);
    assert!(transport + 8 <= end && (transport - quoted).is_multiple_of(4));
    if error.transport_checksum_at != 0 {
        assert!(usize::from(error.transport_checksum_at) + 2 <= end);
    }
    assert_eq!(error.src.to_ip(V::FAMILY), look.dst, "an error is for the sender of what it quotes");
}
