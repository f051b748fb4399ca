//! 200 switches, one every 100 ms, alternating, while kept connections (wrk) and a new connection for
//! each request run through a service: no request fails and no connection is reset.
//!
//! On a machine that is so slow that a colour has not had its share of requests after 100 ms, the next switch waits for them.

use anyhow::{Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Fabric, Lab, Neighbour, Offloads, address,
    config::{DEPLOYMENT, http_vip, shop},
    load::{Fresh, Load, Wrk},
    tcp_counter,
};
use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

const SWITCHES: u32 = 200;
const EVERY: Duration = Duration::from_millis(100);
/// Requests over new connections that the live colour answers between two switches, at least.
const BETWEEN: u64 = 10;
/// Connections that are kept.
const KEPT: u32 = 16;

/// Waits until the colour has answered so many more requests.
fn wait_for_answers(load: &Load, colour: Colour) -> Result<()> {
    let answers = || load.tally().counts().answers[colour as usize];
    let (start, enough) = (Instant::now(), answers() + BETWEEN);
    while answers() < enough {
        ensure!(start.elapsed() < Duration::from_secs(30), "{}: {} of {enough} answers", colour.name(), answers());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Switches a lab under load and proves that nobody noticed.
fn nobody_notices(lab: &Lab, mode: &str, service_mode: &str, vip: IpAddr) -> Result<()> {
    let _nginxes = lab.nginxes()?;
    let bgctl = lab.bgctl()?;
    bgctl.run(&[&["attach"], lab.interfaces.as_slice(), &["--mode", mode]].concat())?;
    bgctl.apply(&shop(lab, service_mode, ""))?;
    let neighbour = Neighbour::open(lab)?;

    let server = http_vip(vip);
    let wrk = Wrk::start(&lab.client, server, KEPT)?;
    let fresh = Fresh { clients: 8, pause: Duration::from_millis(1) }.start(&lab.client, server)?;
    let start = Instant::now();
    let mut live = Colour::Blue;
    for switch in 1..=SWITCHES {
        wait_for_answers(&fresh, live)?;
        thread::sleep((EVERY * switch).saturating_sub(start.elapsed()));
        bgctl.run(&["switch", DEPLOYMENT])?;
        live = live.other();
    }
    println!("{SWITCHES} switches took {:?}", start.elapsed());
    wait_for_answers(&fresh, live)?;
    // Before wrk ends: it closes its connections with answers on their way.
    let resets = tcp_counter(&lab.client, "EstabResets")?;
    let fresh = fresh.finish()?;
    let wrk = wrk.finish()?;

    assert_eq!(bgctl.deployment(DEPLOYMENT)?["generation"], SWITCHES + 1);
    assert_eq!(fresh.failures, 0, "{:?}", fresh.first_failures);
    assert_eq!(wrk.failures, 0, "{wrk:?}");
    assert_eq!(resets, 0, "connections that were reset under the client");
    // The load was one: both colours answered, and many times.
    assert!(fresh.answers.iter().all(|&answers| answers >= BETWEEN * u64::from(SWITCHES) / 2), "{fresh:?}");
    assert!(wrk.requests > u64::from(KEPT * SWITCHES), "{wrk:?}");
    neighbour.is_undisturbed(&bgctl)?;
    let status = bgctl.json(&["status"])?;
    let drops = status["drops"].as_object().expect("drops is an object");
    assert!(drops.values().all(|count| count == 0), "{status}");
    Ok(())
}

#[test]
fn nobody_notices_200_switches_with_native_xdp() -> Result<()> {
    nobody_notices(&Lab::wire(Fabric::Switch)?, "native", "nat", address::VIP_V4)
}

#[test]
fn nobody_notices_200_switches_of_ipv6() -> Result<()> {
    nobody_notices(&Lab::wire(Fabric::Switch)?, "native", "nat", address::VIP_V6)
}

#[test]
fn nobody_notices_200_switches_with_generic_xdp() -> Result<()> {
    nobody_notices(&Lab::wire(Fabric::Switch)?, "generic", "nat", address::VIP_V4)
}

#[test]
fn nobody_notices_200_switches_with_tc_before_a_bridge() -> Result<()> {
    nobody_notices(&Lab::bridge()?, "tc", "nat", address::VIP_V4)
}

#[test]
fn nobody_notices_200_switches_behind_a_router() -> Result<()> {
    nobody_notices(&Lab::wire(Fabric::Router)?, "native", "nat", address::VIP_V6)
}

#[test]
fn nobody_notices_200_switches_between_zones_with_tc() -> Result<()> {
    nobody_notices(&Lab::zones(Offloads::Default)?, "tc", "local", address::VIP_V4)
}

#[test]
fn nobody_notices_200_switches_between_zones_with_native_xdp() -> Result<()> {
    nobody_notices(&Lab::zones(Offloads::Wire)?, "native", "local", address::VIP_V6)
}
