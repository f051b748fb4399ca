//! How packets leave: by a redirect in both directions, whatever mode each interface is attached in. So a stateful
//! firewall of the edge never sees half a connection, and neighbours are found without the edge's own stack.

use anyhow::{Context, Result, ensure};
use bg_tests::{
    Bgctl, Fabric, Lab, RawSocket, Ready, Server, address,
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    frames::PacketSpec,
    load::{Echo, PATIENCE},
    retransmissions,
};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];
/// Another deployment, so that the one under test is not the only one nor the first.
const OTHER: &str = "[[deployments.archive.services]]\nvip = \"203.0.113.99:80\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
                     blue = [\"10.0.1.11:8080\"]\ngreen = [\"10.0.2.11:8080\"]\n\n";

struct Edge {
    bgctl: Bgctl,
    _servers: Vec<Server>,
    lab: Lab,
}

/// A switch between the edge and its backends, and each side of the edge attached in its own mode.
fn edge(front: &str, back: &str) -> Result<Edge> {
    let lab = Lab::wire(Fabric::Switch)?;
    let servers = lab.servers()?;
    let bgctl = lab.bgctl()?;
    bgctl.run(&["attach", "--mode", front, "front"])?;
    bgctl.run(&["attach", "--mode", back, "back"])?;
    bgctl.apply(&(OTHER.to_owned() + &shop(&lab, "nat", "")))?;
    Ok(Edge { bgctl, _servers: servers, lab })
}

impl Edge {
    fn connect(&self, server: SocketAddr) -> Result<TcpStream> {
        let stream = self.lab.client.enter(|| TcpStream::connect_timeout(&server, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Asks over a new connection to each family's VIP, and over UDP. Nothing may be lost on the way.
    fn ask_all(&self) -> Result<()> {
        for vip in VIPS {
            let mut stream = self.connect(http_vip(vip)).with_context(|| format!("{vip}"))?;
            ensure!(retransmissions(&stream)? == 0, "{vip}: the first SYN was lost");
            ask(&mut stream).with_context(|| format!("{vip}"))?;
            let echo = Echo::open(&self.lab.client, udp_vip(vip))?;
            echo.ask("anybody there?").with_context(|| format!("UDP {vip}"))?;
        }
        Ok(())
    }

    /// Rules as many edges have them: what conntrack does not know to be a connection is dropped.
    fn drop_invalid(&self) -> Result<()> {
        self.lab.edge.run("nft add table inet f")?;
        self.lab.edge.run("nft add chain inet f forward { type filter hook forward priority 0 ; policy accept ; }")?;
        self.lab.edge.run("nft add rule inet f forward ct state invalid counter drop")?;
        Ok(())
    }
}

fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
    Ok(text)
}

fn a_stateful_firewall_is_in_nobodys_way(front: &str, back: &str) -> Result<()> {
    let edge = edge(front, back)?;
    edge.drop_invalid()?;
    let mut kept = edge.connect(http_vip(address::VIP_V4))?;
    for _ in 0..3 {
        edge.ask_all()?;
        ask(&mut kept)?;
        // Longer than a look-up is trusted for.
        thread::sleep(Duration::from_millis(500));
    }

    // A colour that the edge has not talked to lately.
    edge.lab.edge.ip("neigh flush dev back")?;
    edge.bgctl.run(&["switch", DEPLOYMENT])?;
    edge.ask_all().context("after the switch")?;
    ask(&mut kept)?;

    // The client keeps what it knows of the edge; the edge loses all that it knows of the client.
    let mac = edge.lab.edge.mac("front")?.map(|octet| format!("{octet:02x}")).join(":");
    for gateway in [address::FRONT_V4, address::FRONT_V6] {
        edge.lab.client.ip(&format!("neigh replace {gateway} dev eth0 lladdr {mac} nud permanent"))?;
    }
    edge.lab.edge.sysctl("ipv6/conf/front/keep_addr_on_down", "1")?;
    edge.lab.edge.ip("link set front down")?;
    edge.lab.edge.ip("link set front up")?;
    let start = Instant::now();
    while edge.ask_all().is_err() {
        ensure!(start.elapsed() < Duration::from_secs(30), "no answer after the link was down for a moment");
    }
    edge.ask_all().context("after the link was down")?;

    let events = edge.bgctl.json(&["status"])?["events"].clone();
    assert_eq!(events["next_hop_by_stack"], 0, "{events}");
    Ok(())
}

#[test]
fn a_firewall_with_native_xdp_on_both_sides() -> Result<()> {
    a_stateful_firewall_is_in_nobodys_way("native", "native")
}

#[test]
fn a_firewall_with_generic_xdp_on_both_sides() -> Result<()> {
    a_stateful_firewall_is_in_nobodys_way("generic", "generic")
}

#[test]
fn a_firewall_with_tc_on_both_sides() -> Result<()> {
    a_stateful_firewall_is_in_nobodys_way("tc", "tc")
}

#[test]
fn a_firewall_with_native_xdp_for_clients_and_tc_for_backends() -> Result<()> {
    a_stateful_firewall_is_in_nobodys_way("native", "tc")
}

#[test]
fn a_firewall_with_tc_for_clients_and_native_xdp_for_backends() -> Result<()> {
    a_stateful_firewall_is_in_nobodys_way("tc", "native")
}

/// Another mode on the backends' side, and none at all, while datagrams are under way.
#[test]
fn no_datagram_is_lost_when_an_interface_changes_its_mode_or_is_detached() -> Result<()> {
    let edge = edge("native", "native")?;
    let echo = Echo::open(&edge.lab.client, udp_vip(address::VIP_V4))?;
    let commands: [&[&str]; 5] = [
        &["attach", "back", "--mode", "tc"],
        &["attach", "back", "--mode", "native"],
        &["detach", "back"],
        &["attach", "back", "--mode", "tc"],
        &["attach", "back", "--mode", "native"],
    ];
    for (round, command) in commands.into_iter().enumerate() {
        thread::scope(|scope| -> Result<()> {
            let running = scope.spawn(|| edge.bgctl.run(command));
            let start = Instant::now();
            let mut number = 0;
            while !running.is_finished() || start.elapsed() < Duration::from_millis(1500) {
                number += 1;
                echo.ask(&format!("{round}, {number}")).with_context(|| format!("during {command:?}"))?;
            }
            running.join().expect("it does not panic")?;
            Ok(())
        })?;
    }
    let drops = edge.bgctl.json(&["status"])?["drops"].clone();
    assert!(drops.as_object().context("no drops")?.values().all(|count| count == 0), "{drops}");
    Ok(())
}

fn a_frame_for_another_mac_is_not_served(mode: &str) -> Result<()> {
    let edge = edge(mode, mode)?;
    edge.lab.edge.ip("link set front promisc on")?;
    let wire = RawSocket::open(&edge.lab.client, "eth0")?;
    let mut frame = PacketSpec::udp(SocketAddr::new(address::CLIENT_V4, 4000), udp_vip(address::VIP_V4)).frame();
    let packets = || -> Result<u64> {
        let deployment = edge.bgctl.deployment(DEPLOYMENT)?;
        let services = deployment["services"].as_array().context("no services")?.clone();
        Ok(services.iter().filter_map(|service| service["blue"]["packets"].as_u64()).sum())
    };
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
    for _ in 0..10 {
        wire.send(&frame)?;
    }
    frame[..6].copy_from_slice(&edge.lab.edge.mac("front")?);
    wire.send(&frame)?;
    let start = Instant::now();
    while packets()? == 0 {
        ensure!(start.elapsed() < PATIENCE, "the edge's own frame is not served");
    }
    assert_eq!(packets()?, 1, "only the frame that was for the edge");

    // The edge gets another MAC address, without being attached anew.
    edge.lab.edge.ip("link set front address 02:00:00:00:55:01")?;
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0x55, 1]);
    wire.send(&frame)?;
    let start = Instant::now();
    while packets()? == 1 {
        ensure!(start.elapsed() < PATIENCE, "a frame to the edge's new MAC address is not served");
    }
    Ok(())
}

#[test]
fn a_frame_for_another_mac_is_not_served_with_native_xdp() -> Result<()> {
    a_frame_for_another_mac_is_not_served("native")
}

#[test]
fn a_frame_for_another_mac_is_not_served_with_tc() -> Result<()> {
    a_frame_for_another_mac_is_not_served("tc")
}

/// Lets the edge's kernel doubt its neighbours after a second instead of half a minute.
fn doubt_soon(lab: &Lab) -> Result<()> {
    for (family, interface) in [("ipv4", "front"), ("ipv4", "back"), ("ipv6", "front"), ("ipv6", "back")] {
        for (name, value) in [
            ("base_reachable_time_ms", "1000"),
            ("delay_first_probe_time", "1"),
            ("ucast_solicit", "1"),
            ("retrans_time_ms", "200"),
        ] {
            lab.edge.sysctl(&format!("{family}/neigh/{interface}/{name}"), value)?;
        }
    }
    lab.edge.ip("neigh flush all")?;
    Ok(())
}

/// A backend, and then the client, gets another MAC address and tells nobody.
fn a_silent_change_of_a_mac_is_found_out(mode: &str) -> Result<()> {
    let edge = edge(mode, mode)?;
    doubt_soon(&edge.lab)?;
    let mac = edge.lab.edge.mac("front")?.map(|octet| format!("{octet:02x}")).join(":");
    let again = |echo: &Echo, who: &str| -> Result<()> {
        let start = Instant::now();
        echo.set_patience(Duration::from_millis(50))?;
        while echo.ask("still there?").is_err() {
            ensure!(start.elapsed() < Duration::from_secs(30), "{who} is not found again");
        }
        Ok(())
    };
    for (round, vip) in VIPS.into_iter().enumerate() {
        let echo = Echo::open(&edge.lab.client, udp_vip(vip))?;
        let answer = echo.ask("who is there?")?;
        let backend = edge.lab.backends.iter().find(|backend| backend.name == answer.backend).context("a backend")?;
        // Cached, and trusted.
        thread::sleep(Duration::from_millis(300));
        echo.ask("and now?")?;
        backend.namespace.ip(&format!("link set eth0 address 02:00:00:00:66:0{round}"))?;
        again(&echo, &answer.backend)?;

        let gateway = if vip.is_ipv4() { address::FRONT_V4 } else { address::FRONT_V6 };
        edge.lab.client.ip(&format!("link set eth0 address 02:00:00:00:77:0{round}"))?;
        edge.lab.client.ip(&format!("neigh replace {gateway} dev eth0 lladdr {mac} nud permanent"))?;
        again(&echo, "the client")?;
    }
    Ok(())
}

#[test]
fn a_silent_change_of_a_mac_is_found_out_by_native_xdp() -> Result<()> {
    a_silent_change_of_a_mac_is_found_out("native")
}

#[test]
fn a_silent_change_of_a_mac_is_found_out_by_tc() -> Result<()> {
    a_silent_change_of_a_mac_is_found_out("tc")
}

/// Clients and backends on one segment: were a packet forwarded by the edge's stack, the stack would tell its sender a
/// shorter way by an ICMP redirect, and a backend that follows it answers the client past the edge, by its own address.
fn on_one_arm_no_packet_is_forwarded_by_the_stack(mode: &str) -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = OTHER.to_owned() + &shop(&lab, "nat", "");
    let ready = Ready::with(lab, mode, &config)?;
    let lab = &ready.lab;
    let client = lab.backends.last().context("backends")?;
    let address = client.addresses[0];
    lab.edge.sysctl("ipv4/conf/all/send_redirects", "1")?;
    for backend in &lab.backends[..2] {
        backend.namespace.ip(&format!("route add {address} via {}", address::BACK_V4))?;
    }
    for round in 0..3 {
        lab.edge.ip("neigh flush dev back")?;
        let connected = client.namespace.enter(|| TcpStream::connect_timeout(&http_vip(address::VIP_V4), PATIENCE))?;
        let mut stream = connected.with_context(|| format!("round {round}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        ask(&mut stream).with_context(|| format!("round {round}"))?;
        // Longer than a look-up is trusted for.
        thread::sleep(Duration::from_millis(1200));
        lab.edge.ip(&format!("neigh flush to {address} dev back"))?;
        ask(&mut stream).with_context(|| format!("round {round}, when the client is forgotten"))?;
    }
    assert_eq!(redirects_sent(lab)?, 0);
    Ok(())
}

/// ICMP redirects that the edge has sent since it was made.
fn redirects_sent(lab: &Lab) -> Result<u64> {
    let text = lab.edge.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no ICMP counters")?;
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutRedirects");
    Ok(found.context("no counter of redirects")?.1.parse()?)
}

// Not natively: a veth passes on what is sent back by XDP_TX only if its peer runs XDP as well.
#[test]
fn on_one_arm_no_packet_is_forwarded_by_the_stack_with_generic_xdp() -> Result<()> {
    on_one_arm_no_packet_is_forwarded_by_the_stack("generic")
}

#[test]
fn on_one_arm_no_packet_is_forwarded_by_the_stack_with_tc() -> Result<()> {
    on_one_arm_no_packet_is_forwarded_by_the_stack("tc")
}
