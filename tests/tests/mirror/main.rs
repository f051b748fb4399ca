//! A service with a mirror: the idle colour receives each datagram of the live one, byte for byte, and nobody hears what it answers. A mirror that
//! is gone costs the live colour nothing.
//!
//! The servers are the oracle: they note what they receive, and answer. On the client's wire, a packet socket sees all that arrives.

mod ends;

use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Fabric, Lab, Namespace, Offloads, RawSocket, Ready, address,
    config::{DEPLOYMENT, shop},
    frames::packet_in,
};
use ends::{Datagram, Flow, Recorder};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Port of the service at the VIP, of its servers, and of its preview address.
const PORT: u16 = 514;
const SERVER_PORT: u16 = 5514;
const PREVIEW_PORT: u16 = 9514;
/// Client, tester and VIP of each family.
const ENDS: [[IpAddr; 3]; 2] = [
    [address::CLIENT_V4, address::TESTER_V4, address::VIP_V4],
    [address::CLIENT_V6, address::TESTER_V6, address::VIP_V6],
];
/// Flows of each family, and datagrams of a flow.
const FLOWS: usize = 6;
const DATAGRAMS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(20);
const MIRROR: &str = "mirror = \"idle\"";

/// The service under test, which is the last one, after others without a mirror.
fn config(lab: &Lab, mode: &str, mirror: &str) -> String {
    let mut config = shop(lab, mode, "");
    for (family, [.., vip]) in ENDS.into_iter().enumerate() {
        let [blue, green] = Colour::ALL.map(|colour| {
            let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
            let address = of_colour.map(|it| format!("\"{}\"", SocketAddr::new(it.addresses[family], SERVER_PORT)));
            address.collect::<Vec<_>>().join(", ")
        });
        config += &format!(
            "\n[[deployments.{DEPLOYMENT}.services]]\nname = \"log{family}\"\nvip = \"{}\"\nprotocol = \"udp\"\nmode = \"{mode}\"\n\
             blue = [{blue}]\ngreen = [{green}]\npreview = \"{}\"\n{mirror}\n",
            SocketAddr::new(vip, PORT),
            SocketAddr::new(vip, PREVIEW_PORT),
        );
    }
    config
}

fn flows(lab: &Lab, family: usize) -> Result<Vec<Flow>> {
    let [client, _, vip] = ENDS[family];
    flows_from(&lab.client, client, vip)
}

fn flows_from(client: &Namespace, from: IpAddr, vip: IpAddr) -> Result<Vec<Flow>> {
    (0..FLOWS).map(|_| Flow::open(client, from, SocketAddr::new(vip, PORT))).collect()
}

/// Content of all lengths: nothing, one less than fits into a frame of this family (the answer is a byte longer), and lengths between.
fn content(nth: usize, is_v4: bool) -> Vec<u8> {
    const HEADERS: [usize; 2] = [48, 28];
    let most = 1500 - HEADERS[usize::from(is_v4)] - 1;
    let length = match nth {
        0 => 0,
        1 => most,
        _ => (nth * 37) % most,
    };
    (0..length).map(|at| (at * 7 + nth) as u8).collect()
}

/// Sends datagrams of each flow in turn. Each is answered by this colour. Returns them, sorted.
fn talk(flows: &[Flow], datagrams: usize, expected: Colour) -> Result<Vec<Datagram>> {
    let mut sent = Vec::new();
    for nth in 0..datagrams {
        for flow in flows {
            sent.push(flow.ask(&content(nth, flow.is_v4()), expected)?);
        }
    }
    flows.iter().for_each(Flow::is_silent);
    sent.sort();
    Ok(sent)
}

/// A counter of the service under test of this family.
fn counter(ready: &Ready, family: usize, colour: Colour, what: &str) -> Result<u64> {
    let deployment = ready.bgctl.deployment(DEPLOYMENT)?;
    let mut services = deployment["services"].as_array().context("services")?.iter();
    let service = services.find(|service| service["name"] == format!("log{family}")).context("the service")?;
    assert_eq!(service["mirror"], "idle");
    service[colour.name()][what].as_u64().context("a counter")
}

fn dropped(ready: &Ready, reason: &str) -> Result<u64> {
    ready.bgctl.json(&["status"])?["drops"][reason].as_u64().context("a counter")
}

/// Waits until so many answers to copies, and errors about copies, were dropped.
fn wait_for_dropped(ready: &Ready, answers: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while dropped(ready, "mirror_answer")? < answers {
        ensure!(Instant::now() < end, "{} of {answers} answers were counted", dropped(ready, "mirror_answer")?);
    }
    Ok(())
}

/// Asserts that all packets that have arrived at the client are from one of the edge's or the VIPs' addresses: no answer of a backend as it is, and no ICMP
/// error of one or about a copy.
fn nobody_else_was_heard(wire: &RawSocket, lab: &Lab) -> Result<()> {
    let strange: Vec<IpAddr> = lab.backends.iter().flat_map(|backend| backend.addresses).collect();
    while let Some(frame) = wire.receive_within(Duration::from_millis(20))? {
        let kind = u16::from_be_bytes([frame[12], frame[13]]);
        let packet = packet_in(&frame);
        let (source, is_error): (IpAddr, bool) = match kind {
            0x0800 => (<[u8; 4]>::try_from(&packet[12..16])?.into(), packet[9] == 1 && packet[20] == 3),
            0x86dd => (<[u8; 16]>::try_from(&packet[8..24])?.into(), packet[6] == 58 && packet[40] < 128),
            _ => continue,
        };
        assert!(!strange.contains(&source), "the client has heard {source}: {frame:02x?}");
        assert!(!is_error, "an error of {source}: {frame:02x?}");
    }
    Ok(())
}

/// What is to happen to the mirror.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mirror {
    /// Its machines disappear.
    Gone,
    /// Its servers end: its hosts answer with ICMP errors.
    Closed,
}

/// The lab, each of its interfaces attached in a mode of its own, and the service under test with a mirror.
fn ready(mut lab: Lab, attach_modes: &[&str], mode: &str) -> Result<Ready> {
    let mirrored = config(&lab, mode, MIRROR);
    let others = lab.interfaces.split_off(1);
    let ready = Ready::with(lab, attach_modes[0], &mirrored)?;
    for (interface, attach_mode) in others.into_iter().zip(attach_modes.iter().cycle().skip(1)) {
        ready.bgctl.run(&["attach", "--mode", attach_mode, interface])?;
    }
    Ok(ready)
}

fn mirrors(lab: Lab, attach_modes: &[&str], mode: &str, accidents: &[Mirror]) -> Result<()> {
    let ready = ready(lab, attach_modes, mode)?;
    let lab = &ready.lab;
    let [blue, green] = Colour::ALL.map(|colour| Recorder::start(lab, colour));
    let (blue, green) = (blue?, green?);
    let wire = RawSocket::open(&lab.client, "eth0")?;
    let all_flows = [flows(lab, 0)?, flows(lab, 1)?];

    // Each datagram reaches both colours, byte for byte, and only the live one is heard.
    let mut answers = 0;
    for (family, flows) in all_flows.iter().enumerate() {
        let sent = talk(flows, DATAGRAMS, Colour::Blue)?;
        green.wait_for(sent.len())?;
        assert_eq!(blue.all(), sent);
        assert_eq!(green.all(), sent);
        for servers in green.servers_of_clients().values().chain(blue.servers_of_clients().values()) {
            assert_eq!(servers.len(), 1, "datagrams of a flow, and their copies, stay at one server: {servers:?}");
        }
        answers += sent.len() as u64;
        wait_for_dropped(&ready, answers)?;
        let of = |colour, what| counter(&ready, family, colour, what);
        assert_eq!(
            (of(Colour::Blue, "packets")?, of(Colour::Green, "mirrored")?),
            (sent.len() as u64, sent.len() as u64)
        );
        assert_eq!((of(Colour::Green, "packets")?, of(Colour::Blue, "mirrored")?), (0, 0));
        blue.forget();
        green.forget();
    }
    assert_eq!(dropped(&ready, "mirror_answer")?, answers);

    // Testers, and who asks the preview address, are answered by the idle colour, which gets their datagrams once.
    for [client, tester, vip] in ENDS {
        let tests = [
            Flow::open(&lab.client, tester, SocketAddr::new(vip, PORT))?,
            Flow::open(&lab.client, client, SocketAddr::new(vip, PREVIEW_PORT))?,
        ];
        let sent = talk(&tests, 5, Colour::Green)?;
        assert_eq!(green.all(), sent);
        assert_eq!(blue.all(), []);
        green.forget();
    }
    assert_eq!(dropped(&ready, "mirror_answer")?, answers);

    // A switch. Open flows stay, and are on the idle colour now: no copies. New ones have them on blue.
    ready.bgctl.run(&["switch", DEPLOYMENT, "green", "--on-switch", "drain"])?;
    for (family, old) in all_flows.iter().enumerate() {
        let sent_old = talk(old, 5, Colour::Blue)?;
        let sent = talk(&flows(lab, family)?, 5, Colour::Green)?;
        blue.wait_for(sent.len() + sent_old.len())?;
        let mut both = [sent_old, sent.clone()].concat();
        both.sort();
        assert_eq!((green.all(), blue.all()), (sent, both));
        blue.forget();
        green.forget();
    }
    // And cuts, in which they move: to blue, where they are, to green, which has had copies of them, and back.
    for (colour, command) in [(Colour::Blue, "rollback"), (Colour::Green, "switch"), (Colour::Blue, "switch")] {
        ready.bgctl.run(&[command, DEPLOYMENT, colour.name(), "--on-switch", "cut"])?;
        let (live, idle) = if colour == Colour::Blue { (&blue, &green) } else { (&green, &blue) };
        for flows in &all_flows {
            let sent = talk(flows, 5, colour)?;
            idle.wait_for(sent.len())?;
            assert_eq!((live.all(), idle.all()), (sent.clone(), sent));
            blue.forget();
            green.forget();
        }
    }
    assert_eq!(dropped(&ready, "mirror_lost")?, 0);
    nobody_else_was_heard(&wire, lab)?;

    // From one port to the preview address too. A backend that answers there gets no copies: its answers to them would come from there.
    for (family, [.., vip]) in ENDS.into_iter().enumerate() {
        let flows = flows(lab, family)?;
        let to_preview = |flow: &Flow| flow.also_to(SocketAddr::new(vip, PREVIEW_PORT));
        let previews = flows.iter().map(to_preview).collect::<Result<Vec<_>>>()?;
        talk(&previews, 2, Colour::Green)?;
        let copied = || {
            Ok::<_, anyhow::Error>(
                counter(&ready, family, Colour::Green, "mirrored")? + dropped(&ready, "mirror_lost")?,
            )
        };
        let before = copied()?;
        let sent = talk(&flows, 5, Colour::Blue)?;
        assert_eq!(blue.all(), sent);
        let end = Instant::now() + PATIENCE;
        while copied()? < before + sent.len() as u64 {
            ensure!(Instant::now() < end, "{} of {} copies were sent or lost", copied()? - before, sent.len());
        }
        flows.iter().for_each(Flow::is_silent);
        blue.forget();
        green.forget();
    }

    ready.neighbour_is_undisturbed()?;

    drop(green);
    for accident in accidents {
        if *accident == Mirror::Gone {
            for backend in lab.backends.iter().filter(|backend| backend.colour == Colour::Green) {
                backend.namespace.ip("link set eth0 down")?;
            }
        }
        for (family, flows) in all_flows.iter().enumerate() {
            let before = counter(&ready, family, Colour::Blue, "packets")?;
            let errors = dropped(&ready, "mirror_answer")?;
            let sent = talk(flows, DATAGRAMS, Colour::Blue)?;
            assert_eq!(blue.all(), sent, "{accident:?}");
            assert_eq!(counter(&ready, family, Colour::Blue, "packets")? - before, sent.len() as u64);
            blue.forget();
            if *accident == Mirror::Closed {
                wait_for_dropped(&ready, errors + 1)?;
            }
        }
        nobody_else_was_heard(&wire, lab)?;
    }

    // Without a mirror again.
    let copies = counter(&ready, 0, Colour::Green, "mirrored")?;
    let shown = ready.bgctl.run(&["show"])?;
    assert_eq!(shown.matches("mirror = \"idle\"").count(), 2, "{shown}");
    ready.bgctl.apply(&shown)?;
    assert_eq!(counter(&ready, 0, Colour::Green, "mirrored")?, copies, "nothing has changed");
    ready.bgctl.apply(&config(lab, mode, ""))?;
    assert!(!ready.bgctl.run(&["show"])?.contains("mirror"));
    talk(&all_flows[0], 3, Colour::Blue)?;
    let deployment = ready.bgctl.deployment(DEPLOYMENT)?;
    let service = deployment["services"].as_array().into_iter().flatten().find(|it| it["name"] == "log0");
    assert_eq!(service.context("the service")?["green"]["mirrored"], copies);
    // And with it, for flows that were open meanwhile.
    ready.bgctl.apply(&config(lab, mode, MIRROR))?;
    talk(&all_flows[0], 3, Colour::Blue)?;
    assert!(counter(&ready, 0, Colour::Green, "mirrored")? > copies);
    Ok(())
}

/// A packet of many datagrams, as the stack of a virtual machine sends it, has one copy.
#[test]
fn datagrams_that_leave_as_one_packet_are_copied() -> Result<()> {
    let ready = ready(Lab::bridge()?, &["tc"], "nat")?;
    let [blue, green] = Colour::ALL.map(|colour| Recorder::start(&ready.lab, colour));
    let (blue, green) = (blue?, green?);
    for family in [0, 1] {
        let flow = &flows(&ready.lab, family)?[0];
        let packets = || counter(&ready, family, Colour::Green, "mirrored");
        let before = packets()?;
        let content: Vec<u8> = (0..4200_u16).map(|at| at.to_le_bytes()[0] ^ at.to_be_bytes()[0]).collect();
        let mut sent = flow.ask_as_one(&content, 500, Colour::Blue)?;
        sent.sort();
        green.wait_for(sent.len())?;
        assert_eq!((blue.all(), green.all()), (sent.clone(), sent.clone()));
        assert!(packets()? - before < sent.len() as u64, "they were no packet of many datagrams");
        flow.is_silent();
        blue.forget();
        green.forget();
    }
    Ok(())
}

/// The edge itself as a client, whose packets leave by the loopback interface, with the VIP among its own addresses.
fn mirrors_the_edge(lab: Lab, mode: &str) -> Result<()> {
    let ready = ready(lab, &["tc"], mode)?;
    let lab = &ready.lab;
    for vip in [address::VIP_V4, address::VIP_V6] {
        lab.edge.ip(&format!("address add {vip}/{} dev lo", if vip.is_ipv4() { 32 } else { 128 }))?;
    }
    ready.bgctl.run(&["attach", "--mode", "tc", "lo"])?;
    let [blue, green] = Colour::ALL.map(|colour| Recorder::start(lab, colour));
    let (blue, green) = (blue?, green?);
    let mut answers = 0;
    for (own, vip) in [(address::FRONT_V4, address::VIP_V4), (address::FRONT_V6, address::VIP_V6)] {
        let sent = talk(&flows_from(&lab.edge, own, vip)?, 5, Colour::Blue)?;
        green.wait_for(sent.len())?;
        assert_eq!((blue.all(), green.all()), (sent.clone(), sent.clone()));
        answers += sent.len() as u64;
        wait_for_dropped(&ready, answers)?;
        blue.forget();
        green.forget();
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn the_edge_s_own_datagrams_are_mirrored_to_machines() -> Result<()> {
    mirrors_the_edge(Lab::bridge()?, "nat")
}

#[test]
fn the_edge_s_own_datagrams_are_mirrored_between_zones() -> Result<()> {
    mirrors_the_edge(Lab::zones(Offloads::Default)?, "local")
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_native_xdp() -> Result<()> {
    mirrors(Lab::wire(Fabric::Switch)?, &["native"], "nat", &[Mirror::Closed, Mirror::Gone])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_generic_xdp_behind_a_router() -> Result<()> {
    mirrors(Lab::wire(Fabric::Router)?, &["generic"], "nat", &[Mirror::Closed, Mirror::Gone])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_native_xdp_towards_clients_and_tc_towards_backends() -> Result<()> {
    mirrors(Lab::wire(Fabric::Switch)?, &["native", "tc"], "nat", &[Mirror::Closed])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_tc_towards_clients_and_native_xdp_towards_backends() -> Result<()> {
    mirrors(Lab::wire(Fabric::Switch)?, &["tc", "native"], "nat", &[Mirror::Closed])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_with_tc() -> Result<()> {
    mirrors(Lab::bridge()?, &["tc"], "nat", &[Mirror::Closed, Mirror::Gone])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_between_zones_with_tc() -> Result<()> {
    mirrors(Lab::zones(Offloads::Default)?, &["tc"], "local", &[Mirror::Closed])
}

#[test]
fn the_idle_colour_mirrors_the_live_one_between_zones_with_native_xdp() -> Result<()> {
    mirrors(Lab::zones(Offloads::Wire)?, &["native"], "local", &[Mirror::Closed])
}
