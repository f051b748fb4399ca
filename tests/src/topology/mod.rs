//! The networks of the labs.
//!
//! Each has a client, an edge (the host on which bgctl runs), and two backends of each colour, or one in the lab for
//! measurements. All use IPv4 and IPv6, with the same addresses in each lab ([`address`]).

pub mod address;
mod bridge;
mod line;
mod wire;
mod zones;

use crate::{
    bgctl::{Bgctl, program_under_test},
    netns::Namespace,
    nginx::Nginx,
    sandbox::Sandbox,
    server::Server,
};
use anyhow::Result;
use bg_common::Colour;
use std::{net::IpAddr, path::PathBuf, sync::Arc};

/// The device between the edge and its backends in a lab of machines on wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// A switch. The backends are neighbours of the edge.
    Switch,
    /// A router. The edge has one next hop for all backends.
    Router,
}

/// How an interface pair treats checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// The default. Checksums of local senders stay unfinished.
    Default,
    /// As off a wire. Senders finish checksums.
    Wire,
}

/// A backend of a lab.
#[derive(Debug)]
pub struct Backend {
    /// `blue1`, `blue2`, `green1`, `green2`.
    pub name: &'static str,
    /// Its environment.
    pub colour: Colour,
    /// IPv4, then IPv6.
    pub addresses: [IpAddr; 2],
    /// Where it runs.
    pub namespace: Arc<Namespace>,
}

impl Backend {
    /// The answer of its servers: colour and name.
    pub fn says(&self) -> String {
        format!("{} {}", self.colour.name(), self.name)
    }
}

/// A network of namespaces. Dropping it removes it.
#[derive(Debug)]
pub struct Lab {
    /// The namespace of the clients.
    pub client: Arc<Namespace>,
    /// The namespace in which bgctl runs.
    pub edge: Arc<Namespace>,
    /// The backends of each colour, blue first.
    pub backends: Vec<Backend>,
    /// The interfaces of the edge to which bgctl is attached, the client's side first.
    pub interfaces: Vec<&'static str>,
    /// Machines that only forward.
    others: Vec<Arc<Namespace>>,
    /// This is the last field, so that a lab's directories are removed after its namespaces.
    pub sandbox: Sandbox,
}

impl Lab {
    /// Separate machines on wires with finished checksums, for XDP.
    pub fn wire(fabric: Fabric) -> Result<Self> {
        wire::build(fabric)
    }

    /// Backends behind a bridge of the edge host, like its virtual machines, with default settings.
    pub fn bridge() -> Result<Self> {
        bridge::build()
    }

    /// Backends that are addresses of the edge host itself. `offloads` are those of the client's side.
    pub fn zones(offloads: Offloads) -> Result<Self> {
        zones::build(offloads)
    }

    /// One machine with a backend of each colour, on a cable to the edge, so that little else is measured.
    pub fn line(offloads: Offloads) -> Result<Self> {
        line::build(offloads)
    }

    /// The bgctl of this lab's edge, with its own pins and state.
    pub fn bgctl(&self) -> Result<Bgctl> {
        Ok(self.bgctl_at(program_under_test()?))
    }

    /// The same, but with this program as bgctl.
    pub fn bgctl_at(&self, program: PathBuf) -> Bgctl {
        Bgctl::new(program, &self.edge, &self.sandbox)
    }

    /// Starts a [`Server`] on each backend.
    pub fn servers(&self) -> Result<Vec<Server>> {
        let start = |backend: &Backend| Server::start(&backend.namespace, &backend.says(), &backend.addresses);
        self.backends.iter().map(start).collect()
    }

    /// Starts an nginx on each backend.
    pub fn nginxes(&self) -> Result<Vec<Nginx>> {
        Nginx::is_installed()?;
        let start =
            |backend: &Backend| Nginx::start(&self.sandbox, &backend.namespace, &backend.says(), &backend.addresses);
        self.backends.iter().map(start).collect()
    }

    /// Pings every backend and the client from the edge, so that their neighbours are known, and the
    /// network is known to work before a measurement.
    pub fn warm_up(&self) -> Result<()> {
        let client = [address::CLIENT_V4, address::CLIENT_V6];
        for address in self.backends.iter().flat_map(|backend| backend.addresses).chain(client) {
            self.edge.run(&format!("ping -n -q -c 1 -W 2 {address}"))?;
        }
        for address in self.backends.iter().flat_map(|backend| backend.addresses) {
            self.client.run(&format!("ping -n -q -c 1 -W 2 {address}"))?;
        }
        Ok(())
    }

    /// Has each backend drop segments that are invalid, or of no connection that it knows, as a firewall in front of it would.
    pub fn guard_backends(&self) -> Result<()> {
        for backend in &self.backends {
            // Zones share one namespace.
            let _ = backend.namespace.run("nft delete table inet guard");
            for line in [
                "add table inet guard",
                "add chain inet guard input { type filter hook input priority 0 ; }",
                "add rule inet guard input ct state invalid drop",
                "add rule inet guard input ct state new tcp flags & syn == 0 drop",
            ] {
                backend.namespace.run(&format!("nft {line}"))?;
            }
        }
        Ok(())
    }

    /// The router between the edge and its backends, if there is one.
    pub fn router(&self) -> Option<&Namespace> {
        self.others.first().map(Arc::as_ref)
    }

    /// All machines with network cards.
    pub fn cards(&self) -> Vec<(&Namespace, Vec<String>)> {
        let backends = self.backends.iter().map(|backend| &backend.namespace);
        let machines = [&self.client, &self.edge].into_iter().chain(backends).chain(&self.others);
        machines.map(|machine| (machine.as_ref(), machine.interfaces().unwrap_or_default())).collect()
    }

    /// Keeps the lab when this process ends, until [`crate::sweep::kept`] removes it.
    pub fn keep(self) -> Result<()> {
        self.sandbox.keep()?;
        std::mem::forget(self);
        Ok(())
    }
}

/// A namespace with IPv4 and IPv6 settings like a server's, but without the wait for duplicate address detection.
fn machine(sandbox: &Sandbox, role: &str) -> Result<Arc<Namespace>> {
    let namespace = Namespace::create(sandbox.id(), role)?;
    for (name, value) in [
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
    ] {
        namespace.sysctl(name, value)?;
    }
    Ok(Arc::new(namespace))
}

/// A machine for clients: all ports can be used, and a port in TIME_WAIT can be reused.
fn client(sandbox: &Sandbox) -> Result<Arc<Namespace>> {
    let client = machine(sandbox, "client")?;
    client.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
    client.sysctl("ipv4/tcp_tw_reuse", "1")?;
    Ok(client)
}

/// Lets a machine forward packets.
fn forwards(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("ipv4/ip_forward", "1")?;
    namespace.sysctl("ipv6/conf/all/forwarding", "1")
}

/// Connects two machines with a cable and sets both ends up.
fn cable(a: (&Namespace, &str), b: (&Namespace, &str), offloads: Offloads) -> Result<()> {
    let (b_name, b_interface) = (b.0.name(), b.1);
    a.0.ip(&format!("link add {} type veth peer name {b_interface} netns {b_name}", a.1))?;
    for (namespace, interface) in [a, b] {
        namespace.ip(&format!("link set {interface} up"))?;
        if offloads == Offloads::Wire {
            // Senders finish their checksums. With GRO a veth takes frames that are redirected to its peer.
            namespace.run(&format!("ethtool -K {interface} tx off gro on"))?;
        }
    }
    Ok(())
}

/// Gives an interface addresses, each with its prefix length.
fn addresses(namespace: &Namespace, interface: &str, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        namespace.ip(&format!("address add {address} dev {interface} {nodad}"))?;
    }
    Ok(())
}

/// The client's side, which is the same in each lab: `eth0` of the client is connected to `front` of the edge.
fn front(client: &Namespace, edge: &Namespace, offloads: Offloads) -> Result<()> {
    use address::*;
    cable((client, "eth0"), (edge, "front"), offloads)?;
    addresses(client, "eth0", &[&format!("{CLIENT_V4}/24"), &format!("{CLIENT_V6}/64")])?;
    addresses(client, "lo", &[&format!("{TESTER_V4}/32"), &format!("{TESTER_V6}/128")])?;
    addresses(edge, "front", &[&format!("{FRONT_V4}/24"), &format!("{FRONT_V6}/64")])?;
    client.ip(&format!("route add default via {FRONT_V4}"))?;
    client.ip(&format!("-6 route add default via {FRONT_V6}"))?;
    edge.ip(&format!("route add {TESTER_V4} via {CLIENT_V4}"))?;
    edge.ip(&format!("-6 route add {TESTER_V6} via {CLIENT_V6}"))?;
    Ok(())
}
