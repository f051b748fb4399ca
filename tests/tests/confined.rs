//! A switch that makes a tester's colour live ends the tester's connections at both ends at once, although nobody says a word, and leaves those
//! of users alone.

use anyhow::{Result, ensure};
use bg_tests::{
    Fabric, Lab, Offloads, Ready, address,
    config::{DEPLOYMENT, PREVIEW_PORT, http_vip, shop},
    load::{Connection, PATIENCE},
};
use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// User, tester and VIP of each family.
const ENDS: [[IpAddr; 3]; 2] = [
    [address::CLIENT_V4, address::TESTER_V4, address::VIP_V4],
    [address::CLIENT_V6, address::TESTER_V6, address::VIP_V6],
];

/// Waits until no backend has a socket of this client.
fn no_backend_knows(lab: &Lab, client: SocketAddr) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut known = String::new();
        for backend in &lab.backends {
            let sockets = backend.namespace.run(&format!("ss -H -t -n -a dport = :{}", client.port()))?;
            known.extend(sockets.lines().filter(|line| !line.starts_with("TIME-WAIT") && line.contains(":8080")));
        }
        if known.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "a backend still has {known}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn testers_are_told(lab: Lab, attach_mode: &str, service_mode: &str) -> Result<()> {
    lab.guard_backends()?;
    let config = shop(&lab, service_mode, "");
    let ready = Ready::with(lab, attach_mode, &config)?;
    for (round, way) in [["switch", DEPLOYMENT], ["rollback", DEPLOYMENT]].iter().enumerate() {
        let [live, idle] = if round == 0 { ["blue", "green"] } else { ["green", "blue"] };
        let (mut confined, mut users) = (Vec::new(), Vec::new());
        for [user, tester, vip] in ENDS {
            let open = |from, port| {
                Connection::open_from(&ready.lab.client, SocketAddr::new(from, 0), SocketAddr::new(vip, port))
            };
            confined.extend([open(tester, http_vip(vip).port())?, open(user, PREVIEW_PORT)?]);
            users.push(open(user, http_vip(vip).port())?);
        }
        for connection in &confined {
            assert_eq!(connection.colour()?, idle);
        }
        for connection in &users {
            assert_eq!(connection.colour()?, live);
        }
        ready.bgctl.run(way)?;
        for connection in &confined {
            let client = connection.stream().local_addr()?;
            let error = connection.stream().read(&mut [0; 64]).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            no_backend_knows(&ready.lab, client)?;
        }
        for connection in &users {
            assert_eq!(connection.colour()?, live, "it drains");
        }
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn testers_are_told_with_native_xdp() -> Result<()> {
    testers_are_told(Lab::wire(Fabric::Switch)?, "native", "nat")
}

#[test]
fn testers_are_told_with_generic_xdp_behind_a_router() -> Result<()> {
    testers_are_told(Lab::wire(Fabric::Router)?, "generic", "nat")
}

#[test]
fn testers_are_told_with_tc() -> Result<()> {
    testers_are_told(Lab::bridge()?, "tc", "nat")
}

#[test]
fn testers_are_told_between_zones() -> Result<()> {
    testers_are_told(Lab::zones(Offloads::Default)?, "tc", "local")
}
