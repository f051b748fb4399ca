//! Testers and the preview address meet an idle colour that is not ready: without a backend for new flows. They are refused at
//! once, by a reset or an ICMP error, and nothing of theirs reaches the live colour (invariant 6). No configuration can bring that about (invariant 7), so the
//! test takes the tables away by itself.

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use bg_common::{Colour, Protocol, ServiceKey, ServiceRow};
use bg_tests::{
    Fabric, Lab, RawSocket, Ready, Setting, address,
    config::{DEPLOYMENT, PREVIEW_PORT, http_vip, shop, udp_vip},
    frames::{PacketSpec, assert_checksums, ends, packet_in, tcp_flags},
    in_each_setting,
    load::{Connection, Echo, PATIENCE, bind_new},
};
use etherparse::{SlicedPacket, TransportSlice};
use serde_json::Value;
use std::{
    io::{Error, ErrorKind},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// Preview port of the UDP services.
const UDP_PREVIEW_PORT: u16 = 9053;

/// User, tester and VIP of each family.
const ENDS: [[IpAddr; 3]; 2] = [
    [address::CLIENT_V4, address::TESTER_V4, address::VIP_V4],
    [address::CLIENT_V6, address::TESTER_V6, address::VIP_V6],
];

/// Takes away the Maglev tables of a colour of the deployment under test, which is the second one. Returns the rows as they were.
fn take_tables(ready: &Ready, colour: Colour) -> Result<Vec<(ServiceKey, ServiceRow)>> {
    let mut services = services(ready)?;
    let rows = services.iter().collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<_> = rows.into_iter().filter(|(_, row)| row.deployment == 1).collect();
    assert_eq!(rows.len(), 8, "two services of each family, with a preview address each");
    for (key, mut row) in rows.iter().copied() {
        row.tables[colour as usize].len = 0;
        services.insert(key, row, 0)?;
    }
    Ok(rows)
}

/// The shop, whose UDP services have a preview address too.
fn config(lab: &Lab, mode: &str) -> String {
    let mut config = shop(lab, mode, "");
    for (name, vip) in [("echo4", address::VIP_V4), ("echo6", address::VIP_V6)] {
        let preview = SocketAddr::new(vip, UDP_PREVIEW_PORT);
        config =
            config.replace(&format!("name = \"{name}\"\n"), &format!("name = \"{name}\"\npreview = \"{preview}\"\n"));
    }
    config
}

/// A lab of machines with servers, and this configuration.
fn ready(lab: Lab, attach_mode: &str) -> Result<Ready> {
    let config = config(&lab, "nat");
    Ready::with(lab, attach_mode, &config)
}

fn services(ready: &Ready) -> Result<HashMap<MapData, ServiceKey, ServiceRow>> {
    let pin = ready.lab.sandbox.pin_root().join("maps/services");
    Ok(MapData::from_pin(pin).and_then(Map::from_map_data)?.try_into()?)
}

/// Asserts that a connection is refused, not timed out.
fn is_refused(ready: &Ready, from: IpAddr, to: SocketAddr) -> Result<()> {
    let error = Connection::open_from(&ready.lab.client, SocketAddr::new(from, 0), to).err();
    let error = error.with_context(|| format!("{from} has reached {to}"))?;
    let kind = error.root_cause().downcast_ref::<Error>().map(Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{error:#}");
    Ok(())
}

/// Asserts that a connected socket hears of the refusal when it waits for an answer.
fn is_told(echo: &Echo) -> Result<()> {
    let error = echo.ask("anybody there?").err().context("there is an answer")?;
    let kind = error.root_cause().downcast_ref::<Error>().map(Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{error:#}");
    Ok(())
}

/// Asserts that a datagram is refused.
fn is_unreachable(ready: &Ready, from: IpAddr, to: SocketAddr) -> Result<()> {
    let echo = ready.lab.client.enter(|| Echo::open_from(SocketAddr::new(from, 0), to))??;
    is_told(&echo).with_context(|| format!("{from} to {to}"))
}

/// How many packets were refused.
fn refused(ready: &Ready) -> Result<u64> {
    ready.bgctl.json(&["status"])?["drops"]["idle_not_ready"].as_u64().context("a number")
}

fn packets_of_blue(deployment: &Value) -> Vec<Option<u64>> {
    let services = deployment["services"].as_array().into_iter().flatten();
    services.map(|service| service["blue"]["packets"].as_u64()).collect()
}

fn testers_are_refused_until_green_is_ready(setting: Setting) -> Result<()> {
    let ready = setting.ready_with(|lab, mode| Ok(config(lab, mode)))?;
    let (client, bgctl) = (&ready.lab.client, &ready.bgctl);
    let rows = take_tables(&ready, Colour::Green)?;
    let before = bgctl.deployment(DEPLOYMENT)?;
    for [user, tester, vip] in ENDS {
        is_refused(&ready, tester, http_vip(vip))?;
        is_refused(&ready, tester, SocketAddr::new(vip, PREVIEW_PORT))?;
        is_refused(&ready, user, SocketAddr::new(vip, PREVIEW_PORT))?;
        is_unreachable(&ready, tester, udp_vip(vip))?;
        is_unreachable(&ready, tester, SocketAddr::new(vip, UDP_PREVIEW_PORT))?;
        is_unreachable(&ready, user, SocketAddr::new(vip, UDP_PREVIEW_PORT))?;
    }
    let after = bgctl.deployment(DEPLOYMENT)?;
    assert_eq!(packets_of_blue(&after), packets_of_blue(&before), "nothing of theirs has reached blue");
    assert_eq!(refused(&ready)?, 12);
    let users = ENDS.map(|[.., vip]| (Connection::open(client, http_vip(vip)), Echo::open(client, udp_vip(vip))));
    for (connection, echo) in users {
        assert_eq!((connection?.colour()?, echo?.ask("hello")?.colour), ("blue".to_owned(), Colour::Blue));
    }

    let mut services = services(&ready)?;
    rows.iter().try_for_each(|(key, row)| services.insert(*key, *row, 0))?;
    let testers = ENDS.map(|[_, tester, vip]| {
        let from = SocketAddr::new(tester, 0);
        (Connection::open_from(client, from, http_vip(vip)), client.enter(|| Echo::open_from(from, udp_vip(vip))))
    });
    let mut open = Vec::new();
    for (connection, echo) in testers {
        let (connection, echo) = (connection?, echo??);
        assert_eq!((connection.colour()?, echo.ask("hello")?.colour), ("green".to_owned(), Colour::Green));
        open.push((connection, echo));
    }

    // Green becomes live, and blue is not ready for them: then they end at once too.
    bgctl.run(&["switch", DEPLOYMENT])?;
    take_tables(&ready, Colour::Blue)?;
    for ((connection, echo), [_, tester, vip]) in open.into_iter().zip(ENDS) {
        let error = connection.ask().expect_err("the connection was on the colour that is live now");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        is_refused(&ready, tester, http_vip(vip))?;
        is_told(&echo)?;
        is_unreachable(&ready, tester, udp_vip(vip))?;
    }
    ready.neighbour_is_undisturbed()
}

in_each_setting!(testers_are_refused_until_green_is_ready);

/// An ICMP error in a frame: whether it is "port unreachable", and the packet that it quotes.
fn error_in(frame: &[u8]) -> Option<(bool, Vec<u8>)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match packet.transport? {
        TransportSlice::Icmpv4(icmp) if icmp.type_u8() == 3 => Some((icmp.code_u8() == 3, icmp.payload().to_vec())),
        TransportSlice::Icmpv6(icmp) if icmp.type_u8() == 1 => Some((icmp.code_u8() == 4, icmp.payload().to_vec())),
        _ => None,
    }
}

/// Asserts that what reaches a tester about datagrams of any length is a whole and right error.
fn errors_are_right(ready: &Ready) -> Result<()> {
    take_tables(ready, Colour::Green)?;
    let client = &ready.lab.client;
    let wire = RawSocket::open(client, "eth0")?;
    for [_, tester, vip] in ENDS {
        let (headers, most) = if vip.is_ipv4() { (28, 548) } else { (48, 1232) };
        for length in [0_usize, 1, 18, 499, 1183, 1184, 1400] {
            let payload: Vec<u8> = (0..length).map(|at| (at * 11) as u8).collect();
            let socket = client.enter(|| bind_new(tester))??;
            socket.connect(udp_vip(vip))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(&payload)?;
            let error = socket.recv(&mut [0; 64]).expect_err("nobody answers");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{length} bytes: {error}");
            let frames = wire.receive_until(PATIENCE, |frame| error_in(frame).is_some(), |_| true)?;
            let frame = &frames[0];
            assert_checksums(frame);
            let (is_port, quoted) = error_in(frame).context("an error")?;
            assert!(is_port);
            assert_eq!(quoted.len(), (headers + length).min(most), "{length} bytes");
            assert_eq!(quoted[headers..], payload[..quoted.len() - headers]);
            let ports = [socket.local_addr()?.port().to_be_bytes(), udp_vip(vip).port().to_be_bytes()].concat();
            assert_eq!(quoted[headers - 8..headers - 4], ports);
            assert_eq!(packet_in(frame).len(), quoted.len() + headers);
        }
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn errors_are_right_on_the_wire() -> Result<()> {
    errors_are_right(&ready(Lab::wire(Fabric::Switch)?, "native")?)
}

#[test]
fn errors_about_datagrams_with_unfinished_checksums_are_right() -> Result<()> {
    let lab = Lab::bridge()?;
    // The client leaves checksums to its network card, and the edge's interface towards it finishes what it sends.
    lab.edge.run("ethtool -K front tx off")?;
    errors_are_right(&ready(lab, "tc")?)
}

#[test]
fn a_train_of_datagrams_that_is_yet_to_be_cut_is_refused() -> Result<()> {
    let ready = ready(Lab::bridge()?, "tc")?;
    take_tables(&ready, Colour::Green)?;
    for [_, tester, vip] in ENDS {
        let socket = ready.lab.client.enter(|| bind_new(tester))??;
        socket.connect(udp_vip(vip))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let segment: libc::c_int = 500;
        // SAFETY: the pointer is to an integer of the length given, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const segment).cast(),
                size_of_val(&segment) as libc::socklen_t,
            )
        };
        ensure!(set == 0, "{}", Error::last_os_error());
        socket.send(&[7; 2750])?;
        let error = socket.recv(&mut [0; 64]).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    ready.neighbour_is_undisturbed()
}

/// Clients behind a VLAN are refused by frames with the tag that theirs have.
fn tagged_clients_are_refused(attach_mode: &str) -> Result<()> {
    let ready = ready(Lab::wire(Fabric::Switch)?, attach_mode)?;
    let client = &ready.lab.client;
    take_tables(&ready, Colour::Green)?;
    let wire = RawSocket::open(client, "eth0")?;
    let macs = [ready.lab.edge.mac("front")?, client.mac("eth0")?];
    for [_, tester, vip] in ENDS {
        let from = SocketAddr::new(tester, 5000);
        for packet in [PacketSpec::udp(from, udp_vip(vip)), PacketSpec::tcp(from, http_vip(vip), tcp_flags::SYN)] {
            let mut frame = PacketSpec { tags: 1, ..packet.clone() }.frame();
            frame[..12].copy_from_slice(&macs.concat());
            wire.send(&frame)?;
            let is_back =
                |answer: &[u8]| answer[..12] == [macs[1], macs[0]].concat() && answer[12..16] == frame[12..16];
            let answer = wire.receive_until(PATIENCE, is_back, |_| true)?.remove(0);
            assert_checksums(&answer);
            match packet.protocol {
                Protocol::Udp => assert_eq!(error_in(&answer), Some((true, packet_in(&frame).to_vec()))),
                Protocol::Tcp => assert_eq!(ends(&answer), (packet.to, packet.from)),
            }
        }
    }
    assert_eq!(refused(&ready)?, 4);
    ready.neighbour_is_undisturbed()
}

#[test]
fn tagged_clients_are_refused_with_native_xdp() -> Result<()> {
    tagged_clients_are_refused("native")
}

#[test]
fn tagged_clients_are_refused_with_tc() -> Result<()> {
    tagged_clients_are_refused("tc")
}

#[test]
fn the_edge_itself_is_refused_as_a_client() -> Result<()> {
    let ready = ready(Lab::wire(Fabric::Switch)?, "native")?;
    let edge = &ready.lab.edge;
    for [.., vip] in ENDS {
        edge.ip(&format!("address add {vip}/{} dev lo", if vip.is_ipv4() { 32 } else { 128 }))?;
    }
    edge.ip("link set lo up")?;
    ready.bgctl.run(&["attach", "--mode", "tc", "lo"])?;
    take_tables(&ready, Colour::Green)?;
    for [.., vip] in ENDS {
        is_told(&Echo::open(edge, SocketAddr::new(vip, UDP_PREVIEW_PORT))?)?;
        let to = SocketAddr::new(vip, PREVIEW_PORT);
        let error = edge.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?.expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    assert_eq!(refused(&ready)?, 4);
    ready.neighbour_is_undisturbed()
}

#[test]
fn a_flood_is_answered_at_a_limited_rate_and_counted_whole() -> Result<()> {
    const FLOOD: u64 = 600;
    let ready = ready(Lab::wire(Fabric::Switch)?, "native")?;
    take_tables(&ready, Colour::Green)?;
    let client = &ready.lab.client;
    for [_, tester, vip] in ENDS {
        let wire = RawSocket::open(client, "eth0")?;
        let socket = client.enter(|| bind_new(tester))??;
        let (before, begin) = (refused(&ready)?, Instant::now());
        for _ in 0..FLOOD {
            socket.send_to(b"anybody there?", udp_vip(vip))?;
        }
        while refused(&ready)? < before + FLOOD {
            ensure!(begin.elapsed() < PATIENCE, "{} were counted", refused(&ready)? - before);
        }
        let millis = begin.elapsed().as_millis() as usize;
        let mut errors = 0;
        while let Some(frame) = wire.receive_within(Duration::from_millis(100))? {
            errors += usize::from(error_in(&frame).is_some());
        }
        println!("{errors} errors in {millis} ms");
        assert!((1..=51 + millis).contains(&errors), "{errors} errors in {millis} ms");
        // And then it goes on.
        is_unreachable(&ready, tester, udp_vip(vip))?;
    }
    ready.neighbour_is_undisturbed()
}
