//! Requests to rtnetlink, and the attributes of its responses.
//!
//! Only the attributes that bgctl needs are read. Other attributes in a message are ignored, for example a name that is not UTF-8, or an
//! attribute that a later kernel has added.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::error::NetError;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP: u16 = 0x300;

/// Requests all objects of a type. `body` is the fixed part of the request. `each` gets the payload of each response.
pub(super) fn dump(kind: u16, body: &[u8], each: impl FnMut(&[u8])) -> Result<(), NetError> {
    exchange(kind, NLM_F_REQUEST | NLM_F_DUMP, body, each).map_err(NetError::Socket)
}

/// Requests one object. Returns the payload of the response.
pub(super) fn request(kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    exchange(kind, NLM_F_REQUEST | NLM_F_ACK, body, |payload| answer = payload.to_vec())?;
    Ok(answer)
}

/// Requests a change. `flags` say what may exist already (`NLM_F_CREATE` and the like).
pub(super) fn change(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    exchange(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body, |_| {})
}

/// One attribute in wire format.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len());
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes after the fixed part of a payload, or those of a nested attribute, as type and value. Ends at the
/// first damaged attribute.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The type without the flags for nested attributes and for network byte order.
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(u16_at(bytes, 0)?), u16_at(bytes, 2)? & TYPE);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A string from the kernel, which ends before its zero byte. Bytes that are not UTF-8 are replaced.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|octet| *octet == 0).next().unwrap_or_default()).into_owned()
}

fn exchange(kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // The number of the request, and the port, which the kernel fills in.
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    socket.send(&message, 0)?;

    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
            let length = length as usize;
            let payload = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return match u32_at(payload, 0).map(|code| code as i32) {
                        Some(0) => Ok(()),
                        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                _ => each(payload),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let bytes = [attribute(3, b"caf\xe9\0"), attribute(4, &1500_u32.to_ne_bytes())].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"caf\xe9\0"[..]), (4, &1500_u32.to_ne_bytes()[..])]);
        assert_eq!(text(read[0].1), "caf\u{fffd}");
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 1, "one that is cut off is none");
    }

    #[test]
    fn an_error_of_the_kernel_keeps_its_number() {
        // RTM_GETLINK, of an interface that cannot be.
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        assert_eq!(request(18, &body).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
