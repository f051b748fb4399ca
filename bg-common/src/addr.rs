//! Addresses and ports in network byte order, as types.

use bytemuck::{Pod, Zeroable};

/// An IPv4 or IPv6 address in wire format, in four words. An IPv4 address is the first word, and the
/// others are zero. The family is given separately, and never guessed from the zeros.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// An IPv4 address from its four bytes.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([u32::from_ne_bytes(octets), 0, 0, 0])
    }

    /// An IPv6 address from its sixteen bytes.
    #[inline(always)]
    pub const fn v6(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The sixteen bytes. An IPv4 address is in the first four.
    pub fn octets(self) -> [u8; 16] {
        bytemuck::cast(self.0)
    }

    /// The address as a type of the standard library.
    pub fn to_ip(self, family: Family) -> core::net::IpAddr {
        let o = self.octets();
        match family {
            Family::V4 => core::net::IpAddr::from([o[0], o[1], o[2], o[3]]),
            Family::V6 => core::net::IpAddr::from(o),
        }
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(ip) => Self::v4(ip.octets()),
            core::net::IpAddr::V6(ip) => Self::v6(ip.octets()),
        }
    }
}

/// Sixteen bits in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Be16(pub u16);

impl Be16 {
    /// Converts from the host's byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// Converts to the host's byte order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// The address family of a service, its backends and its flows.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl Family {
    /// The family with this number in a map, if there is one.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }

    /// The family of an address.
    pub const fn of(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(_) => Self::V4,
            core::net::IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Transport protocol, by its IANA number.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp = 6,
    /// User Datagram Protocol.
    Udp = 17,
}

impl Protocol {
    /// The protocol with this IANA number, if it is TCP or UDP.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

crate::assert_layout!(Addr, size 16, align 4);
crate::assert_layout!(Be16, size 2, align 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_wire_bytes() {
        let ip: core::net::IpAddr = "203.0.113.10".parse().unwrap();
        assert_eq!(Addr::from(ip).octets()[..4], [203, 0, 113, 10]);
        assert_eq!(Addr::from(ip).octets()[4..], [0; 12]);
        assert_eq!(Addr::from(ip).to_ip(Family::V4), ip);
        let ip: core::net::IpAddr = "2001:db8::10".parse().unwrap();
        assert_eq!(Addr::from(ip).to_ip(Family::V6), ip);
    }

    #[test]
    fn a_port_stands_in_network_order() {
        assert_eq!(bytemuck::bytes_of(&Be16::new(0x01bb)), [0x01, 0xbb]);
        assert_eq!(Be16::new(443).host(), 443);
    }
}
