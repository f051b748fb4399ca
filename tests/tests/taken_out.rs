//! A backend that is taken out: with the weight 0 it keeps its connections until they end or are reset, and an apply that removes it resets
//! what it still has, at both ends, through firewalls that know neither end's segments.

use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Ready, Setting, address,
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    in_each_setting,
    load::{Connection, Echo, PATIENCE},
};
use serde_json::Value;
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];
const HTTP: u16 = 8080;

/// Connections by both VIPs, with their backends.
fn connections(ready: &Ready) -> Result<Vec<(String, Connection)>> {
    let open = |vip: IpAddr| Connection::open(&ready.lab.client, http_vip(vip));
    let open = VIPS.into_iter().cycle().take(24).map(open).collect::<Result<Vec<_>>>()?;
    assert!(open.iter().all(|connection| connection.colour().is_ok_and(|colour| colour == "blue")));
    let flows = ready.bgctl.json(&["flows", DEPLOYMENT])?;
    let with_backend = |connection: Connection| {
        let client = connection.stream().local_addr()?.to_string();
        let mut flows = flows["flows"].as_array().into_iter().flatten();
        let flow = flows.find(|flow| flow["client"] == client).with_context(|| format!("no flow of {client}"))?;
        Ok((flow["backend"].as_str().context("no backend")?.to_owned(), connection))
    };
    open.into_iter().map(with_backend).collect()
}

fn drain(ready: &Ready, options: &[&str]) -> Result<(Option<i32>, Value)> {
    ready.bgctl.try_json(&[&["drain", DEPLOYMENT], options].concat())
}

/// Connections of the deployment under test at a backend, by its own sockets.
fn sockets(ready: &Ready, backend: &str, connections: &[&(String, Connection)]) -> Result<usize> {
    let backend: SocketAddr = backend.parse()?;
    let of = ready.lab.backends.iter().find(|of| of.addresses.contains(&backend.ip())).context("a backend")?;
    let ports = connections.iter().map(|(_, of)| Ok(of.stream().local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    let listed = of.namespace.run(&format!("ss -H -t -n state established state close-wait src {backend}"))?;
    let port = |line: &str| line.split_whitespace().last()?.rsplit(':').next()?.parse::<u16>().ok();
    Ok(listed.lines().filter_map(port).filter(|port| ports.contains(port)).count())
}

fn wait_for_sockets(ready: &Ready, backend: &str, of: &[&(String, Connection)], expected: usize) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let count = sockets(ready, backend, of)?;
        if count == expected {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{backend} has {count} sockets, not {expected}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_reset(connection: &Connection) -> Result<()> {
    let error = connection.ask().expect_err("the connection was ended");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    Ok(())
}

/// A configuration in which the first blue backend has the weight 0, or is gone.
fn without(config: &str, backends: &[String; 2], is_gone: bool) -> String {
    let replaced = |config: String, address: &String| {
        let new = if is_gone { String::new() } else { format!("{{ address = \"{address}\", weight = 0 }}, ") };
        let (neighbour, ours) = config.split_at(config.find(&format!("[deployments.{DEPLOYMENT}]")).expect("is there"));
        neighbour.to_owned() + &ours.replace(&format!("blue = [\"{address}\", "), &format!("blue = [{new}"))
    };
    backends.iter().fold(config.to_owned(), replaced)
}

fn a_backend_is_taken_out(setting: Setting) -> Result<()> {
    let ready = setting.ready_behind_firewalls()?;
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    let config = shop(lab, setting.service_mode(), "");
    let first = lab.backends.iter().find(|backend| backend.colour == Colour::Blue).context("a blue backend")?;
    let out = first.addresses.map(|address| SocketAddr::new(address, HTTP).to_string());

    let before = connections(&ready)?;
    let (mut going, staying): (Vec<_>, Vec<_>) = before.iter().partition(|(backend, _)| out.contains(backend));
    assert!(
        VIPS.iter().all(|vip| going.iter().any(|(_, of)| of.stream().local_addr().unwrap().is_ipv4() == vip.is_ipv4()))
    );
    bgctl.apply(&without(&config, &out, false))?;
    let echoes = VIPS.map(|vip| Echo::open(&ready.lab.client, udp_vip(vip)));
    for backend in &out {
        let (mine, others): (Vec<_>, Vec<_>) = going.iter().partition(|(of, _)| of == backend);
        let (code, drained) = drain(&ready, &["--backend", backend])?;
        assert_eq!((code, &drained["left"], &drained["colour"]), (Some(4), &mine.len().into(), &"blue".into()));
        wait_for_sockets(&ready, backend, &mine, mine.len())?;
        assert_eq!(drain(&ready, &["--backend", backend, "--timeout", "50ms"])?.0, Some(4));
        let (code, drained) = drain(&ready, &["--backend", backend, "--then", "reset"])?;
        assert_eq!(
            (code, &drained["left"], &drained["reset"]),
            (Some(0), &0.into(), &mine.len().into()),
            "{drained:#}"
        );
        wait_for_sockets(&ready, backend, &mine, 0)?;
        mine.iter().try_for_each(|(_, of)| is_reset(of))?;
        others.iter().chain(&staying).try_for_each(|(_, of)| of.ask().map(drop))?;
        going = others;
    }
    for echo in echoes {
        assert_eq!(echo?.ask("still here")?.colour, Colour::Blue);
    }
    // A new connection goes elsewhere, also from a port that has been reset.
    for (backend, connection) in connections(&ready)? {
        assert!(!out.contains(&backend), "{backend}");
        drop(connection);
    }

    // The same backend comes back, and an apply removes it while it has connections.
    bgctl.apply(&config)?;
    let before = connections(&ready)?;
    let (going, there): (Vec<_>, Vec<_>) = before.iter().partition(|(backend, _)| out.contains(backend));
    assert!(!going.is_empty());
    bgctl.apply(&without(&config, &out, true))?;
    going.iter().try_for_each(|(_, of)| is_reset(of))?;
    there.iter().chain(&staying).try_for_each(|(_, of)| of.ask().map(drop))?;
    for backend in &out {
        wait_for_sockets(&ready, backend, &going, 0)?;
        let unknown = bgctl.try_run(&["drain", DEPLOYMENT, "--backend", backend])?;
        let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
        assert!(unknown.status.code() == Some(2) && said.contains("has no backend"), "{said}");
    }
    ready.neighbour_is_undisturbed()
}

in_each_setting!(a_backend_is_taken_out);

#[test]
fn nothing_drains_while_both_colours_get_new_flows() -> Result<()> {
    let ready = Ready::native("")?;
    let drain = |options: &[&str]| ready.bgctl.try_run(&[&["drain", DEPLOYMENT], options].concat());
    let open = Connection::open(&ready.lab.client, http_vip(address::VIP_V4))?;
    open.ask()?;
    ready.bgctl.run(&["split", DEPLOYMENT, "--green", "30"])?;
    for options in [&[][..], &["--wait"], &["--then", "reset"]] {
        let refused = drain(options)?;
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    }
    // Nobody may take a ramp that has just begun for a drain that is over.
    ready.bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
    ready.bgctl.run(&["switch", DEPLOYMENT, "green", "--ramp", "1s"])?;
    assert_eq!(drain(&[])?.status.code(), Some(3));
    let drained = drain(&["--wait", "--timeout", "2s"])?;
    assert_eq!(drained.status.code(), Some(4), "the connection is still there: {drained:?}");
    assert_eq!(drain(&["--then", "reset"])?.status.code(), Some(0));
    is_reset(&open)?;
    ready.neighbour_is_undisturbed()
}
