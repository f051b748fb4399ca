//! The way to a backend, as the data path would find it: next hop, outer addresses, and the address of this host to which the backend replies.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use bg_common::{Addr, Be16, CheckWay, Family, Mode};

use super::target::{Target, Trouble};
use crate::{
    net::{self, LOOPBACK},
    tunnels,
};

/// A way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// By which interface.
    pub(super) ifindex: u32,
    pub(super) vip: IpAddr,
    /// The address of this host to which the backend replies.
    pub(super) client: IpAddr,
    outer_source: Addr,
    backend: IpAddr,
    next_hop: IpAddr,
    mode: Mode,
    gue_port: u16,
    hash: u32,
}

impl Way {
    /// Looks for it anew: routes and addresses may have changed since the last check.
    pub(super) fn find(target: &Target, backend: SocketAddr) -> Result<Self, Trouble> {
        let (vip, mode, backend) = (target.vip, target.mode, backend.ip());
        let (hop, source) = net::way(backend).map_err(|error| no_way(&error))?;
        if hop.ifindex == LOOPBACK {
            return Err(Trouble::Unable("it is an address of this host".to_owned()));
        }
        if mode == Mode::L2dsr && hop.address != backend {
            let why = format!("no way to it: mode l2dsr needs a neighbour, and the route leads by {}", hop.address);
            return Err(Trouble::NoWay(why));
        }
        let hash = random();
        let outer_source = match mode.is_tunnel() {
            true => tunnels::outer_source(&target.encap, backend, source, hash)
                .ok_or_else(|| Trouble::NoWay("no way to it: this host has no source address for it".to_owned()))?,
            false => Addr::default(),
        };
        let client = source
            .filter(|source| source.is_ipv4() == vip.is_ipv4() && *source != vip)
            .map_or_else(|| other_address(vip, hop.ifindex), |source| Ok(Some(source)))?
            .ok_or_else(|| Trouble::Unable(format!("this host has no address to which it could reply from {vip}")))?;
        let (gue_port, next_hop) = (target.encap.gue_port, hop.address);
        Ok(Self { ifindex: hop.ifindex, vip, client, outer_source, backend, next_hop, mode, gue_port, hash })
    }

    /// What the program reads.
    pub(super) fn row(&self) -> CheckWay {
        CheckWay {
            vip: self.vip.into(),
            client: self.client.into(),
            outer_source: self.outer_source,
            backend: self.backend.into(),
            next_hop: self.next_hop.into(),
            ifindex: self.ifindex,
            hash: self.hash,
            gue_port: Be16::new(self.gue_port),
            mode: self.mode as u8,
            family: family(self.backend) as u8,
            next_hop_family: family(self.next_hop) as u8,
            reserved: [0; 3],
        }
    }
}

pub(super) const fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// An address of this host of the virtual one's family, of the interface towards the backend if it has one.
fn other_address(vip: IpAddr, ifindex: u32) -> Result<Option<IpAddr>, Trouble> {
    let unread = |error| Trouble::Unable(format!("the addresses of this host could not be read: {error}"));
    let addresses = net::addresses().map_err(unread)?;
    // Those of the loopback interface are mostly virtual ones.
    let may_be = |address: &&net::Address| {
        let is_of_link = match address.ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
        };
        address.ip.is_ipv4() == vip.is_ipv4() && address.ip != vip && !is_of_link && address.ifindex != LOOPBACK
    };
    let there = addresses.iter().filter(may_be).find(|address| address.ifindex == ifindex);
    Ok(there.or_else(|| addresses.iter().find(may_be)).map(|address| address.ip))
}

/// Only what the kernel says of the routes says something of the backend.
fn no_way(error: &io::Error) -> Trouble {
    /// No route, one to nowhere, one that is forbidden.
    const NO_ROUTE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];
    let is_of_routes = match error.raw_os_error() {
        Some(number) => NO_ROUTE.contains(&number),
        None => error.kind() == io::ErrorKind::HostUnreachable,
    };
    match is_of_routes {
        true => Trouble::NoWay(format!("no way to it: {error}")),
        false => Trouble::Unable(format!("its route could not be looked up: {error}")),
    }
}

fn random() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_route_says_something_of_the_backend() {
        let is_of_backend = |number| matches!(no_way(&io::Error::from_raw_os_error(number)), Trouble::NoWay(_));
        assert!([libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL].into_iter().all(is_of_backend));
        assert!(![libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EPERM].into_iter().any(is_of_backend));
        assert!(matches!(no_way(&io::ErrorKind::HostUnreachable.into()), Trouble::NoWay(_)));
    }
}
