//! The host's route to one address, and its neighbours.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use super::{
    NetError,
    netlink::{self, attribute, attributes, u16_at, u32_at},
};
use crate::config::Prefix;

// linux/neighbour.h.
pub(super) const NDA_DST: u16 = 1;
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;

/// The next hop to which the host sends packets for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NextHop {
    /// The index of the interface by which they leave.
    pub(crate) ifindex: u32,
    /// The router, or the address itself if it is on the link.
    pub(crate) address: IpAddr,
}

/// Looks up the next hop to an address.
pub(crate) fn next_hop(to: IpAddr) -> io::Result<NextHop> {
    way(to).map(|(hop, _)| hop)
}

/// Looks up the next hop to an address, and the address of this host from which packets go there.
pub(crate) fn way(to: IpAddr) -> io::Result<(NextHop, Option<IpAddr>)> {
    // struct rtmsg: family, length of the destination, and fields that a look-up does not set.
    let mut request = vec![0; 12];
    (request[0], request[1]) = (family(to), if to.is_ipv4() { 32 } else { 128 });
    request.extend(attribute(libc::RTA_DST, &octets(to)));
    let answer = netlink::request(libc::RTM_GETROUTE, &request)?;
    let (mut ifindex, mut address, mut source) = (None, to, None);
    for (kind, value) in attributes(answer.get(12..).unwrap_or_default()) {
        match kind {
            libc::RTA_OIF => ifindex = u32_at(value, 0),
            libc::RTA_GATEWAY => address = address_of(value).unwrap_or(to),
            // The router of an IPv4 route may have an IPv6 address: family, then bytes.
            libc::RTA_VIA => address = value.get(2..).and_then(address_of).unwrap_or(to),
            libc::RTA_PREFSRC => source = address_of(value),
            _ => {}
        }
    }
    let ifindex = ifindex.ok_or(io::ErrorKind::HostUnreachable)?;
    Ok((NextHop { ifindex, address }, source))
}

/// Whether an address is this host's own, or has a route of its own and not only that of a network.
#[cfg(feature = "serve")]
pub(crate) fn has_route_of_its_own(address: IpAddr) -> bool {
    /// linux/rtnetlink.h: what is wanted is the route itself.
    const RTM_F_FIB_MATCH: u32 = 0x2000;
    /// How much shorter the prefix may be than the address: networks of two have no room for others.
    const BITS: u8 = 2;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let mut request = vec![0; 12];
    (request[0], request[1]) = (family(address), bits);
    request[8..12].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
    request.extend(attribute(libc::RTA_DST, &octets(address)));
    let answer = netlink::request(libc::RTM_GETROUTE, &request).unwrap_or_default();
    answer.get(1).is_some_and(|len| *len >= bits - BITS)
}

/// The MTU of a route (`ip route ... mtu`), or what was learned of its path. `None`: it is that of the interface.
pub(crate) fn route_mtu(to: IpAddr) -> Option<u32> {
    /// `RTAX_MTU` of linux/rtnetlink.h, in `RTA_METRICS`.
    const RTAX_MTU: u16 = 2;
    let mut request = vec![0; 12];
    (request[0], request[1]) = (family(to), if to.is_ipv4() { 32 } else { 128 });
    request.extend(attribute(libc::RTA_DST, &octets(to)));
    let answer = netlink::request(libc::RTM_GETROUTE, &request).ok()?;
    let (_, metrics) = attributes(answer.get(12..)?).find(|(kind, _)| *kind == libc::RTA_METRICS)?;
    attributes(metrics).find(|(kind, _)| *kind == RTAX_MTU).and_then(|(_, value)| u32_at(value, 0))
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The index of its interface.
    pub(crate) ifindex: u32,
    /// The address.
    pub(crate) ip: IpAddr,
    /// The length of its network's prefix.
    pub(crate) len: u8,
}

impl Address {
    /// The network that the interface is connected to by this address.
    pub(crate) fn network(&self) -> Prefix {
        let addr = match self.ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & mask).into()
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        };
        Prefix { addr, len: self.len }
    }
}

/// All addresses of this host.
pub(crate) fn addresses() -> Result<Vec<Address>, NetError> {
    let mut all = Vec::new();
    netlink::dump(libc::RTM_GETADDR, &[0; 8], |payload| all.extend(address_in(payload)))?;
    Ok(all)
}

fn address_in(payload: &[u8]) -> Option<Address> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index. Of a point-to-point interface, the local address is another attribute.
    let (len, ifindex) = (*payload.get(1)?, u32_at(payload, 4)?);
    let of_kind = |wanted| attributes(payload.get(8..).unwrap_or_default()).find(|(kind, _)| *kind == wanted);
    let (_, value) = of_kind(libc::IFA_LOCAL).or_else(|| of_kind(libc::IFA_ADDRESS))?;
    Some(Address { ifindex, ip: address_of(value)?, len })
}

/// The MTU of an interface. `None`: there is no such interface.
pub(crate) fn mtu(ifindex: u32) -> Option<u32> {
    // struct ifinfomsg: family, type, index, flags, change.
    let mut request = vec![0; 16];
    request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = netlink::request(libc::RTM_GETLINK, &request).ok()?;
    let mut found = attributes(answer.get(16..)?);
    found.find(|(kind, _)| *kind == libc::IFLA_MTU).and_then(|(_, value)| u32_at(value, 0))
}

/// Whether this is an address of this host, to which alone a socket can be bound.
pub(crate) fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// What the host knows about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NeighbourState {
    /// Its MAC address is known.
    Known,
    /// Its MAC address was not requested, or is no longer kept.
    Unknown,
    /// It does not respond to requests for its MAC address.
    Silent,
}

/// Looks up a neighbour without sending a request to it.
pub(crate) fn neighbour(hop: NextHop) -> io::Result<NeighbourState> {
    // struct ndmsg: family, index, state, flags, type.
    let mut request = vec![0; 12];
    request[0] = family(hop.address);
    request[4..8].copy_from_slice(&hop.ifindex.to_ne_bytes());
    request.extend(attribute(NDA_DST, &octets(hop.address)));
    match netlink::request(libc::RTM_GETNEIGH, &request) {
        Ok(answer) => Ok(match u16_at(&answer, 8) {
            Some(state) if state & NUD_FAILED != 0 => NeighbourState::Silent,
            Some(state) if state != 0 && state & NUD_INCOMPLETE == 0 => NeighbourState::Known,
            _ => NeighbourState::Unknown,
        }),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(NeighbourState::Unknown),
        Err(error) => Err(error),
    }
}

pub(super) fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn address_of(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_an_address_of_this_host_is_the_loopback() {
        let hop = next_hop(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert_eq!(hop, NextHop { ifindex: 1, address: Ipv4Addr::LOCALHOST.into() });
        let expected = (hop, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(way(Ipv4Addr::LOCALHOST.into()).unwrap(), expected);
        assert_eq!(
            neighbour(NextHop { ifindex: 1, address: Ipv4Addr::new(192, 0, 2, 1).into() }).unwrap(),
            NeighbourState::Unknown
        );
    }
}
