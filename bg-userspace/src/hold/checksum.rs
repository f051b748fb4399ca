//! Finishing checksums. A packet from a stack of this machine has a transport checksum that a network card would finish, and its bytes
//! do not tell. A packet that is played back is one off a wire.

use bg_common::Protocol;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLANS: [u16; 2] = [0x8100, 0x88a8];

/// Finishes the transport checksum of a frame, if it is not finished: if it is wrong, and equal to the sum of the pseudo-header, which is
/// where a sender leaves it. Every other frame stays as it is.
pub(crate) fn finish(frame: &mut [u8]) {
    let Some(transport) = Transport::find(frame) else { return };
    let Some(segment) = frame.get_mut(transport.start..transport.end) else { return };
    let at = match transport.protocol {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
    };
    let Some(stored) = be16(segment, at) else { return };
    let is_absent = transport.protocol == Protocol::Udp && stored == 0;
    if is_absent || fold(transport.pseudo_header + sum(segment)) == 0xffff || stored != fold(transport.pseudo_header) {
        return;
    }
    segment[at..at + 2].fill(0);
    let finished = !fold(transport.pseudo_header + sum(segment));
    // A computed zero is sent as its twin.
    segment[at..at + 2].copy_from_slice(&(if finished == 0 { 0xffff } else { finished }).to_be_bytes());
}

/// Where the transport header is, and the sum of its pseudo-header.
struct Transport {
    start: usize,
    end: usize,
    protocol: Protocol,
    pseudo_header: u32,
}

impl Transport {
    fn find(frame: &[u8]) -> Option<Self> {
        let mut at = 12;
        for _ in 0..2 {
            if VLANS.contains(&be16(frame, at)?) {
                at += 4;
            }
        }
        let ip = at + 2;
        let (start, end, protocol, addresses) = match be16(frame, at)? {
            IPV4 => {
                let header = 4 * usize::from(frame.get(ip)? & 0xf);
                (ip + header, ip + usize::from(be16(frame, ip + 2)?), *frame.get(ip + 9)?, ip + 12..ip + 20)
            }
            IPV6 => (ip + 40, ip + 40 + usize::from(be16(frame, ip + 4)?), *frame.get(ip + 6)?, ip + 8..ip + 40),
            _ => return None,
        };
        let protocol = Protocol::from_u8(protocol)?;
        let len = u32::try_from(end.checked_sub(start)?).ok()?;
        let pseudo_header = sum(frame.get(addresses)?) + protocol as u32 + len;
        Some(Self { start, end, protocol, pseudo_header })
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The sum of all 16-bit words. An odd byte at the end is the upper half of a word.
fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

/// The ones' complement sum of both halves.
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame to VIP 203.0.113.10 or its like in IPv6, with a finished checksum, and where that is.
    fn frame(is_v6: bool, is_tcp: bool, tags: usize, payload: &[u8]) -> (Vec<u8>, usize) {
        let (protocol, header, field) = if is_tcp { (6, 20, 16) } else { (17, 8, 6) };
        let len = header + payload.len();
        let mut frame = vec![2; 12];
        frame.extend([0x81, 0, 0, 7].repeat(tags));
        if is_v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, 64]);
            frame.extend([0x20, 1, 0xd, 0xb8].repeat(8));
        } else {
            let total = 20 + len;
            frame.extend([8, 0, 0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend([198, 51, 100, 2, 203, 0, 113, 10]);
        }
        let start = frame.len();
        frame.extend([0x12, 0x34, 0, 80]);
        frame.resize(start + header, 1);
        frame[start + field..start + field + 2].fill(0);
        frame.extend(payload);
        let transport = Transport::find(&frame).unwrap();
        let finished = !fold(transport.pseudo_header + sum(&frame[start..]));
        let finished = if finished == 0 { 0xffff } else { finished };
        frame[start + field..start + field + 2].copy_from_slice(&finished.to_be_bytes());
        (frame, start + field)
    }

    proptest! {
        #[test]
        fn an_unfinished_checksum_becomes_the_finished_one(
            is_v6: bool, is_tcp: bool, tags in 0..3_usize, payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let (finished, field) = frame(is_v6, is_tcp, tags, &payload);
            let mut same = finished.clone();
            finish(&mut same);
            prop_assert_eq!(&same, &finished, "a finished one stays");

            let mut unfinished = finished.clone();
            let pseudo_header = fold(Transport::find(&finished).unwrap().pseudo_header);
            unfinished[field..field + 2].copy_from_slice(&pseudo_header.to_be_bytes());
            finish(&mut unfinished);
            prop_assert_eq!(&unfinished, &finished);

            // Padding of a short frame does not belong to the segment.
            unfinished.extend([0xaa; 7]);
            unfinished[field..field + 2].copy_from_slice(&pseudo_header.to_be_bytes());
            finish(&mut unfinished);
            prop_assert_eq!(&unfinished[..finished.len()], &finished[..]);
        }

        #[test]
        fn a_corrupt_packet_is_not_repaired(payload in prop::collection::vec(any::<u8>(), 2..64), at in 0..2_usize) {
            let (mut corrupt, _) = frame(false, true, 0, &payload);
            let last = corrupt.len() - 1 - at;
            corrupt[last] ^= 0x55;
            let before = corrupt.clone();
            finish(&mut corrupt);
            prop_assert_eq!(corrupt, before);
        }

        #[test]
        fn any_bytes_are_taken(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            finish(&mut bytes);
        }
    }

    #[test]
    fn a_datagram_without_a_checksum_stays_without() {
        let (mut datagram, field) = frame(false, false, 0, b"hello");
        datagram[field..field + 2].fill(0);
        let before = datagram.clone();
        finish(&mut datagram);
        assert_eq!(datagram, before);
    }
}
