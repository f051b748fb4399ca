//! A link of 1,300 bytes that neither end of a connection knows of. Its router says so in an ICMP error, about a packet whose
//! addresses the engine has rewritten.
//!
//! ```text
//! user eth0 -- inner CLIENT eth0 -- front EDGE back -- uplink ROUTER -- eth0 blue1, …
//! ```
//!
//! The machine that other tests call the client is a router here. Both routers forward by routes with a locked MTU, as if the
//! next link were so narrow.

use anyhow::{Context, Result, ensure};
use bg_tests::{
    Fabric, HTTP_PORT, Hop, Lab, Namespace, Offloads, Worker, address,
    config::{http_vip, shop_alone, udp_vip},
    megabyte, trace,
};
use std::{net::SocketAddr, time::Duration};

const MTU: u32 = 1300;
/// A sender that is not told of the narrow link sends the same again, until it gives up.
const STALL: Duration = Duration::from_secs(4);

/// The user, and the router's end of the cable.
const USER: [&str; 2] = ["198.18.0.2", "2001:db8:18::2"];
const INNER: [&str; 2] = ["198.18.0.1", "2001:db8:18::1"];

/// The narrow link.
#[derive(Clone, Copy, Debug)]
enum Link {
    None,
    /// Behind the first router on the clients' side.
    OfClients,
    /// Behind the router on the backends' side.
    OfBackends,
    /// From the edge itself to that router: both know of it.
    OfEdge,
}

/// A lab with a user behind the client.
struct Far {
    _sinks: Vec<Worker>,
    user: Namespace,
    lab: Lab,
}

/// Words of `ip` for a family.
fn family(address: &str) -> &'static str {
    if address.contains(':') { "-6 " } else { "" }
}

impl Far {
    fn new(lab: Lab, nat_or_local: &str, attach: &str) -> Result<Self> {
        let user = Namespace::create(lab.sandbox.id(), "user")?;
        let router = lab.client.name();
        user.ip(&format!("link add eth0 type veth peer name inner netns {router}"))?;
        user.ip("link set eth0 up")?;
        lab.client.ip("link set inner up")?;
        user.run("ethtool -K eth0 tx off")?;
        lab.client.run("ethtool -K inner tx off")?;
        lab.client.sysctl("ipv4/ip_forward", "1")?;
        lab.client.sysctl("ipv6/conf/all/forwarding", "1")?;
        let clients = [address::CLIENT_V4, address::CLIENT_V6];
        for ((user_address, inner), client) in USER.into_iter().zip(INNER).zip(clients) {
            let (version, prefix) = (family(inner), if inner.contains(':') { 126 } else { 30 });
            let nodad = if inner.contains(':') { "nodad" } else { "" };
            user.ip(&format!("address add {user_address}/{prefix} dev eth0 {nodad}"))?;
            lab.client.ip(&format!("address add {inner}/{prefix} dev inner {nodad}"))?;
            user.ip(&format!("{version}route add default via {inner}"))?;
            lab.edge.ip(&format!("{version}route add {user_address} via {client}"))?;
        }
        let sinks = lab.backends.iter().flat_map(|backend| {
            backend.addresses.map(|address| megabyte::sink(&backend.namespace, SocketAddr::new(address, HTTP_PORT)))
        });
        let sinks = sinks.collect::<Result<_>>()?;
        let bgctl = lab.bgctl()?;
        bgctl.run(&[&["attach", "--mode", attach], lab.interfaces.as_slice()].concat())?;
        bgctl.apply(&shop_alone(&lab, nat_or_local, ""))?;
        Ok(Self { _sinks: sinks, user, lab })
    }

    /// Narrows a link in both directions.
    fn narrow(&self, link: Link) -> Result<()> {
        match link {
            Link::None => Ok(()),
            Link::OfClients => self.narrow_clients_side(),
            Link::OfBackends => self.narrow_backends_side(),
            Link::OfEdge => self.narrow_edge(),
        }
    }

    fn narrow_clients_side(&self) -> Result<()> {
        let fronts = [address::FRONT_V4, address::FRONT_V6];
        for (user, front) in USER.into_iter().zip(fronts) {
            let version = family(user);
            self.lab.client.ip(&format!("{version}route add {user} dev inner mtu lock {MTU}"))?;
            self.lab.client.ip(&format!("{version}route replace default via {front} mtu lock {MTU}"))?;
        }
        Ok(())
    }

    fn narrow_backends_side(&self) -> Result<()> {
        let router = self.lab.router().context("no router")?;
        for backend in &self.lab.backends {
            for address in backend.addresses {
                let version = family(&address.to_string());
                router.ip(&format!("{version}route replace {address} dev {} mtu lock {MTU}", backend.name))?;
            }
        }
        for back in [address::BACK_V4, address::BACK_V6] {
            router.ip(&format!("{}route replace default via {back} mtu lock {MTU}", family(&back.to_string())))?;
        }
        Ok(())
    }

    fn narrow_edge(&self) -> Result<()> {
        let router = self.lab.router().context("no router")?;
        self.lab.edge.ip(&format!("link set back mtu {MTU}"))?;
        router.ip(&format!("link set uplink mtu {MTU}")).map(|_| ())
    }

    /// Sends a megabyte to each VIP and takes one back, without a stall.
    fn a_megabyte_goes_both_ways(&self) -> Result<()> {
        for vip in [address::VIP_V4, address::VIP_V6] {
            let took = self.user.enter(|| megabyte::both_ways(http_vip(vip)))?;
            let took = took.with_context(|| vip.to_string())?;
            ensure!(took < STALL, "{vip} took {took:?}");
        }
        Ok(())
    }
}

fn behind_a_router(attach: &str) -> Result<Far> {
    Far::new(Lab::wire(Fabric::Router)?, "nat", attach)
}

fn through_hidden_links(attach: &str) -> Result<()> {
    for link in [Link::None, Link::OfClients, Link::OfBackends, Link::OfEdge] {
        let far = behind_a_router(attach)?;
        far.narrow(link)?;
        far.a_megabyte_goes_both_ways().with_context(|| format!("{attach}, narrow: {link:?}"))?;
    }
    Ok(())
}

#[test]
fn a_megabyte_goes_both_ways_over_hidden_links_by_native_xdp() -> Result<()> {
    through_hidden_links("native")
}

#[test]
fn a_megabyte_goes_both_ways_over_hidden_links_by_generic_xdp() -> Result<()> {
    through_hidden_links("generic")
}

#[test]
fn a_megabyte_goes_both_ways_over_hidden_links_by_tc() -> Result<()> {
    through_hidden_links("tc")
}

/// Backends are addresses of the edge itself.
#[test]
fn a_megabyte_goes_both_ways_between_a_hidden_link_and_zones() -> Result<()> {
    for (offloads, attach) in [(Offloads::Default, "tc"), (Offloads::Wire, "generic")] {
        let far = Far::new(Lab::zones(offloads)?, "local", attach)?;
        far.narrow(Link::OfClients)?;
        far.a_megabyte_goes_both_ways().context(attach)?;
    }
    Ok(())
}

/// What the edge's own stack knows of the VIPs.
#[derive(Clone, Copy, Debug)]
enum Known {
    Nothing,
    Address,
}

/// Each hop bears its own address, and what is behind the edge the VIP's.
#[test]
fn a_trace_shows_the_hops_on_the_way_and_the_vip_at_its_end() -> Result<()> {
    let cases =
        [("native", Known::Nothing), ("generic", Known::Address), ("tc", Known::Nothing), ("tc", Known::Address)];
    for (attach, known) in cases {
        let far = behind_a_router(attach)?;
        if matches!(known, Known::Address) {
            far.lab.edge.ip(&format!("address add {}/32 dev lo", address::VIP_V4))?;
            far.lab.edge.ip(&format!("address add {}/128 dev lo", address::VIP_V6))?;
        }
        let routers = [
            [INNER[0].parse()?, address::FRONT_V4, address::ROUTER_V4],
            [INNER[1].parse()?, address::FRONT_V6, address::ROUTER_V6],
        ];
        for (vip, routers) in [address::VIP_V4, address::VIP_V6].into_iter().zip(routers) {
            let hops: Vec<Hop> = routers.into_iter().map(Hop::Spent).collect();
            // Nobody listens at the backends' UDP port: the last one refuses.
            let refused = [hops.as_slice(), &[Hop::Refused(vip)]].concat();
            let found = trace(&far.user, udp_vip(vip)).with_context(|| format!("{attach}, {known:?}"))?;
            ensure!(found == refused, "{attach}, {known:?}: expected {refused:?}, found {found:?}");
        }
    }
    Ok(())
}
