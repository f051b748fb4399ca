//! Links that are narrower than both ends of a connection know: whoever can tell tells, and nobody waits for a timer.

use crate::stage::{SINK_PORT, Stage, USER, VIPS, WAYS, family};
use anyhow::{Context, Result, ensure};
use bg_tests::{address, megabyte};
use std::{net::SocketAddr, time::Duration};

/// The narrow link.
#[derive(Clone, Copy, Debug)]
enum Link {
    None,
    /// Behind the first router on the clients' side, in both directions.
    OfClients,
    /// From the edge to the backends.
    OfEdge,
}

fn narrow(stage: &Stage, link: Link) -> Result<()> {
    match link {
        Link::None => Ok(()),
        Link::OfClients => {
            for (user, front) in USER.into_iter().zip([address::FRONT_V4, address::FRONT_V6]) {
                let version = family(user);
                stage.lab.client.ip(&format!("{version}route add {user} dev inner mtu lock 1300"))?;
                stage.lab.client.ip(&format!("{version}route replace default via {front} mtu lock 1300"))?;
            }
            Ok(())
        }
        Link::OfEdge => {
            let [_, back] = stage.lab.interfaces[..] else { anyhow::bail!("not two interfaces") };
            stage.lab.edge.ip(&format!("link set {back} mtu 1300")).map(|_| ())
        }
    }
}

fn through_narrow_links(attach: &str) -> Result<()> {
    for link in [Link::None, Link::OfClients, Link::OfEdge] {
        let stage = Stage::new(attach)?;
        narrow(&stage, link)?;
        for (mode, is_of_v6) in WAYS {
            stage.bgctl.apply(&stage.deployment("shop", &Stage::services(mode, is_of_v6)))?;
            for vip in VIPS {
                // Packets of 1280 bytes are what IPv6 clients may always send, and do not fit with any outer header.
                if matches!(link, Link::OfEdge) && vip.is_ipv6() && mode != "l2dsr" {
                    continue;
                }
                // A connection before has told the client what fits.
                let _ = stage.user.run("ip route flush cache");
                let _ = stage.user.run("ip -6 route flush cache");
                let took = stage.user.enter(|| megabyte::both_ways(SocketAddr::new(vip, SINK_PORT)))?;
                let took = took.with_context(|| format!("{attach}, {link:?}, {mode}, {vip}, {is_of_v6:?}"))?;
                ensure!(took < Duration::from_secs(2), "{attach}, {link:?}, {mode}, {vip}, {is_of_v6:?}: {took:?}");
                println!("{attach}, {link:?}, {mode}, {vip}, {is_of_v6:?}: {took:?}");
            }
        }
        stage.nothing_was_dropped()?;
    }
    Ok(())
}

/// A link behind the next hop: its router tells the edge, and the edge the client, what fits.
fn through_a_narrow_link_behind_a_router(attach: &str) -> Result<()> {
    let stage = Stage::behind_a_router(attach)?;
    let router = stage.lab.router().context("no router")?;
    for backend in &stage.lab.backends {
        for address in backend.addresses {
            let (version, port) = (family(&address.to_string()), backend.name);
            router.ip(&format!("{version}route replace {address} dev {port} mtu lock 1350"))?;
        }
    }
    for (mode, is_of_v6) in WAYS.into_iter().filter(|(mode, _)| *mode != "l2dsr") {
        stage.bgctl.apply(&stage.deployment("shop", &Stage::services(mode, is_of_v6)))?;
        for vip in VIPS {
            let _ = stage.user.run("ip route flush cache");
            let _ = stage.user.run("ip -6 route flush cache");
            let took = stage.user.enter(|| megabyte::both_ways(SocketAddr::new(vip, SINK_PORT)))?;
            let took = took.with_context(|| format!("{attach}, {mode}, {vip}, {is_of_v6:?}"))?;
            ensure!(took < Duration::from_secs(2), "{attach}, {mode}, {vip}, {is_of_v6:?}: {took:?}");
            println!("{attach}, behind a router, {mode}, {vip}, {is_of_v6:?}: {took:?}");
            // What has been told is what fits: nothing was dropped by the edge, and the client has learnt it.
            let room = match (mode, is_of_v6) {
                ("gue", Some(true)) => 52,
                ("gue", _) => 32,
                (_, Some(true)) => 40,
                _ => 20,
            };
            let version = family(&vip.to_string());
            let learnt = stage.user.run(&format!("ip {version}route get {vip}"))?;
            ensure!(
                learnt.contains(&format!(" mtu {} ", 1350 - room)),
                "{attach}, {mode}, {vip}, {is_of_v6:?}: {learnt}"
            );
        }
    }
    stage.nothing_was_dropped()
}

#[test]
fn a_router_behind_the_edge_tells_clients_what_fits_with_native_xdp() -> Result<()> {
    through_a_narrow_link_behind_a_router("native")
}

#[test]
fn a_router_behind_the_edge_tells_clients_what_fits_with_tc() -> Result<()> {
    through_a_narrow_link_behind_a_router("tc")
}

#[test]
fn a_megabyte_goes_both_ways_over_narrow_links_by_native_xdp() -> Result<()> {
    through_narrow_links("native")
}

#[test]
fn a_megabyte_goes_both_ways_over_narrow_links_by_generic_xdp() -> Result<()> {
    through_narrow_links("generic")
}

#[test]
fn a_megabyte_goes_both_ways_over_narrow_links_by_tc() -> Result<()> {
    through_narrow_links("tc")
}
