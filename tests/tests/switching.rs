//! 200 switches, one every 100 ms, alternating, while kept connections (wrk) and a new connection for
//! each request run through a service: no request fails and no connection is reset.

use anyhow::Result;
use bg_tests::{
    Fabric, Lab, Neighbour, Offloads, address,
    config::{DEPLOYMENT, http_vip, shop},
    load::{Fresh, Wrk},
    tcp_counter,
};
use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

const SWITCHES: u32 = 200;
const EVERY: Duration = Duration::from_millis(100);

/// Switches a lab under load and proves that nobody noticed.
fn nobody_notices(lab: &Lab, mode: &str, service_mode: &str, vip: IpAddr) -> Result<()> {
    let _nginxes = lab.nginxes()?;
    let bgctl = lab.bgctl()?;
    bgctl.run(&[&["attach"], lab.interfaces.as_slice(), &["--mode", mode]].concat())?;
    bgctl.apply(&shop(lab, service_mode, ""))?;
    let neighbour = Neighbour::open(lab)?;

    let server = http_vip(vip);
    let whole = EVERY * SWITCHES + Duration::from_secs(8);
    let wrk = Wrk::start(&lab.client, server, 16, whole)?;
    let fresh = Fresh { clients: 8, pause: Duration::from_millis(1) }.start(&lab.client, server)?;
    let start = Instant::now();
    for switch in 1..=SWITCHES {
        thread::sleep((EVERY * switch).saturating_sub(start.elapsed()));
        bgctl.run(&["switch", DEPLOYMENT])?;
    }
    let took = start.elapsed();
    thread::sleep(Duration::from_millis(200));
    // Before wrk ends: it closes its connections with answers on their way.
    let resets = tcp_counter(&lab.client, "EstabResets")?;
    let fresh = fresh.finish()?;
    let wrk = wrk.report()?;

    assert_eq!(bgctl.deployment(DEPLOYMENT)?["generation"], SWITCHES + 1);
    assert_eq!(fresh.failures, 0, "{:?}", fresh.first_failures);
    assert_eq!(wrk.failures, 0, "{wrk:?}");
    assert_eq!(resets, 0, "connections that were reset under the client");
    // The load was one: both colours answered, and many times.
    assert!(fresh.answers.iter().all(|&answers| answers > 1000), "{fresh:?}");
    assert!(wrk.requests > 20_000, "{wrk:?}");
    assert!(took < EVERY * SWITCHES * 3 / 2, "{SWITCHES} switches took {took:?}");
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
