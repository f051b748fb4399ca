//! The labs themselves: what the other tests measure is not the lab.

use anyhow::Result;
use bg_tests::{
    Fabric, HTTP_PORT, Lab, Offloads, UDP_PORT,
    load::{Echo, Fresh, KeepAlive},
};
use std::{net::SocketAddr, time::Duration};

/// Every server of a lab answers the client at its own address, without bgctl, under load and without
/// a failure.
fn every_backend_answers(lab: &Lab) -> Result<()> {
    let _servers = lab.servers()?;
    for backend in &lab.backends {
        for address in backend.addresses {
            let http = SocketAddr::new(address, HTTP_PORT);
            let kept = KeepAlive { clients: 2, pause: Duration::ZERO }.start(&lab.client, http)?;
            let fresh = Fresh { clients: 2, pause: Duration::ZERO }.start(&lab.client, http)?;
            let echo = Echo::open(&lab.client, SocketAddr::new(address, UDP_PORT))?;
            for round in 0..100 {
                let answer = echo.ask(&format!("round {round}"))?;
                assert_eq!((answer.colour, answer.backend.as_str()), (backend.colour, backend.name));
            }
            for load in [kept, fresh] {
                load.wait_for(50)?;
                let counts = load.finish()?;
                assert_eq!(counts.failures, 0, "{:?}", counts.first_failures);
                assert_eq!(counts.answers[backend.colour.other() as usize], 0);
                assert!(counts.total() >= 50, "{counts:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn machines_behind_a_switch_answer() -> Result<()> {
    every_backend_answers(&Lab::wire(Fabric::Switch)?)
}

#[test]
fn machines_behind_a_router_answer() -> Result<()> {
    every_backend_answers(&Lab::wire(Fabric::Router)?)
}

#[test]
fn machines_behind_a_bridge_of_the_edge_answer() -> Result<()> {
    every_backend_answers(&Lab::bridge()?)
}

#[test]
fn zones_of_the_edge_answer() -> Result<()> {
    every_backend_answers(&Lab::zones(Offloads::Default)?)
}

#[test]
fn a_lab_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let id = lab.sandbox.id().to_string();
    let dir = lab.sandbox.dir().to_owned();
    let _nginxes = lab.nginxes()?;
    drop(lab);
    let namespaces = bg_tests::run("ip netns list")?;
    assert!(!namespaces.contains(&id), "{namespaces}");
    assert!(!dir.exists());
    Ok(())
}
