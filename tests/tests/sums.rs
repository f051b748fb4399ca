//! Packets whose checksum the receiving interface has summed up (`CHECKSUM_COMPLETE`), as some NICs do for every frame: the
//! kernel keeps the sum of all bytes beside the packet, and whoever rewrites the packet has to keep it right. Here they come
//! out of a tunnel with a checksum of its own, which the kernel turns into that sum.
//!
//! Datagrams are longer than the 76 bytes up to which the kernel sums again before it throws one away.

use anyhow::Result;
use bg_tests::{
    Lab, Offloads, Ready, address,
    config::{DEPLOYMENT, shop, udp_vip},
    load::Echo,
};

/// The tunnel's ends, client and edge.
const V4: [&str; 2] = ["198.18.0.2", "198.18.0.1"];
const V6: [&str; 2] = ["2001:db8:18::2", "2001:db8:18::1"];

/// Lays a tunnel between client and edge, and leads the client's packets for the VIPs through it.
fn through_a_tunnel(lab: &Lab) -> Result<()> {
    let ends = [(&lab.client, "eth0", address::CLIENT_V4), (&lab.edge, "front", address::FRONT_V4)];
    for (end, (namespace, device, local)) in ends.into_iter().enumerate() {
        let (_, _, remote) = ends[1 - end];
        namespace.ip(&format!(
            "link add tunnel type vxlan id 7 local {local} remote {remote} dstport 4789 dev {device} udpcsum"
        ))?;
        namespace.ip("link set tunnel up")?;
        namespace.ip(&format!("address add {}/24 dev tunnel", V4[end]))?;
        namespace.ip(&format!("address add {}/64 dev tunnel nodad", V6[end]))?;
        // Of local senders the sum would be unfinished, and of several datagrams in one there would be none.
        for interface in ["tunnel", device] {
            namespace.run(&format!("ethtool -K {interface} tx off gro off"))?;
        }
    }
    lab.client.ip(&format!("route add {} via {}", address::VIP_V4, V4[1]))?;
    lab.client.ip(&format!("-6 route add {} via {}", address::VIP_V6, V6[1]))?;
    Ok(())
}

fn long_datagrams_arrive(ready: &Ready, mode: &str) -> Result<()> {
    ready.bgctl.run(&["attach", "--mode", mode, "tunnel"])?;
    // The second time the next hop is known, and the packet takes the short way.
    for round in 0..2 {
        for vip in [address::VIP_V4, address::VIP_V6] {
            let echo = Echo::open(&ready.lab.client, udp_vip(vip))?;
            for length in [40, 400, 1200] {
                let payload = format!("{round}-{}", "x".repeat(length));
                echo.ask(&payload).map_err(|error| error.context(format!("{mode}, {vip}, {length} octets")))?;
            }
        }
        ready.bgctl.run(&["switch", DEPLOYMENT])?;
    }
    let counted = ready.lab.edge.run("nstat -asz")?;
    let wrong =
        counted.lines().filter(|line| line.contains("InCsumErrors") && line.split_whitespace().nth(1) != Some("0"));
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&str>::new(), "{mode}");
    Ok(())
}

fn with(lab: Lab, nat_or_local: &str, mode: &str) -> Result<()> {
    through_a_tunnel(&lab)?;
    let config = shop(&lab, nat_or_local, "");
    let ready = Ready::with(lab, "tc", &config)?;
    long_datagrams_arrive(&ready, mode)
}

#[test]
fn tc_keeps_the_sum_right_towards_zones() -> Result<()> {
    with(Lab::zones(Offloads::Default)?, "local", "tc")
}

#[test]
fn tc_keeps_the_sum_right_towards_containers() -> Result<()> {
    with(Lab::bridge()?, "nat", "tc")
}

#[test]
fn generic_xdp_leaves_what_is_for_a_zone_to_tc() -> Result<()> {
    with(Lab::zones(Offloads::Default)?, "local", "generic")
}
