//! The network. The backends' replies take another way than the requests.
//!
//! ```text
//! user eth0 -- inner CLIENT eth0 -- front EDGE back ------- SWITCH -- eth0 blue1, ...
//!                           side --------------------------/
//! ```
//!
//! The machine that other tests call the client is a router of the user's here, too. In one test there is a router in place of the switch.

use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{Backend, Bgctl, Fabric, HTTP_PORT, Lab, Namespace, Server, UDP_PORT, Worker, address, megabyte};
use std::net::{IpAddr, SocketAddr};

/// Where the backends take a megabyte and give one back.
pub(crate) const SINK_PORT: u16 = 9000;
pub(crate) const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];
/// The client's addresses in the backends' network.
const SIDE: [&str; 2] = ["10.0.0.9", "2001:db8:b::9"];
/// The user, and the router's end of the cable.
pub(crate) const USER: [&str; 2] = ["198.18.0.2", "2001:db8:18::2"];
const INNER: [&str; 2] = ["198.18.0.1", "2001:db8:18::1"];

/// A service: its VIP, its port and protocol, its mode, and the family of its backends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) vip: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) is_of_v6: bool,
}

/// The modes, and which family their backends have; `None`: that of the VIP.
pub(crate) const WAYS: [(&str, Option<bool>); 5] =
    [("l2dsr", None), ("ipip", Some(false)), ("ipip", Some(true)), ("gue", Some(false)), ("gue", Some(true))];

/// The network, with servers, and bgctl attached.
pub(crate) struct Stage {
    pub(crate) servers: Vec<Server>,
    _sinks: Vec<Worker>,
    pub(crate) user: Namespace,
    pub(crate) bgctl: Bgctl,
    pub(crate) lab: Lab,
}

/// Words of `ip` for a family.
pub(crate) fn family(address: &str) -> &'static str {
    if address.contains(':') { "-6 " } else { "" }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

impl Stage {
    pub(crate) fn new(attach: &str) -> Result<Self> {
        // In mode tc, checksums are unfinished and packets are not yet segmented.
        Self::of(if attach == "tc" { Lab::bridge()? } else { Lab::wire(Fabric::Switch)? }, attach)
    }

    pub(crate) fn of(lab: Lab, attach: &str) -> Result<Self> {
        let is_by_bridge = lab.router().is_none();
        let user = user(&lab, is_by_bridge)?;
        beside(&lab, is_by_bridge)?;
        Self::with(lab, user, attach)
    }

    /// Backends behind a router, by which their replies come, too: the edge forwards them as it does what is not for a VIP.
    pub(crate) fn behind_a_router(attach: &str) -> Result<Self> {
        let lab = Lab::wire(Fabric::Router)?;
        let user = user(&lab, false)?;
        for namespace in [&*lab.edge, lab.router().context("no router")?] {
            for interface in namespace.interfaces()?.iter().map(String::as_str).chain(["all"]) {
                namespace.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
            }
        }
        Self::with(lab, user, attach)
    }

    fn with(lab: Lab, user: Namespace, attach: &str) -> Result<Self> {
        let bgctl = lab.bgctl()?;
        bgctl.run(&[&["attach", "--mode", attach], lab.interfaces.as_slice()].concat())?;
        let (mut servers, mut sinks) = (Vec::new(), Vec::new());
        for backend in &lab.backends {
            for vip in VIPS {
                let length = if vip.is_ipv4() { 32 } else { 128 };
                let vip = vip.to_string();
                backend.namespace.ip(&format!("address add {vip}/{length} dev lo {}", nodad(&vip)))?;
            }
            decap(&bgctl, &lab, backend)?;
            servers.push(Server::start(&backend.namespace, &backend.says(), &VIPS)?);
            for vip in VIPS {
                sinks.push(megabyte::sink(&backend.namespace, SocketAddr::new(vip, SINK_PORT))?);
            }
        }
        Ok(Self { servers, _sinks: sinks, user, bgctl, lab })
    }

    /// The configuration of a deployment with these services.
    pub(crate) fn deployment(&self, name: &str, services: &[Service]) -> String {
        let mut config = format!("[deployments.{name}]\n");
        for Service { vip, port, protocol, mode, is_of_v6 } in services {
            let of = |colour: Colour| {
                let backends = self.lab.backends.iter().filter(|backend| backend.colour == colour);
                let address = |backend: &Backend| {
                    format!("\"{}\"", SocketAddr::new(backend.addresses[usize::from(*is_of_v6)], *port))
                };
                backends.map(address).collect::<Vec<_>>().join(", ")
            };
            config += &format!(
                "[[deployments.{name}.services]]\nvip = \"{}\"\nprotocol = \"{protocol}\"\nmode = \"{mode}\"\nblue = [{}]\ngreen = [{}]\n",
                SocketAddr::new(*vip, *port),
                of(Colour::Blue),
                of(Colour::Green),
            );
        }
        config
    }

    /// HTTP, UDP and a megabyte at both VIPs, all in this mode. `is_of_v6` is the backends' family; `None`: that of each VIP.
    pub(crate) fn services(mode: &'static str, is_of_v6: Option<bool>) -> Vec<Service> {
        let of = |vip: IpAddr| {
            [(HTTP_PORT, "tcp"), (UDP_PORT, "udp"), (SINK_PORT, "tcp")].map(|(port, protocol)| Service {
                vip,
                port,
                protocol,
                mode,
                is_of_v6: is_of_v6.unwrap_or(vip.is_ipv6()),
            })
        };
        VIPS.into_iter().flat_map(of).collect()
    }

    /// The sum of what was dropped, and of what was counted as no more than strange.
    pub(crate) fn nothing_was_dropped(&self) -> Result<()> {
        let status = self.bgctl.json(&["status"])?;
        let drops = status["drops"].as_object().context("drops is an object")?;
        let of_note = |(name, count): &(&String, &serde_json::Value)| **name != "direct_too_big" && **count != 0;
        ensure!(!drops.iter().any(|drop| of_note(&drop)), "{status}");
        Ok(())
    }
}

/// Adds a user behind the client.
fn user(lab: &Lab, is_by_bridge: bool) -> Result<Namespace> {
    let client = lab.client.name();
    let user = Namespace::create(lab.sandbox.id(), "user")?;
    user.ip(&format!("link add eth0 type veth peer name inner netns {client}"))?;
    user.ip("link set eth0 up")?;
    lab.client.ip("link set inner up")?;
    if !is_by_bridge {
        user.run("ethtool -K eth0 tx off gro on")?;
        lab.client.run("ethtool -K inner tx off gro on")?;
    }
    lab.client.sysctl("ipv4/ip_forward", "1")?;
    lab.client.sysctl("ipv6/conf/all/forwarding", "1")?;
    for (at, client) in [address::CLIENT_V4, address::CLIENT_V6].into_iter().enumerate() {
        let (user_address, inner, link) = (USER[at], INNER[at], [30, 126][at]);
        let version = family(inner);
        lab.client.ip(&format!("address add {inner}/{link} dev inner {}", nodad(inner)))?;
        user.ip(&format!("address add {user_address}/{link} dev eth0 {}", nodad(inner)))?;
        user.ip(&format!("{version}route add default via {inner}"))?;
        lab.edge.ip(&format!("{version}route add {user_address} via {client}"))?;
    }
    Ok(user)
}

/// Adds a way for replies that does not pass the edge.
fn beside(lab: &Lab, is_by_bridge: bool) -> Result<()> {
    // The network of the backends is the switch's, or the bridge of the edge.
    let switch = if is_by_bridge { &lab.edge } else { lab.router().context("no switch")? };
    let client = lab.client.name();
    switch.ip(&format!("link add beside type veth peer name side netns {client}"))?;
    switch.ip("link set beside master br0")?;
    switch.ip("link set beside up")?;
    lab.client.ip("link set side up")?;
    if !is_by_bridge {
        switch.run("ethtool -K beside tx off gro on")?;
        lab.client.run("ethtool -K side tx off gro on")?;
    }
    for (at, side) in SIDE.into_iter().enumerate() {
        let (network, version) = ([16, 64][at], family(side));
        lab.client.ip(&format!("address add {side}/{network} dev side {}", nodad(side)))?;
        let clients = [[address::CLIENT_V4, address::TESTER_V4], [address::CLIENT_V6, address::TESTER_V6]][at];
        for backend in &lab.backends {
            for to in clients.map(|client| client.to_string()).into_iter().chain([USER[at].to_owned()]) {
                backend.namespace.ip(&format!("{version}route add {to} via {side}"))?;
            }
        }
    }
    Ok(())
}

/// Has a backend unpack what the edge sends.
fn decap(bgctl: &Bgctl, lab: &Lab, backend: &Backend) -> Result<()> {
    let pins = lab.sandbox.pin_root().join(backend.name);
    let program = bgctl.program().display();
    let line = format!(
        "{program} decap attach eth0 --from {}/32 --from {}/128 --pin-root {}",
        address::BACK_V4,
        address::BACK_V6,
        pins.display()
    );
    backend.namespace.run(&line).map(|_| ())
}
