//! A cut moves open flows at once: a UDP flow with its first packet after the switch; a TCP client sees a
//! reset, and finds the new colour when it comes again.

use anyhow::{Context, Result};
use bg_common::Colour;
use bg_tests::{
    Fabric, Lab, Live, Ready, SwitchInstant, address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip, shop, udp_vip},
    load::{Connection, Echo, KeepAlive},
    retransmissions,
};
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

const CUT: [&str; 4] = ["switch", DEPLOYMENT, "--on-switch", "cut"];
const ROUNDS: usize = 10;

/// Round after round, an open UDP flow and an open TCP connection meet a cut.
fn open_flows_move_at_once(ready: &Ready, vip: IpAddr) -> Result<()> {
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    let udp = Echo::open(&lab.client, udp_vip(vip))?;
    for round in 0..ROUNDS {
        let old = udp.ask(&format!("{round}, before"))?.colour;
        let tcp = Connection::open(&lab.client, http_vip(vip))?;
        assert_eq!(tcp.colour()?, old.name());

        bgctl.run(&CUT)?;

        assert_eq!(udp.ask(&format!("{round}, after"))?.colour, old.other(), "the first datagram after the cut");
        let retransmitted = retransmissions(tcp.stream())?;
        let error = tcp.colour().expect_err("the connection was cut");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(retransmissions(tcp.stream())?, retransmitted, "the reset answers the first segment after the cut");
        assert_eq!(Connection::open(&lab.client, http_vip(vip))?.colour()?, old.other().name(), "the next connection");
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn open_flows_move_at_once_with_native_xdp() -> Result<()> {
    let ready = Ready::native("")?;
    open_flows_move_at_once(&ready, address::VIP_V4)?;
    open_flows_move_at_once(&ready, address::VIP_V6)
}

#[test]
fn open_flows_move_at_once_with_tc() -> Result<()> {
    let lab = Lab::bridge()?;
    let config = shop(&lab, "nat", "");
    let ready = Ready::with(lab, "tc", &config)?;
    open_flows_move_at_once(&ready, address::VIP_V4)?;
    open_flows_move_at_once(&ready, address::VIP_V6)
}

#[test]
fn open_flows_move_at_once_between_zones() -> Result<()> {
    let lab = Lab::zones(bg_tests::Offloads::Default)?;
    let config = shop(&lab, "local", "");
    let ready = Ready::with(lab, "tc", &config)?;
    open_flows_move_at_once(&ready, address::VIP_V4)?;
    open_flows_move_at_once(&ready, address::VIP_V6)
}

#[test]
fn kept_connections_come_again_on_the_new_colour_and_lose_one_request_each() -> Result<()> {
    let ready = Ready::native("on_switch = \"cut\"")?;
    let clients = 20;
    let load =
        KeepAlive { clients, pause: Duration::from_millis(1) }.start(&ready.lab.client, http_vip(address::VIP_V4))?;
    let all_on = |colour: Colour| {
        let end = Instant::now() + Duration::from_secs(30);
        while load.tally().counts().connections[colour as usize] < clients as u64 {
            assert!(Instant::now() < end, "{:?}", load.tally().counts());
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    all_on(Colour::Blue);
    load.tally().expect_cut(true);
    for round in 1..=10 {
        ready.bgctl.run(&["switch", DEPLOYMENT])?;
        all_on(if round % 2 == 1 { Colour::Green } else { Colour::Blue });
    }
    let counts = load.finish()?;
    assert_eq!(counts.failures, 0, "{:?}", counts.first_failures);
    assert_eq!(counts.strayed, 0, "an answer of the other colour over an open connection");
    assert_eq!(counts.cut, 10 * clients as u64);
    ready.neighbour_is_undisturbed()
}

/// What belongs to which deployment, told from outside: by cuts of each, and by a tester's flow.
#[test]
fn each_deployment_is_governed_by_its_own_word() -> Result<()> {
    let ready = Ready::native("")?;
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    for vip in [address::VIP_V4, address::VIP_V6] {
        let (udp, tcp) = (Echo::open(&lab.client, udp_vip(vip))?, Connection::open(&lab.client, http_vip(vip))?);
        let from = SocketAddr::new(if vip.is_ipv4() { address::TESTER_V4 } else { address::TESTER_V6 }, 0);
        let tester = lab.client.enter(|| Echo::open_from(from, udp_vip(vip)))??;
        let old = udp.ask("before")?.colour;
        assert_eq!((tcp.colour()?.as_str(), tester.ask("before")?.colour), (old.name(), old.other()));
        let flows = bgctl.json(&["flows", DEPLOYMENT])?;
        let flows = flows["flows"].as_array().context("no flows")?;
        let of = |via: &str| flows.iter().filter(|flow| flow["deployment"] == DEPLOYMENT && flow["via"] == via).count();
        assert!(of("user") >= 2 && of("tester") >= 1 && of("user") + of("tester") == flows.len(), "{flows:#?}");
        assert!(bgctl.deployment(DEPLOYMENT)?["flows"][old.other().name()].as_u64() >= Some(1), "the tester's");

        bgctl.run(&CUT)?;
        assert_eq!(udp.ask("after")?.colour, old.other());
        assert_eq!(tester.ask("after")?.colour, old, "a tester's flow does not stay on a colour that becomes live");
        assert!(tcp.colour().is_err(), "the connection was cut");
        ready.neighbour_is_undisturbed()?;
    }
    // And the other way round: a cut of the first ends its own flows, and none of the second.
    let (udp, tcp) =
        (Echo::open(&lab.client, udp_vip(address::VIP_V4))?, Connection::open(&lab.client, http_vip(address::VIP_V6))?);
    let (colour, of_tcp) = (udp.ask("before")?.colour, tcp.colour()?);
    bgctl.run(&["switch", NEIGHBOUR, "--on-switch", "cut"])?;
    assert!(ready.neighbour().is_reset());
    assert_eq!((udp.ask("after")?.colour, tcp.colour()?), (colour, of_tcp));
    let (shop, mail) = (bgctl.deployment(DEPLOYMENT)?, bgctl.deployment(NEIGHBOUR)?);
    assert_eq!((&shop["generation"], &mail["generation"]), (&3.into(), &2.into()));
    assert_eq!((&shop["live"], &mail["live"]), (&"blue".into(), &"blue".into()));
    Ok(())
}

/// A switch under a stream of new flows: every datagram is on the new colour that is sent after the command has returned, and
/// even after the store was seen in the map.
#[test]
fn after_the_switch_has_returned_no_new_flow_is_on_the_old_colour() -> Result<()> {
    let ready = Ready::native("")?;
    let live = Live::open(ready.lab.sandbox.pin_root())?;
    let mut colour = Colour::Blue;
    for _ in 0..20 {
        colour = colour.other();
        let switch = || ready.bgctl.run(&["switch", DEPLOYMENT]).map(drop);
        let measured = SwitchInstant::measure(&ready.lab.client, udp_vip(address::VIP_V4), &live, switch)?;
        assert_eq!((measured.late(colour), measured.behind(colour)), (0, 0));
        assert_eq!(measured.lost(), 0, "of {} probes", measured.probes.len());
        assert!(measured.first_arrival(colour).is_some(), "no probe has reached the new colour");
    }
    Ok(())
}

#[test]
fn machines_behind_a_router_are_cut_as_neighbours_are() -> Result<()> {
    let lab = Lab::wire(Fabric::Router)?;
    let config = shop(&lab, "nat", "");
    let ready = Ready::with(lab, "generic", &config)?;
    open_flows_move_at_once(&ready, address::VIP_V4)?;
    open_flows_move_at_once(&ready, address::VIP_V6)
}
