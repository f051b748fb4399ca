//! A packet as etherparse sees it, which shares no code with the engine.

use etherparse::{
    EtherType, LaxNetSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords,
};
use std::net::{IpAddr, SocketAddr};

/// IANA numbers.
pub const TCP: u8 = 6;
/// See above.
pub const UDP: u8 = 17;

/// The network header of a frame, and what can be told of what follows. Lengths may lie.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Offset of the network header.
    pub l3: usize,
    /// Offset of what follows it, without regard to extension headers.
    pub l4: usize,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The first four bytes behind the header, if they are there.
    pub ports: Option<[u16; 2]>,
    /// Protocol that the header announces.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Whether the header says that it is a fragment.
    pub is_fragment: bool,
    /// Bytes of the packet as the header tells, header included.
    pub len: usize,
}

impl Look {
    /// Of a frame. `None`: there is no IP header.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
        let offset = |header: &[u8]| header.as_ptr() as usize - frame.as_ptr() as usize;
        let look = match packet.net? {
            LaxNetSlice::Ipv4(ip) => {
                let header = ip.header();
                let l3 = offset(header.slice());
                Self {
                    l3,
                    l4: l3 + usize::from(header.ihl()) * 4,
                    src: header.source_addr().into(),
                    dst: header.destination_addr().into(),
                    ports: None,
                    protocol: header.protocol().0,
                    hop_limit: header.ttl(),
                    is_fragment: header.is_fragmenting_payload(),
                    len: header.total_len().into(),
                }
            }
            LaxNetSlice::Ipv6(ip) => {
                let header = ip.header();
                let l3 = offset(header.slice());
                Self {
                    l3,
                    l4: l3 + 40,
                    src: header.source_addr().into(),
                    dst: header.destination_addr().into(),
                    ports: None,
                    protocol: header.next_header().0,
                    hop_limit: header.hop_limit(),
                    is_fragment: false,
                    len: 40 + usize::from(header.payload_length()),
                }
            }
            LaxNetSlice::Arp(_) => return None,
        };
        let ports = frame.get(look.l4..look.l4 + 4).map(|bytes| {
            let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            [port(0), port(2)]
        });
        Some(Self { ports, ..look })
    }

    /// Whether it has ports.
    pub fn is_transport(&self) -> bool {
        matches!(self.protocol, TCP | UDP) && !self.is_fragment && self.ports.is_some()
    }

    /// Whether it is an ICMP message of its own version of IP.
    pub fn is_icmp(&self) -> bool {
        self.protocol == if self.src.is_ipv4() { 1 } else { 58 } && !self.is_fragment
    }

    /// Source and destination.
    pub fn ends(&self) -> Option<[SocketAddr; 2]> {
        let [from, to] = self.ports?;
        Some([SocketAddr::new(self.src, from), SocketAddr::new(self.dst, to)])
    }
}

/// Whether the frame is a TCP segment or UDP datagram whose lengths fit each other and the frame, without extension headers.
pub fn is_whole(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return false };
    let has_extensions = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => !ip.extensions().is_empty(),
        Some(NetSlice::Ipv6(ip)) => !ip.extensions().is_empty() || ip.header().payload_length() == 0,
        _ => true,
    };
    let is_transport = match &packet.transport {
        Some(TransportSlice::Tcp(_)) => true,
        // Zero is "up to the end", for packets that are longer than the field can tell.
        Some(TransportSlice::Udp(udp)) => udp.length() >= 8,
        _ => false,
    };
    is_transport && !has_extensions
}

/// Whether the frame has at most two tags, of the protocols that the engine knows, and nothing else in front of its network header.
pub fn has_known_tags(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return false };
    let tag = |at: usize| frame.get(at..at + 2).map(|bytes| EtherType(u16::from_be_bytes([bytes[0], bytes[1]])));
    let is_known =
        |nth: usize| matches!(tag(12 + 4 * nth), Some(EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING));
    packet.link_exts.len() <= 2 && (0..packet.link_exts.len()).all(is_known)
}

/// Whether the checksums of the packet that begins at `l3` are there and right. A UDP checksum that is left out is right. `None`: it cannot be told, since the
/// packet is cut short, or is of another kind.
pub fn sums(packet: &[u8]) -> Option<bool> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (header_is_right, pseudo) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let is_right = Sum16BitWords::new().add_slice(header.slice()).ones_complement() == 0;
            (is_right, Sum16BitWords::new().add_slice(&header.source()).add_slice(&header.destination()))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (true, Sum16BitWords::new().add_slice(&header.source()).add_slice(&header.destination()))
        }
        NetSlice::Arp(_) => return None,
    };
    let is_v4 = matches!(sliced.net, Some(NetSlice::Ipv4(_)));
    let segment = sliced.ip_payload()?.payload;
    let sum_of = |segment: &[u8], protocol: u8| {
        let len = (segment.len() as u32).to_be_bytes();
        pseudo.add_slice(&len).add_2bytes([0, protocol]).add_slice(segment).ones_complement() == 0
    };
    let is_right = match sliced.transport? {
        TransportSlice::Tcp(_) => sum_of(segment, TCP),
        TransportSlice::Udp(udp) if udp.checksum() == 0 => true,
        TransportSlice::Udp(udp) => sum_of(segment.get(..usize::from(udp.length()))?, UDP),
        TransportSlice::Icmpv4(_) if is_v4 => Sum16BitWords::new().add_slice(segment).ones_complement() == 0,
        TransportSlice::Icmpv6(_) if !is_v4 => sum_of(segment, 58),
        _ => return None,
    };
    Some(header_is_right && is_right)
}

/// Whether the checksum of an IPv4 header is right.
pub fn header_sum(header: &[u8]) -> bool {
    Sum16BitWords::new().add_slice(header).ones_complement() == 0
}
