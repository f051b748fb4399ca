//! Switches under load: no request fails.

use crate::stage::{Service, Stage, VIPS, WAYS};
use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    HTTP_PORT, UDP_PORT, address,
    load::{Echo, Fresh, KeepAlive, Load},
};
use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

/// Switches under each load: a hundred if `BG_TEST_FULL` is set, which takes half an hour.
fn switches() -> usize {
    if std::env::var_os("BG_TEST_FULL").is_some() { 100 } else { 6 }
}

/// Answers of the live colour between two switches, at least.
const BETWEEN: u64 = 20;

fn wait_for_answers(load: &Load, colour: Colour) -> Result<()> {
    let answers = || load.tally().counts().answers[colour as usize];
    let (start, enough) = (Instant::now(), answers() + BETWEEN);
    while answers() < enough {
        let counts = load.tally().counts();
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "{}: {} of {enough} answers, {counts:?}",
            colour.name(),
            answers()
        );
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Switches under load by TCP and UDP at a VIP. Returns how many requests were answered by TCP, and by UDP.
fn nobody_notices(stage: &Stage, deployment: &str, vip: IpAddr, mut live: Colour) -> Result<[u64; 2]> {
    let server = SocketAddr::new(vip, HTTP_PORT);
    let client = &stage.lab.client;
    let kept = KeepAlive { clients: 4, pause: Duration::from_millis(2) }.start(client, server)?;
    let fresh = Fresh { clients: 4, pause: Duration::from_millis(1) }.start(client, server)?;
    let mut datagrams = 0;
    for _ in 0..switches() {
        wait_for_answers(&fresh, live)?;
        let echo = Echo::open(client, SocketAddr::new(vip, UDP_PORT))?;
        for round in 0..10 {
            let answer = echo.ask(&format!("round {round}"))?;
            ensure!(answer.colour == live, "{answer:?}");
            datagrams += 1;
        }
        stage.bgctl.run(&["switch", deployment])?;
        ensure!(echo.ask("after the switch")?.colour == live, "a flow stays");
        live = live.other();
    }
    wait_for_answers(&fresh, live)?;
    let (kept, fresh) = (kept.finish()?, fresh.finish()?);
    for counts in [&kept, &fresh] {
        ensure!(counts.failures == 0, "{:?}", counts.first_failures);
        ensure!(counts.strayed == 0, "{counts:?}");
    }
    Ok([kept.total() + fresh.total(), datagrams])
}

fn all_ways(attach: &str) -> Result<()> {
    let stage = Stage::new(attach)?;
    println!("| hook | mode | VIP | backends | switches | answers by TCP | by UDP | failed |");
    for (mode, is_of_v6) in WAYS {
        stage.bgctl.apply(&stage.deployment("shop", &Stage::services(mode, is_of_v6)))?;
        for vip in VIPS {
            let live = if stage.bgctl.live("shop")? == "blue" { Colour::Blue } else { Colour::Green };
            let answers = nobody_notices(&stage, "shop", vip, live);
            let [tcp, udp] = answers.with_context(|| format!("{attach}, {mode}, {vip}, {is_of_v6:?}"))?;
            let name = |is_v6: bool| if is_v6 { "IPv6" } else { "IPv4" };
            let (family, backends) = (name(vip.is_ipv6()), name(is_of_v6.unwrap_or(vip.is_ipv6())));
            println!("| {attach} | {mode} | {family} | {backends} | {} | {tcp} | {udp} | 0 |", switches());
        }
        stage.nothing_was_dropped()?;
    }
    Ok(())
}

#[test]
fn nobody_notices_switches_with_native_xdp() -> Result<()> {
    all_ways("native")
}

#[test]
fn nobody_notices_switches_with_generic_xdp() -> Result<()> {
    all_ways("generic")
}

#[test]
fn nobody_notices_switches_with_tc_before_a_bridge() -> Result<()> {
    all_ways("tc")
}

/// Two deployments and four modes at once. What is not for a VIP is left alone.
#[test]
fn each_service_has_its_own_mode_and_others_are_left_alone() -> Result<()> {
    let stage = Stage::new("native")?;
    let service = |vip: IpAddr, port, protocol, mode, is_of_v6| Service { vip, port, protocol, mode, is_of_v6 };
    let [v4, v6] = VIPS;
    let shop = stage.deployment(
        "shop",
        &[service(v4, HTTP_PORT, "tcp", "l2dsr", false), service(v4, UDP_PORT, "udp", "ipip", true)],
    );
    let mail = stage.deployment(
        "mail",
        &[service(v6, HTTP_PORT, "tcp", "gue", false), service(v6, UDP_PORT, "udp", "l2dsr", true)],
    );
    stage.bgctl.apply(&format!("{shop}\n{mail}"))?;
    // A client that talks to a backend itself, through the edge.
    let [own, _] = stage.lab.backends[3].addresses;
    stage.lab.client.ip(&format!("route add {own}/32 via {}", address::FRONT_V4))?;
    let plain = bg_tests::Server::start(&stage.lab.backends[3].namespace, "green green2", &[own])?;
    let direct = KeepAlive { clients: 2, pause: Duration::from_millis(2) }
        .start(&stage.lab.client, SocketAddr::new(own, HTTP_PORT))?;
    for (deployment, vip) in [("shop", v4), ("mail", v6), ("shop", v4)] {
        let live = if stage.bgctl.live(deployment)? == "blue" { Colour::Blue } else { Colour::Green };
        nobody_notices(&stage, deployment, vip, live).context(deployment)?;
    }
    direct.wait_for(50)?;
    let direct = direct.finish()?;
    assert_eq!((direct.failures, direct.answers[0]), (0, 0), "{:?}", direct.first_failures);
    assert!(plain.requests() > 0);
    stage.nothing_was_dropped()
}
