//! Frames made, and judged, by etherparse: a parser and builder that shares no code with the engine.

use bg_common::Protocol;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
};
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

    /// The frame, to the MAC address of the loopback.
    pub fn frame(&self) -> Vec<u8> {
        let builder = ip(self.from.ip(), self.to.ip(), self.ttl, self.options);
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
        tagged(bytes, self.tags)
    }
}

/// An ICMP error to build.
#[derive(Clone, Debug)]
pub struct ErrorSpec {
    /// Sender.
    pub from: IpAddr,
    /// Receiver, of the same family.
    pub to: IpAddr,
    /// Type and code.
    pub kind: [u8; 2],
    /// The four bytes behind the checksum.
    pub rest: [u8; 4],
    /// TTL or hop limit.
    pub ttl: u8,
    /// As [`PacketSpec::tags`].
    pub tags: u8,
    /// As [`PacketSpec::options`].
    pub options: u8,
    /// The packet that it is about, from its IP header on, as far as it is quoted.
    pub quoted: Vec<u8>,
}

impl ErrorSpec {
    /// "Too big" about the packet in a frame, quoted as a whole.
    pub fn too_big(from: IpAddr, to: IpAddr, frame: &[u8]) -> Self {
        let kind = if to.is_ipv4() { [3, 4] } else { [2, 0] };
        let quoted = packet_in(frame).to_vec();
        Self { from, to, kind, rest: 1300_u32.to_be_bytes(), ttl: 64, tags: 0, options: 0, quoted }
    }

    /// The frame, to the MAC address of the loopback.
    pub fn frame(&self) -> Vec<u8> {
        let builder = ip(self.from, self.to, self.ttl, self.options);
        let ([kind, code], mut bytes) = (self.kind, Vec::new());
        if self.from.is_ipv4() {
            builder.icmpv4_raw(kind, code, self.rest).write(&mut bytes, &self.quoted).expect("memory takes it");
        } else {
            builder.icmpv6_raw(kind, code, self.rest).write(&mut bytes, &self.quoted).expect("memory takes it");
        }
        tagged(bytes, self.tags)
    }
}

/// A frame to the MAC address of the loopback, by which frames come in a test run.
fn ip(from: IpAddr, to: IpAddr, ttl: u8, options: u8) -> PacketBuilderStep<IpHeaders> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6]);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let any = IpNumber::TCP;
            let mut ip = Ipv4Header::new(0, ttl, any, from.octets(), to.octets()).expect("fits");
            ip.options = vec![1; usize::from(options) * 4].as_slice().try_into().expect("at most ten words");
            builder.ip(IpHeaders::Ipv4(ip, Default::default()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), ttl),
        (from, to) => panic!("{from} and {to} are not of one family"),
    }
}

/// Puts VLAN tags into a frame.
fn tagged(mut frame: Vec<u8>, tags: u8) -> Vec<u8> {
    for tag in 0..tags {
        let protocol: [u8; 2] = if tag == 0 { [0x81, 0x00] } else { [0x88, 0xa8] };
        frame.splice(12..12, [protocol[0], protocol[1], 0, 10 + tag]);
    }
    frame
}

/// The packet in a frame, from its IP header on.
pub fn packet_in(frame: &[u8]) -> &[u8] {
    let is_tag = |at: usize| matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]);
    let tags = (0..2).take_while(|tag| is_tag(12 + 4 * tag)).count();
    &frame[14 + 4 * tags..]
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

/// Whether a frame bears an ICMP message, which has no ports.
pub fn is_icmp(frame: &[u8]) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    matches!(packet.transport, Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)))
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
                TransportSlice::Icmpv4(icmp) => (icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum()),
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
                TransportSlice::Icmpv6(icmp) => {
                    let expected = icmp.icmp_type().calc_checksum(from, to, icmp.payload());
                    (expected.expect("length"), icmp.checksum())
                }
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
