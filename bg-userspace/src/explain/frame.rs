//! The frame of a packet that is explained, and what a frame says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bg_common::Protocol;
use serde::Serialize;

use super::request::ExplainRequest;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// The numbers of a TCP segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
}

/// Builds the frame, to this MAC address.
pub(super) fn build(request: &ExplainRequest, flags: u8, numbers: Numbers, to_mac: [u8; 6]) -> Vec<u8> {
    const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const TTL: u8 = 64;
    let transport = transport(request, flags, numbers);
    let length = transport.len() as u16;
    let protocol = request.protocol as u8;
    let mut frame = [to_mac, SENDER].concat();
    match (request.from.ip(), request.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = (length + IPV4 as u16).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, TTL, protocol, 0, 0];
            header.extend(from.octets().into_iter().chain(to.octets()));
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([0x08, 0x00].into_iter().chain(header));
        }
        (from, to) => {
            let [high, low] = length.to_be_bytes();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, TTL]);
            frame.extend(octets(from).into_iter().chain(octets(to)));
        }
    }
    frame.extend(transport);
    frame
}

/// The transport header, with its checksum.
fn transport(request: &ExplainRequest, flags: u8, numbers: Numbers) -> Vec<u8> {
    let ports = [request.from.port().to_be_bytes(), request.to.port().to_be_bytes()].concat();
    let (mut segment, checksum_at) = match request.protocol {
        Protocol::Tcp => {
            let [sequence, acknowledgment] = [numbers.sequence, numbers.acknowledgment].map(u32::to_be_bytes);
            let rest: [u8; 8] = [0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
            ([&ports[..], &sequence, &acknowledgment, &rest].concat(), 16)
        }
        Protocol::Udp => ([&ports[..], &[0, 8, 0, 0]].concat(), 6),
    };
    let pseudo_header = [
        &octets(request.from.ip())[..],
        &octets(request.to.ip()),
        &[0, request.protocol as u8, 0, segment.len() as u8],
    ]
    .concat();
    let sum = match checksum(&[&pseudo_header, &segment]) {
        0 => 0xffff,
        sum => sum,
    };
    segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// The Internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words =
        parts.iter().flat_map(|part| part.chunks(2)).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What a frame says after a program has processed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packet {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Source MAC address.
    pub source_mac: String,
    /// Destination MAC address.
    pub destination_mac: String,
    /// The whole frame.
    #[serde(skip)]
    pub frame: Vec<u8>,
}

impl Packet {
    /// Reads a frame as [`build`] makes it. `None`: it is none.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let address = |at: usize, length: usize| -> Option<IpAddr> {
            let octets = frame.get(at..at + length)?;
            match length {
                4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()),
                _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into()),
            }
        };
        let (source, destination, l4, ttl) = match frame.get(12..14)? {
            [0x08, 0x00] => (address(ETHERNET + 12, 4)?, address(ETHERNET + 16, 4)?, ETHERNET + IPV4, frame[22]),
            _ => (address(ETHERNET + 8, 16)?, address(ETHERNET + 24, 16)?, ETHERNET + IPV6, *frame.get(21)?),
        };
        let port = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let mac =
            |at: usize| mac(u64::from_le_bytes([&frame[at..at + 6], &[0; 2]].concat().try_into().unwrap_or_default()));
        Some(Self {
            source: SocketAddr::new(source, port(l4)?),
            destination: SocketAddr::new(destination, port(l4 + 2)?),
            ttl,
            source_mac: mac(6),
            destination_mac: mac(0),
            frame: frame.to_vec(),
        })
    }
}

/// A MAC address in a word, its first byte lowest.
pub(super) fn mac(word: u64) -> String {
    word.to_le_bytes()[..6].iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(from: &str, to: &str, protocol: Protocol) -> ExplainRequest {
        ExplainRequest { from: from.parse().unwrap(), to: to.parse().unwrap(), protocol, flags: None, interface: None }
    }

    #[test]
    fn a_frame_reads_back_and_its_checksums_are_right() {
        for (from, to) in [("198.51.100.7:40000", "203.0.113.10:443"), ("[2001:db8:1::7]:40000", "[2001:db8::10]:443")]
        {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let request = request(from, to, protocol);
                let numbers = Numbers { sequence: 0x0102_0304, acknowledgment: 0x0506_0708 };
                let frame = build(&request, 0x12, numbers, [0x02, 1, 2, 3, 4, 5]);
                let packet = Packet::read(&frame).unwrap();
                assert_eq!((packet.source, packet.destination, packet.ttl), (request.from, request.to, 64));
                assert_eq!(packet.destination_mac, "02:01:02:03:04:05");
                let l4 = ETHERNET + if request.from.is_ipv4() { IPV4 } else { IPV6 };
                let length = (frame.len() - l4) as u8;
                let pseudo_header =
                    [&octets(request.from.ip())[..], &octets(request.to.ip()), &[0, protocol as u8, 0, length]]
                        .concat();
                assert_eq!(checksum(&[&pseudo_header, &frame[l4..]]), 0);
                if request.from.is_ipv4() {
                    assert_eq!(checksum(&[&frame[ETHERNET..l4]]), 0);
                }
            }
        }
    }
}
