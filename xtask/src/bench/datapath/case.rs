//! The cases that are measured: a service with one backend, and packets between it and a client.

use super::super::test_run::{Hook, REDIRECT, TC_REDIRECT, TC_UNSPEC, TX};
use anyhow::Result;
use bg_common::{Mode, Protocol};
use bg_tests::twin::{BackendAt, Scenario, ServiceAt};
use std::net::{IpAddr, SocketAddr};

/// Indexes of the edge's interfaces.
#[derive(Clone, Copy)]
pub(super) struct Sides {
    pub(super) client: u32,
    pub(super) backend: u32,
}

/// The direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client to the backend.
    Forward,
    /// From the backend to the client.
    Reply,
}

/// The path of packets through the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through XDP, from one interface to the other.
    Xdp,
    /// Through XDP. All packets arrive at the backends' interface. Those to the backend also leave by it, so `ingress` returns
    /// `XDP_TX` for them.
    OneArmed,
    /// Through tc, from one interface to the other.
    Tc,
    /// Through tc, to and from the host's own stack, which runs the backend.
    Local,
}

/// A service, a client and the path of their packets.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) client: IpAddr,
    pub(super) vip: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) way: Way,
}

/// The backends of a case's scenario: the same one in each colour.
pub(super) const BACKENDS: u32 = 2;

impl Case {
    pub(super) fn ipv4(protocol: Protocol) -> Result<Self> {
        Ok(Self {
            client: "198.18.0.1".parse()?,
            vip: "203.0.113.10:443".parse()?,
            backend: "10.0.1.11:8443".parse()?,
            protocol,
            way: Way::Xdp,
        })
    }

    pub(super) fn ipv6(protocol: Protocol) -> Result<Self> {
        Ok(Self {
            client: "2001:db8:c::1".parse()?,
            vip: "[2001:db8::10]:443".parse()?,
            backend: "[fd00:1::11]:8443".parse()?,
            protocol,
            way: Way::Xdp,
        })
    }

    /// IPv4 TCP and IPv6 TCP.
    pub(super) fn both_families() -> Result<[Self; 2]> {
        Ok([Self::ipv4(Protocol::Tcp)?, Self::ipv6(Protocol::Tcp)?])
    }

    pub(super) fn by(self, way: Way) -> Self {
        Self { way, ..self }
    }

    /// `IPv4 TCP`.
    pub(super) fn name(&self) -> String {
        let family = if self.is_ipv4() { "IPv4" } else { "IPv6" };
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        format!("{family} {protocol}")
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.vip.is_ipv4()
    }

    pub(super) fn hook(&self) -> Hook {
        match self.way {
            Way::Xdp | Way::OneArmed => Hook::Xdp,
            Way::Tc | Way::Local => Hook::Tc,
        }
    }

    /// The program that processes the packets.
    pub(super) fn program(&self, direction: Direction) -> &'static str {
        match (self.way, direction) {
            (Way::Xdp | Way::OneArmed, _) => "ingress",
            (Way::Local, Direction::Reply) => "tc_egress",
            (Way::Tc | Way::Local, _) => "tc_ingress",
        }
    }

    /// Its verdict for a packet of an open flow, or one that opens its flow.
    pub(super) fn verdict(&self, direction: Direction) -> u32 {
        match (self.way, direction) {
            (Way::OneArmed, Direction::Forward) => TX,
            (Way::Xdp | Way::OneArmed, _) => REDIRECT,
            (Way::Tc, _) => TC_REDIRECT,
            (Way::Local, _) => TC_UNSPEC,
        }
    }

    /// The interface at which the packets arrive.
    pub(super) fn interface(&self, direction: Direction, sides: Sides) -> u32 {
        match (self.way, direction) {
            (Way::Xdp | Way::Tc | Way::Local, Direction::Forward) | (Way::Local, Direction::Reply) => sides.client,
            (Way::Xdp | Way::Tc, Direction::Reply) | (Way::OneArmed, _) => sides.backend,
        }
    }

    pub(super) fn scenario(&self) -> Scenario {
        let mut scenario = Scenario::default();
        let deployment = scenario.deployment();
        let backends = vec![BackendAt { address: self.backend, out_of: None }];
        scenario.service(&ServiceAt {
            deployment,
            vip: self.vip,
            preview: None,
            protocol: self.protocol,
            mode: if self.way == Way::Local { Mode::Local } else { Mode::Nat },
            backends: [backends.clone(), backends],
        });
        scenario
    }
}
