//! Checks of a configuration: whether each backend can be reached, or is an address of this host.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

use bg_common::{Colour, Family, Mode};
use bg_ebpf::egress::outer;

use super::{Finding, network::Network};
use crate::{
    config::{Config, Service, mode_name},
    net::{NeighbourState, NextHop, is_local, mtu, neighbour, next_hop, route_mtu},
};

pub(super) fn examine(config: &Config, network: &Network) -> Vec<Finding> {
    let mut findings = Vec::new();
    for deployment in &config.deployments {
        for service in &deployment.services {
            let subject = format!("{}/{}", deployment.name, service.name);
            let problems: Vec<Finding> = backends(&subject, service, network).collect();
            if problems.is_empty() {
                let message = match service.mode {
                    Mode::Nat => "there is a route to each backend",
                    Mode::Local => "each backend is an address of this host",
                    Mode::Tee => "there is a way to each backend, and the listeners can get packets",
                    Mode::L2dsr => "each backend is on a network of this host",
                    Mode::Ipip | Mode::Gue => "there is a route to each backend",
                };
                findings.push(Finding::ok(&subject, "backends", message));
            } else {
                findings.extend(problems);
            }
            if service.mode == Mode::Tee {
                findings.extend(listeners(&subject, service, network));
            }
            if service.mode == Mode::Nat || service.mode.is_direct() {
                findings.extend(Colour::ALL.map(|colour| neighbours(&subject, service, colour)).into_iter().flatten());
            }
        }
    }
    findings
}

fn backends(subject: &str, service: &Service, network: &Network) -> impl Iterator<Item = Finding> {
    let all = Colour::ALL.into_iter().flat_map(|colour| service.backends(colour));
    all.filter_map(move |backend| {
        let address = backend.address;
        match (service.mode, is_local(address.ip())) {
            (Mode::Nat, true) => Some(Finding::warn(
                subject,
                "backends",
                format!("{address} is an address of this host, to which `nat` sends nothing"),
                "use mode = \"local\"",
            )),
            (Mode::Local, false) => Some(Finding::fail(
                subject,
                "backends",
                format!("{address} is not an address of this host, which `local` needs"),
                "use mode = \"nat\", or add the address to an interface",
            )),
            // The controller connects to it, over the loopback too.
            (Mode::Tee, true) => None,
            (Mode::Nat | Mode::Tee, false) => {
                next_hop(address.ip()).err().map(|error| no_route(subject, address, &error))
            }
            (mode @ (Mode::L2dsr | Mode::Ipip | Mode::Gue), true) => Some(Finding::fail(
                subject,
                "backends",
                format!("{address} is an address of this host, to which `{}` sends nothing", mode_name(mode)),
                "use mode = \"local\"",
            )),
            (Mode::L2dsr, false) => off_link(subject, address),
            (Mode::Ipip | Mode::Gue, false) => tunnel(subject, service, address),
            (Mode::Local, true) => loopback(subject, address.ip(), network),
        }
    })
}

fn no_route(subject: &str, address: SocketAddr, error: &io::Error) -> Finding {
    Finding::fail(subject, "backends", format!("no route to {address}: {error}"), "add a route (ip route add)")
}

/// A gateway would take the packet for its own, or send it back.
fn off_link(subject: &str, address: SocketAddr) -> Option<Finding> {
    match next_hop(address.ip()) {
        Err(error) => Some(no_route(subject, address, &error)),
        Ok(hop) if hop.address != address.ip() => Some(Finding::fail(
            subject,
            "backends",
            format!("{address} is behind the gateway {}, where `l2dsr` does not reach", hop.address),
            "use mode = \"ipip\" or \"gue\", or connect this host to the backend's network",
        )),
        Ok(_) => None,
    }
}

/// Whether the outer headers leave room for the packets that IPv6 clients may always send.
fn tunnel(subject: &str, service: &Service, address: SocketAddr) -> Option<Finding> {
    const LEAST: u32 = 1280;
    let hop = match next_hop(address.ip()) {
        Ok(hop) => hop,
        Err(error) => return Some(no_route(subject, address, &error)),
    };
    let room = u32::from(outer::room(service.mode as u8, Family::of(address.ip()) as u8));
    let mtu = route_mtu(address.ip()).filter(|mtu| *mtu != 0).or_else(|| mtu(hop.ifindex))?;
    (service.vip.is_ipv6() && mtu < LEAST + room).then(|| {
        Finding::warn(
            subject,
            "backends",
            format!("the way to {address} has an MTU of {mtu}: IPv6 packets of {LEAST} bytes and the {room} bytes of the outer headers do not fit, and are lost"),
            format!("use an MTU of {} at least", LEAST + room),
        )
    })
}

/// The listeners of mode `tee` are addresses of this host.
fn listeners(subject: &str, service: &Service, network: &Network) -> Vec<Finding> {
    let listen = service.tee.listen.into_iter().flatten();
    listen
        .filter_map(|address| {
            if is_local(address.ip()) {
                return loopback(subject, address.ip(), network);
            }
            Some(Finding::fail(
                subject,
                "listeners",
                format!("{address} is not an address of this host, so `bgctl serve` cannot listen there"),
                "name an address of this host in `listen`, or add the address to an interface",
            ))
        })
        .collect()
}

/// The kernel drops packets from outside to a loopback address.
fn loopback(subject: &str, address: IpAddr, network: &Network) -> Option<Finding> {
    if !address.is_loopback() {
        return None;
    }
    if address.is_ipv6() {
        return Some(Finding::fail(
            subject,
            "backends",
            format!(
                "{address} never gets a packet from outside: Linux drops packets for it that do not arrive on the loopback interface"
            ),
            "use another address of this host, for example one on a dummy interface or the loopback (ip -6 address add ... dev lo)",
        ));
    }
    let is_on = |name: &str| {
        let setting = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"));
        setting.is_ok_and(|value| value.trim() != "0")
    };
    // The kernel accepts such packets if either setting is on.
    let closed = |index: &&u32| !is_on(&network.name(**index));
    let closed: Vec<u32> = network.attached().iter().filter(closed).copied().collect();
    let is_open = is_on("all") || (closed.is_empty() && !network.attached().is_empty());
    (!is_open).then(|| {
        let key = match closed.first() {
            Some(index) => network.name(*index).replace('.', "/"),
            None => "all".to_owned(),
        };
        Finding::fail(
            subject,
            "backends",
            format!("{address} gets no packet from outside: the kernel drops them unless `route_localnet` is on"),
            format!(
                "use another address of this host; or sysctl -w net.ipv4.conf.{key}.route_localnet=1, and add a firewall rule \
                 for other services on 127.0.0.0/8"
            ),
        )
    })
}

/// Whether the next hops of a colour are known. Packets to a next hop that is not known go by the host's stack until it is,
/// and so do those of the first second after a switch.
fn neighbours(subject: &str, service: &Service, colour: Colour) -> Option<Finding> {
    /// Number of addresses that are listed.
    const NAMED: usize = 4;
    let remote = service.backends(colour).iter().filter(|backend| !is_local(backend.address.ip()));
    let mut hops: Vec<NextHop> = remote.filter_map(|backend| next_hop(backend.address.ip()).ok()).collect();
    hops.sort_by_key(|hop| (hop.ifindex, hop.address));
    hops.dedup();
    let of_state = |wanted| {
        let is = |hop: &&NextHop| neighbour(**hop).is_ok_and(|state| state == wanted);
        hops.iter().filter(is).map(|hop| hop.address.to_string()).collect::<Vec<_>>()
    };
    let shown = |mut addresses: Vec<String>| {
        let more = addresses.len().saturating_sub(NAMED);
        addresses.truncate(NAMED);
        addresses.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    let colour = colour.name();
    let (silent, unknown) = (of_state(NeighbourState::Silent), of_state(NeighbourState::Unknown));
    if let Some(first) = silent.first() {
        let remedy = format!("check that it is up and on this network: ping -c 1 {first}");
        let message = format!("{colour}: {} did not respond to requests for its MAC address", shown(silent.clone()));
        return Some(Finding::warn(subject, "neighbours", message, remedy));
    }
    if let Some(first) = unknown.first() {
        let remedy = format!("ping -c 1 {first}, or send it any packet");
        let message = format!(
            "{colour}: the MAC address of {} is not known, so the first packets to it go by the host's stack and its firewall",
            shown(unknown.clone())
        );
        return Some(Finding::warn(subject, "neighbours", message, remedy));
    }
    (!hops.is_empty()).then(|| Finding::ok(subject, "neighbours", format!("{colour}: all next hops are known")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn findings(mode: &str, blue: &str, green: &str) -> Vec<(Level, String)> {
        let vip = if blue.starts_with('[') { "[2001:db8::10]:443" } else { "203.0.113.10:443" };
        let text = format!(
            "[[deployments.d.services]]\nname = \"s\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"{mode}\"\n\
             blue = [\"{blue}\"]\ngreen = [\"{green}\"]\n"
        );
        let config = crate::config::parse("test".as_ref(), &text).unwrap();
        let network = Network::new(Vec::new(), &[]);
        examine(&config, &network).into_iter().map(|finding| (finding.level, finding.message)).collect()
    }

    #[test]
    fn local_backends_are_addresses_of_this_host() {
        let findings = findings("local", "127.0.0.1:1", "192.0.2.77:1");
        let other = findings.iter().find(|(_, message)| message.starts_with("192.0.2.77:1 is not an address")).unwrap();
        assert_eq!(other.0, Level::Fail);
    }

    #[test]
    fn loopback_addresses_get_nothing_from_outside() {
        let six = findings("local", "[::1]:1", "[::1]:2");
        assert!(
            six.iter().all(|(level, message)| *level == Level::Fail && message.starts_with("::1 never")),
            "{six:?}"
        );
        if fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet").is_ok_and(|value| value.trim() == "0") {
            let four = findings("local", "127.0.0.1:1", "127.0.0.2:1");
            assert!(four.len() == 2 && four[0].1.contains("route_localnet"), "{four:?}");
        }
    }

    #[test]
    fn nat_backends_are_not() {
        let findings = findings("nat", "127.0.0.1:1", "127.0.0.1:2");
        assert!(findings.iter().all(|(level, _)| *level == Level::Warn) && findings.len() == 2, "{findings:?}");
    }
}
