//! Ways by which packets come that are held: from the edge itself, and with VLAN tags. They go on as if they had not been held.

use crate::{
    PATIENCE, ROUND,
    clients::{connect, sent_again},
    wait_for_held,
};
use anyhow::Result;
use bg_common::{Colour, Protocol};
use bg_tests::{
    Fabric, Lab, Namespace, Offloads, RawSocket, Ready,
    address::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6},
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    frames::{PacketSpec, tcp_flags},
    load::Echo,
};
use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Instant,
};

/// Asserts that a connection and a datagram from this machine wait for the end of a freeze, and are answered.
fn waits(ready: &Ready, machine: &Namespace, vip: IpAddr) -> Result<()> {
    let bgctl = &ready.bgctl;
    assert_eq!(Echo::open(machine, udp_vip(vip))?.ask("before")?.colour, Colour::Blue);
    for _ in 0..3 {
        bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
        let datagram = Echo::open(machine, udp_vip(vip))?;
        datagram.set_patience(PATIENCE)?;
        datagram.send("held")?;
        wait_for_held(bgctl, 1)?;
        let start = Instant::now();
        let connected = thread::scope(|scope| {
            let client = scope.spawn(|| connect(machine, http_vip(vip), 1));
            let thawed = wait_for_held(bgctl, 2).and_then(|()| bgctl.json(&["thaw", DEPLOYMENT]));
            thawed.and(client.join().expect("no panic"))
        })?;
        // Else the kernel may have sent the SYN again, which shows nothing.
        if start.elapsed() < ROUND {
            assert_eq!(sent_again(&connected)?, 0, "a SYN that was sent again");
        }
        assert_eq!(datagram.receive("held")?.colour, Colour::Blue);
        assert_eq!(datagram.ask("afterwards")?.colour, Colour::Blue);
    }
    ready.neighbour_is_undisturbed()
}

/// The VIPs are addresses of the edge, which reaches them by its loopback interface.
fn the_edge_waits(lab: Lab, mode: &str, service_mode: &str) -> Result<()> {
    let config = shop(&lab, service_mode, "");
    let ready = Ready::with(lab, mode, &config)?;
    for vip in [VIP_V4, VIP_V6] {
        ready.lab.edge.ip(&format!("address add {vip}/{} dev lo", if vip.is_ipv4() { 32 } else { 128 }))?;
    }
    ready.bgctl.run(&["attach", "--mode", "tc", "lo"])?;
    for vip in [VIP_V4, VIP_V6] {
        waits(&ready, &ready.lab.edge, vip)?;
    }
    Ok(())
}

#[test]
fn the_edge_itself_waits_for_machines_behind_native_xdp() -> Result<()> {
    the_edge_waits(Lab::wire(Fabric::Switch)?, "native", "nat")
}

#[test]
fn the_edge_itself_waits_for_containers_behind_tc() -> Result<()> {
    the_edge_waits(Lab::bridge()?, "tc", "nat")
}

#[test]
fn the_edge_itself_waits_for_its_own_zones() -> Result<()> {
    the_edge_waits(Lab::zones(Offloads::Default)?, "tc", "local")
}

#[test]
fn the_edge_itself_waits_for_its_own_zones_behind_native_xdp() -> Result<()> {
    the_edge_waits(Lab::zones(Offloads::Wire)?, "native", "local")
}

/// Frames with VLAN tags come to the edge once more when they are played back, with their tags.
fn tagged_packets_wait(lab: Lab, mode: &str) -> Result<()> {
    let config = shop(&lab, "nat", "");
    let ready = Ready::with(lab, mode, &config)?;
    let Ready { bgctl, lab, .. } = &ready;
    let (sender, edge) = (RawSocket::open(&lab.client, "eth0")?, RawSocket::open(&lab.edge, "front")?);
    let macs = [lab.edge.mac("front")?, lab.client.mac("eth0")?].concat();
    let mut port = 20_000;
    for (client, vip) in [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)] {
        for tags in [1, 2] {
            for spec in [PacketSpec::udp, |from, to| PacketSpec::tcp(from, to, tcp_flags::SYN)] {
                port += 1;
                let from = SocketAddr::new(client, port);
                let packet = spec(from, SocketAddr::new(vip, 0));
                let to = if packet.protocol == Protocol::Udp { udp_vip(vip) } else { http_vip(vip) };
                let mut frame = PacketSpec { to, tags, ..packet }.frame();
                frame[..12].copy_from_slice(&macs);
                bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
                sender.send(&frame)?;
                let is_ours = |other: &[u8]| other == frame;
                edge.receive_until(PATIENCE, is_ours, is_ours)?;
                wait_for_held(bgctl, 1)?;
                assert_eq!(bgctl.json(&["thaw", DEPLOYMENT])?["played_back"], 1);
                edge.receive_until(PATIENCE, is_ours, is_ours)?;
                let flows = bgctl.json(&["flows", DEPLOYMENT])?;
                assert!(flows.to_string().contains(&format!("\"{from}\"")), "it has opened a flow: {flows}");
            }
        }
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn packets_with_a_vlan_tag_wait_behind_native_xdp() -> Result<()> {
    tagged_packets_wait(Lab::wire(Fabric::Switch)?, "native")
}

#[test]
fn packets_with_a_vlan_tag_wait_behind_generic_xdp() -> Result<()> {
    tagged_packets_wait(Lab::wire(Fabric::Router)?, "generic")
}

#[test]
fn packets_with_a_vlan_tag_wait_at_tc() -> Result<()> {
    tagged_packets_wait(Lab::bridge()?, "tc")
}
