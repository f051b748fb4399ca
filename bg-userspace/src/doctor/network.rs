//! The interfaces of the host: how they depend on each other, and which of them face clients or backends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bg_common::Mode;

use crate::{
    attach::{AttachedInterface, InterfaceState},
    config::{Config, Prefix},
    net::{Interface, next_hop},
};

/// Addresses for documentation. The route to them is the route to the rest of the world.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 1))];

/// All interfaces, and which of them the instance is attached to.
pub(super) struct Network {
    interfaces: Vec<Interface>,
    attached: Vec<u32>,
}

impl Network {
    pub(super) fn new(interfaces: Vec<Interface>, instance: &[AttachedInterface]) -> Self {
        let works = |interface: &&Interface| {
            instance.iter().any(|it| it.state == InterfaceState::Attached && it.name == interface.name)
        };
        let attached = interfaces.iter().filter(works).map(|interface| interface.index).collect();
        Self { interfaces, attached }
    }

    /// Whether the interface, the interface below it, or a port of it carries the programs.
    pub(super) fn is_attached(&self, ifindex: u32) -> bool {
        let is = |index: u32| self.attached.contains(&index);
        let lower = self.interface(ifindex).and_then(|interface| interface.lower);
        let mut ports = self.interfaces.iter().filter(|port| port.master == Some(ifindex));
        is(ifindex) || lower.is_some_and(|lower| self.is_attached(lower)) || ports.any(|port| is(port.index))
    }

    /// Whether an interface is a port of another one, or is below it.
    pub(super) fn is_port_of(&self, port: u32, ifindex: u32) -> bool {
        let is_port = self.interface(port).is_some_and(|port| port.master == Some(ifindex));
        is_port || self.interface(ifindex).is_some_and(|upper| upper.lower == Some(port))
    }

    pub(super) fn attached(&self) -> &[u32] {
        &self.attached
    }

    pub(super) fn attached_interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|interface| self.attached.contains(&interface.index))
    }

    pub(super) fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    pub(super) fn name(&self, ifindex: u32) -> String {
        self.interface(ifindex).map_or_else(|| format!("index {ifindex}"), |interface| interface.name.clone())
    }

    pub(super) fn names(&self, indexes: &[u32]) -> String {
        indexes.iter().map(|index| self.name(*index)).collect::<Vec<_>>().join(", ")
    }

    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == ifindex)
    }

    /// The interfaces by which backends of `nat` services are reached.
    pub(super) fn towards_backends(&self, config: &Config) -> Vec<u32> {
        let services = config.deployments.iter().flat_map(|deployment| &deployment.services);
        let nat = services.filter(|service| service.mode == Mode::Nat);
        by_the_way_to(nat.flat_map(|service| service.backends.iter().flatten()).map(|backend| backend.address.ip()))
    }

    /// The interfaces at which clients are likely to arrive: those towards testers and the rest of the world.
    pub(super) fn towards_clients(&self, config: &Config) -> Vec<u32> {
        let testers = config.deployments.iter().flat_map(|deployment| &deployment.testers);
        by_the_way_to(ANYWHERE.into_iter().chain(testers.map(|Prefix { addr, .. }| *addr)))
    }

    /// The interfaces at which clients may arrive if nothing else is known: Ethernet, up, not the loopback.
    pub(super) fn others(&self, known: &[u32]) -> Vec<u32> {
        let may = |interface: &&Interface| {
            interface.up && interface.arphrd == crate::net::ARPHRD_ETHER && !known.contains(&interface.index)
        };
        self.interfaces.iter().filter(may).map(|interface| interface.index).collect()
    }
}

fn by_the_way_to(addresses: impl Iterator<Item = IpAddr>) -> Vec<u32> {
    const LOOPBACK: u32 = 1;
    let mut indexes: Vec<u32> = addresses.filter_map(|address| Some(next_hop(address).ok()?.ifindex)).collect();
    indexes.sort_unstable();
    indexes.dedup();
    // The loopback interface leads to the host itself.
    indexes.retain(|index| *index != LOOPBACK);
    indexes
}
