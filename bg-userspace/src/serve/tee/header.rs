//! The header of the PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt): whose connection this is.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header of a connection of `client` to `destination`. Both are of one family.
pub(super) fn header(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if client.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 };
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [client, destination].map(|address| address.port().to_be_bytes());
    let body = [octets(client), octets(destination), ports.concat()].concat();
    let head = [&SIGNATURE[..], &[PROXY, family], &(body.len() as u16).to_be_bytes()].concat();
    [head, body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_have_the_bytes_of_the_specification() {
        let four = header("198.51.100.7:4660".parse().unwrap(), "203.0.113.10:443".parse().unwrap());
        assert_eq!(four[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert_eq!(four[16..], [198, 51, 100, 7, 203, 0, 113, 10, 0x12, 0x34, 1, 187]);
        let six = header("[2001:db8::7]:4660".parse().unwrap(), "[2001:db8::10]:443".parse().unwrap());
        assert_eq!((six[13], six[14], six[15], six.len()), (0x21, 0, 36, 52));
        assert_eq!((six[16..18].to_vec(), six[31], six[47]), (vec![0x20, 1], 7, 0x10));
        assert_eq!(six[48..], [0x12, 0x34, 1, 187]);
    }
}
