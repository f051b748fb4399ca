//! Frames made, and judged, by etherparse: a parser and builder that shares no code with the engine.

use bg_common::Protocol;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use std::net::{IpAddr, SocketAddr};

/// Flags of a TCP header.
pub use bg_ebpf::wire::headers::tcp_flags;

/// A TCP or UDP packet to build. [`Self::tcp`] and [`Self::udp`] give a plain one.
#[derive(Clone, Debug)]
pub struct PacketSpec {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver, of the same family.
    pub to: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Bits of [`tcp_flags`], and 8 for PSH.
    pub flags: u8,
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP acknowledgment number, sent with [`tcp_flags::ACK`].
    pub acknowledgment: u32,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What follows the transport header.
    pub payload: Vec<u8>,
    /// VLAN tags: the first outermost one 802.1ad if there is more than one.
    pub tags: u8,
    /// IPv4 options, in words.
    pub options: u8,
    /// Send UDP without a checksum.
    pub without_udp_checksum: bool,
}

impl PacketSpec {
    /// A TCP segment with these flags.
    pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Self {
        Self {
            from,
            to,
            protocol: Protocol::Tcp,
            flags,
            sequence: 1,
            acknowledgment: 2,
            ttl: 64,
            payload: Vec::new(),
            tags: 0,
            options: 0,
            without_udp_checksum: false,
        }
    }

    /// A UDP datagram.
    pub fn udp(from: SocketAddr, to: SocketAddr) -> Self {
        Self { protocol: Protocol::Udp, payload: b"ping".to_vec(), ..Self::tcp(from, to, 0) }
    }

    /// The frame, to the MAC address of the loopback, by which frames come in a test run.
    pub fn frame(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6]);
        let builder = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let any = etherparse::IpNumber::TCP;
                let mut ip = etherparse::Ipv4Header::new(0, self.ttl, any, from.octets(), to.octets()).expect("fits");
                ip.options = vec![1; usize::from(self.options) * 4].as_slice().try_into().expect("at most ten words");
                builder.ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), self.ttl),
            (from, to) => panic!("{from} and {to} are not of one family"),
        };
        let mut bytes = Vec::new();
        match self.protocol {
            Protocol::Tcp => {
                let mut tcp = builder.tcp(self.from.port(), self.to.port(), self.sequence, 1024);
                let has = |flag| self.flags & flag != 0;
                tcp = if has(tcp_flags::FIN) { tcp.fin() } else { tcp };
                tcp = if has(tcp_flags::SYN) { tcp.syn() } else { tcp };
                tcp = if has(tcp_flags::RST) { tcp.rst() } else { tcp };
                tcp = if has(0x08) { tcp.psh() } else { tcp };
                tcp = if has(tcp_flags::ACK) { tcp.ack(self.acknowledgment) } else { tcp };
                tcp.write(&mut bytes, &self.payload).expect("memory takes it");
            }
            Protocol::Udp => {
                let udp = builder.udp(self.from.port(), self.to.port());
                udp.write(&mut bytes, &self.payload).expect("memory takes it");
                if self.without_udp_checksum {
                    let checksum = bytes.len() - self.payload.len() - 2;
                    bytes[checksum..checksum + 2].fill(0);
                }
            }
        }
        for tag in 0..self.tags {
            let protocol: [u8; 2] = if tag == 0 { [0x81, 0x00] } else { [0x88, 0xa8] };
            bytes.splice(12..12, [protocol[0], protocol[1], 0, 10 + tag]);
        }
        bytes
    }
}

/// The ends of a frame: source and destination.
pub fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let (from, to): (IpAddr, IpAddr) = match packet.net.expect("a network header") {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other => panic!("{other:?}"),
    };
    let (from_port, to_port) = match packet.transport.expect("a transport header") {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        other => panic!("{other:?}"),
    };
    (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port))
}

/// Panics unless the checksums of a frame are right; a UDP checksum that is left out is.
pub fn assert_checksums(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let transport = packet.transport.expect("a transport header");
    let (expected, found) = match packet.net.expect("a network header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum(), "IPv4 header checksum");
            let (from, to) = (header.source(), header.destination());
            match &transport {
                TransportSlice::Tcp(tcp) => (tcp.calc_checksum_ipv4(from, to).expect("length"), tcp.checksum()),
                TransportSlice::Udp(udp) if udp.checksum() == 0 => (0, 0),
                TransportSlice::Udp(udp) => {
                    let expected = udp.to_header().calc_checksum_ipv4_raw(from, to, udp.payload());
                    (expected.expect("length"), udp.checksum())
                }
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            match &transport {
                TransportSlice::Tcp(tcp) => (tcp.calc_checksum_ipv6(from, to).expect("length"), tcp.checksum()),
                TransportSlice::Udp(udp) if udp.checksum() == 0 => (0, 0),
                TransportSlice::Udp(udp) => {
                    let expected = udp.to_header().calc_checksum_ipv6_raw(from, to, udp.payload());
                    (expected.expect("length"), udp.checksum())
                }
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(found, expected, "transport checksum");
}
