//! Traffic that is not for a VIP leaves byte for byte as it came (invariant 8), also what no router passes on: ARP,
//! neighbour discovery, VLAN tags, what is no IP at all.
//!
//! The edge is made a bridge, so that a frame that nobody changes arrives as it was sent, MAC addresses and TTL
//! included. The same frames are sent from client to backend and back, before the programs are
//! attached and after, raw, and what arrives is compared byte by byte.

use anyhow::{Context, Result, ensure};
use bg_tests::{
    Chance, Fabric, Lab, RawSocket, address,
    config::{DEPLOYMENT, VIP_HTTP_PORT, VIP_UDP_PORT, shop},
    load::PATIENCE,
    run,
};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Source MAC of all frames that are sent on purpose.
const OURS: [u8; 6] = [0x02, 0xb6, 0, 0, 0, 1];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

fn all_that_is_not_for_a_vip_stays_as_it_is(mode: &str, mtu: usize) -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    make_a_bridge(&lab, mtu)?;
    let mut chance = Chance::new();
    let ends = [(&lab.client, "eth0"), (&lab.backends[0].namespace, "eth0")];
    let mut ways = Vec::new();
    for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
        let mac = to.0.mac(to.1)?;
        ways.push((RawSocket::open(from.0, from.1)?, RawSocket::open(to.0, to.1)?, frames(mac, mtu, &mut chance)));
    }
    let carry_all = || ways.iter().map(|(from, to, frames)| carry(from, to, frames)).collect::<Result<Vec<_>>>();
    let without = carry_all()?;

    let config = shop(&lab, "nat", "");
    let bgctl = lab.bgctl()?;
    bgctl.run(&[&["attach", "--mode", mode], lab.interfaces.as_slice()].concat())?;
    bgctl.apply(&config)?;
    let with = carry_all()?;

    for ((_, _, sent), (without, with)) in ways.iter().zip(without.iter().zip(&with)) {
        let mut sent = sent.clone();
        sent.sort();
        assert_same(&sent, without, "without the program");
        assert_same(&sent, with, "with the program");
    }
    // The programs have looked at all this: the same way leads frames that are for a VIP to a backend.
    let before = packets(&bgctl.deployment(DEPLOYMENT)?);
    assert_eq!(before, 0, "none of those frames was for a VIP");
    let (from, _, _) = &ways[0];
    let front = lab.edge.mac("front")?;
    let datagram = udp(50_000, VIP_UDP_PORT, b"for a VIP");
    from.send(&ethernet(front, IPV4, &ipv4(address::CLIENT_V4, address::VIP_V4, UDP, 0, &datagram)))?;
    let start = Instant::now();
    while packets(&bgctl.deployment(DEPLOYMENT)?) == 0 {
        ensure!(start.elapsed() < PATIENCE, "the program does not see what passes");
    }
    assert_eq!(packets(&bgctl.deployment(DEPLOYMENT)?), 1);
    let status = bgctl.json(&["status"])?;
    let drops = status["drops"].as_object().context("no drops")?;
    assert!(drops.values().all(|count| count == 0), "{drops:?}");
    Ok(())
}

#[test]
fn native_xdp_leaves_alone_what_is_not_for_a_vip() -> Result<()> {
    // What a veth takes with native XDP: a frame has to fit into a page.
    all_that_is_not_for_a_vip_stays_as_it_is("native", 3400)
}

#[test]
fn generic_xdp_leaves_alone_what_is_not_for_a_vip() -> Result<()> {
    all_that_is_not_for_a_vip_stays_as_it_is("generic", 9000)
}

#[test]
fn tc_leaves_alone_what_is_not_for_a_vip() -> Result<()> {
    all_that_is_not_for_a_vip_stays_as_it_is("tc", 9000)
}

/// Bridges the edge's two sides, sets the MTU of the whole way, and keeps everybody from joining segments.
fn make_a_bridge(lab: &Lab, mtu: usize) -> Result<()> {
    let edge = lab.edge.name();
    let middle = format!("{}-middle", lab.sandbox.id());
    let blue = lab.backends[0].namespace.name();
    let way = [
        (lab.client.name(), "eth0"),
        (edge, "front"),
        (edge, "back"),
        (&middle, "uplink"),
        (&middle, "blue1"),
        (blue, "eth0"),
    ];
    for (namespace, interface) in way {
        run(&format!("ip -n {namespace} link set {interface} mtu {mtu}"))?;
        run(&format!("nsenter --net=/run/netns/{namespace} ethtool -K {interface} gro off"))?;
    }
    for namespace in [edge, &middle] {
        // Else a bridge looks into IP packets, and drops what is none.
        for family in ["iptables", "ip6tables"] {
            run(&format!("nsenter --net=/run/netns/{namespace} sysctl -q -e -w net.bridge.bridge-nf-call-{family}=0"))?;
        }
    }
    run(&format!("ip -n {middle} link set br0 type bridge mcast_snooping 0"))?;
    run(&format!("ip -n {edge} link add bridge type bridge forward_delay 0 mcast_snooping 0"))?;
    run(&format!("ip -n {edge} link set bridge up"))?;
    for interface in &lab.interfaces {
        run(&format!("ip -n {edge} link set {interface} master bridge"))?;
    }
    run(&format!("ip -n {edge} link set bridge mtu {mtu}"))?;
    Ok(())
}

/// Sends the frames one way and returns those that arrive, sorted.
fn carry(from: &RawSocket, to: &RawSocket, frames: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    while to.receive_within(Duration::ZERO)?.is_some() {}
    let mut arrived = Vec::new();
    // Few enough at a time that no queue on the way is ever full.
    'frames: for (number, frames) in frames.chunks(16).enumerate() {
        for frame in frames {
            from.send(frame)?;
        }
        while arrived.len() < 16 * number + frames.len() {
            let Some(frame) = to.receive_within(PATIENCE)? else { break 'frames };
            if frame.get(6..12) == Some(&OURS) {
                arrived.push(frame);
            }
        }
    }
    arrived.sort();
    Ok(arrived)
}

fn assert_same(sent: &[Vec<u8>], arrived: &[Vec<u8>], when: &str) {
    let missing: Vec<_> = sent.iter().filter(|frame| arrived.binary_search(frame).is_err()).collect();
    let strange: Vec<_> = arrived.iter().filter(|frame| sent.binary_search(frame).is_err()).collect();
    assert!(
        missing.is_empty() && strange.is_empty(),
        "{when}: of {} frames {} did not arrive, {} arrived that were not sent; the first: {:02x?} and {:02x?}",
        sent.len(),
        missing.len(),
        strange.len(),
        missing.first(),
        strange.first()
    );
    assert_eq!(sent.len(), arrived.len(), "{when}");
}

fn packets(deployment: &serde_json::Value) -> u64 {
    let services = deployment["services"].as_array().into_iter().flatten();
    let of = |service: &serde_json::Value, colour: &str| service[colour]["packets"].as_u64().unwrap_or(0);
    services.map(|service| of(service, "blue") + of(service, "green")).sum()
}

/// Everything an edge may meet that is not for a VIP. All frames differ.
fn frames(to: [u8; 6], mtu: usize, chance: &mut Chance) -> Vec<Vec<u8>> {
    let (client, vip, other) = (address::CLIENT_V4, address::VIP_V4, address::BACKENDS[0].2[0]);
    let (client6, vip6, other6) = (address::CLIENT_V6, address::VIP_V6, address::BACKENDS[0].2[1]);
    let mut bytes = |length: usize| -> Vec<u8> { (0..length).map(|_| chance.number() as u8).collect() };
    let mut frames = Vec::new();
    let mut add = |ether_type: u16, payload: &[u8]| frames.push(ethernet(to, ether_type, payload));

    // A connection as ssh makes it, up to the largest segments, both ways, and one with an answer of a backend
    // that belongs to no flow.
    for number in 0..100 {
        let data = bytes(number * (mtu - 72) / 99);
        let (ours, theirs) = (tcp(40_022, 22, &data), tcp(22, 40_022, &data));
        add(IPV4, &ipv4(client, other, TCP, 0, &ours));
        add(IPV4, &ipv4(other, client, TCP, 0, &theirs));
        add(IPV6, &ipv6(client6, other6, TCP, &ours));
        add(IPV4, &ipv4(other, client, TCP, 0, &tcp(8080, 40_000 + number as u16, &data)));
    }
    // Ping, of hosts and of the VIPs: an echo request to a VIP is left to the host.
    for number in 0..20 {
        let echo = [&[8, 0, 0, 0, 0, 1, 0, number][..], &bytes(56)].concat();
        let echo6 = [&[128, 0, 0, 0, 0, 1, 0, number][..], &bytes(56)].concat();
        for (v4, v6) in [(other, other6), (vip, vip6)] {
            add(IPV4, &ipv4(client, v4, ICMP, 0, &echo));
            add(IPV6, &ipv6(client6, v6, ICMPV6, &echo6));
        }
    }
    // ARP and neighbour discovery, about the VIPs too.
    for number in 0..10 {
        let ends = [&OURS[..], &octets4(client), &to, &octets4(vip)].concat();
        add(ARP, &[&[0, 1, 8, 0, 6, 4, 0, 1 + number % 2][..], &ends, &bytes(18)].concat());
        let discovery = [&[135 + number % 2, 0, 0, 0, 0, 0, 0, 0][..], &octets6(vip6), &[1, 1], &OURS, &bytes(8)];
        add(IPV6, &ipv6(client6, other6, ICMPV6, &discovery.concat()));
    }
    // The VIPs' addresses, but no port or protocol of a service.
    for port in [22, 25, VIP_UDP_PORT + 1, VIP_HTTP_PORT + 1] {
        add(IPV4, &ipv4(client, vip, TCP, 0, &tcp(50_000, port, &bytes(30))));
        add(IPV6, &ipv6(client6, vip6, TCP, &tcp(50_000, port, &bytes(30))));
        add(IPV4, &ipv4(client, vip, UDP, 0, &udp(50_000, port, &bytes(30))));
    }
    add(IPV4, &ipv4(client, vip, TCP, 0, &tcp(50_000, VIP_UDP_PORT, &bytes(30))));
    add(IPV4, &ipv4(client, vip, UDP, 0, &udp(50_000, VIP_HTTP_PORT, &bytes(30))));
    add(IPV4, &ipv4(client, vip, SCTP, 0, &bytes(40)));
    // Options, fragments, a UDP checksum of zero, a hop limit that is spent.
    for flags in [0x2000, 0x2040, 0x0040, 0x4000] {
        add(IPV4, &ipv4(client, other, UDP, flags, &udp(1, 53, &bytes(64))));
    }
    let mut with_options = ipv4(client, other, UDP, 0, &[&[1; 8][..], &udp(1, 53, &bytes(64))].concat());
    with_options[0] = 0x47;
    add(IPV4, &with_options);
    let mut last_hop = ipv4(client, other, UDP, 0, &udp(1, 53, &bytes(64)));
    last_hop[8] = 1;
    add(IPV4, &last_hop);
    let hop_by_hop = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp(1, 53, &bytes(64))].concat();
    add(IPV6, &ipv6(client6, other6, 0, &hop_by_hop));
    let fragment = [&[UDP, 0, 0, 0xb9, 0, 0, 0, 1][..], &bytes(64)].concat();
    add(IPV6, &ipv6(client6, other6, 44, &fragment));
    // What lies about its length, is cut short, or is no IP at all.
    let mut liar = ipv4(client, other, UDP, 0, &udp(1, 53, &bytes(64)));
    liar[2] = 0xff;
    add(IPV4, &liar);
    for length in [1, 8, 19, 20, 21, 39] {
        let mut cut = ipv4(client, other, TCP, 0, &bytes(20));
        cut.truncate(length);
        add(IPV4, &cut);
        let mut cut = ipv6(client6, other6, TCP, &bytes(20));
        cut.truncate(length);
        add(IPV6, &cut);
    }
    for number in 0..100 {
        let noise = bytes(20 + number * 7);
        add(IPV4, &noise);
        add(IPV6, &noise);
        add(0x88b5, &noise);
        // A length instead of a type: IEEE 802.3.
        add(noise.len() as u16, &noise);
    }
    // The same under VLAN tags, one and two.
    for number in 0..20_u16 {
        let data = bytes(100 + usize::from(number));
        for (ether_type, packet) in [
            (IPV4, ipv4(client, other, TCP, 0, &tcp(40_022, 22, &data))),
            (IPV6, ipv6(client6, other6, TCP, &tcp(40_022, 22, &data))),
            (ARP, [&[0, 1, 8, 0, 6, 4, 0, 1][..], &data].concat()),
        ] {
            let tagged = [&(100 + number).to_be_bytes()[..], &ether_type.to_be_bytes(), &packet].concat();
            add(VLAN, &tagged);
            add(SERVICE_VLAN, &[&[0x20, 7][..], &VLAN.to_be_bytes(), &tagged].concat());
        }
    }
    frames
}

fn ethernet(to: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &OURS, &ether_type.to_be_bytes(), payload].concat()
}

fn octets4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("{address} is no IPv4 address"),
    }
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(_) => unreachable!("{address} is no IPv6 address"),
    }
}

fn ipv4(from: IpAddr, to: IpAddr, protocol: u8, flags_and_offset: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0xb6, 0]);
    header.extend(flags_and_offset.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(octets4(from));
    header.extend(octets4(to));
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    [&header, payload].concat()
}

fn ipv6(from: IpAddr, to: IpAddr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next_header, 64][..], &octets6(from), &octets6(to), payload].concat()
}

/// A segment with options; its checksum is whatever it is, as that is nobody's business on the way.
fn tcp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
    let header = [from[0], from[1], to[0], to[1], 1, 2, 3, 4, 5, 6, 7, 8, 0x80, 0x18, 1, 0, 0xab, 0xcd, 0, 0];
    [&header[..], &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], data].concat()
}

/// A datagram without a checksum.
fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let words = [from, to, 8 + data.len() as u16, 0].map(u16::to_be_bytes);
    [&words.concat()[..], data].concat()
}
