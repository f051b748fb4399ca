//! What becomes of listeners that an apply has chosen.

use crate::{SHOP_PORT, WIKI_PORT, deployment};
use anyhow::{Context, Result, ensure};
use bg_tests::{Controller, Fabric, HttpClient, Lab, Process, address};
use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const GATE: &str = "[[deployments.shop.gates]]\nwhen = \"before\"\nkind = \"exec\"\ncommand = [\"/bin/true\"]\n";

#[test]
fn an_apply_to_a_damaged_instance_changes_neither_listeners_nor_gates() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let bgctl = lab.bgctl()?;
    bgctl.run(&[&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat())?;
    let shop = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "");
    bgctl.apply(&shop)?;
    let state = || -> Result<_> {
        let file = |name: &str| fs::read_to_string(lab.sandbox.state_dir().join(name)).ok();
        Ok((file("listeners.json").context("listeners are kept")?, file("gates.toml"), bgctl.json(&["history"])?))
    };
    let before = state()?;
    // A pin that every instance has.
    let pin = lab.sandbox.pin_root().join("maps/traffic");
    let away = pin.with_file_name("traffic_away");
    fs::rename(&pin, &away)?;
    let both = shop + &deployment(&lab, "wiki", address::VIP_V6, WIKI_PORT, "") + GATE;
    let output = bgctl.try_run(&["apply", "-c", &bgctl.write_config(&both)?])?;
    fs::rename(&away, &pin)?;
    ensure!(output.status.code() == Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(state()? == before, "{before:?}");
    ensure!(bgctl.json(&["status"])?["deployments"].as_array().is_some_and(|all| all.len() == 1));

    bgctl.apply(&both)?;
    let (listeners, gates, _) = state()?;
    ensure!(
        listeners.contains("2001:db8:f::10") && gates.is_some_and(|gates| gates.contains("/bin/true")),
        "{listeners}"
    );
    Ok(())
}

/// The host's network comes up in parts, or its address is on another host for a moment. Nobody has asked for other listeners.
#[test]
fn listeners_stay_at_an_address_that_is_away_and_the_apply_says_so() -> Result<()> {
    const OTHER: &str = "10.0.0.77";
    let lab = Lab::wire(Fabric::Switch)?;
    let bgctl = lab.bgctl()?;
    let attach = [&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat();
    bgctl.run(&attach)?;
    let socket = lab.sandbox.dir().join("run/api.sock");
    let serve = format!("[serve]\nsocket = \"{}\"\n", socket.display());
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "") + &serve;
    let file = bgctl.write_config(&config)?;
    bgctl.apply(&config)?;
    let kept = || -> Result<_> {
        let file = fs::read_to_string(lab.sandbox.state_dir().join("listeners.json"))?;
        Ok((bgctl.deployment("shop")?["services"][0]["listen"].clone(), file))
    };
    let before = kept()?;
    let is_warned = |verb: &str| -> Result<bool> {
        let output = bgctl.try_run(&[verb, "-c", &file, "--json"])?;
        let said = String::from_utf8(output.stderr)?;
        let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let warnings = told["warnings"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(
            warnings.iter().all(|warning| warning.as_str().is_some_and(|warning| said.contains(warning))),
            "{told}"
        );
        let is_there = said.contains(&format!("stay at {}", address::BACK_V4));
        ensure!(is_there == said.contains(OTHER) && is_there != warnings.is_empty(), "{said} {told}");
        Ok(is_there)
    };
    ensure!(before.1.contains(&address::BACK_V4.to_string()) && !is_warned("apply")?, "{}", before.1);

    let own = format!("{}/16", address::BACK_V4);
    lab.edge.ip(&format!("address del {own} dev back"))?;
    lab.edge.ip(&format!("address add {OTHER}/16 dev back"))?;
    for is_new in [false, true] {
        if is_new {
            bgctl.run(&["detach", "--all"])?;
            bgctl.run(&attach)?;
        }
        ensure!(is_warned("plan")? && is_warned("apply")?, "{is_new}");
        ensure!(kept()? == before, "{is_new}: {:?}", kept()?);
    }
    // The API tells the same.
    let controller = Controller::start(&bgctl)?;
    for path in ["/v1/plan", "/v1/apply"] {
        let headers = [("Content-Type", "application/toml")];
        let answer = HttpClient::unix(&socket)?.request("POST", path, &headers, config.as_bytes())?.done()?;
        ensure!(answer["warnings"][0].as_str().is_some_and(|warning| warning.contains(OTHER)), "{path}: {answer}");
    }
    controller.end(libc::SIGTERM)?;
    lab.edge.ip(&format!("address add {own} dev back"))?;
    ensure!(!is_warned("apply")? && kept()? == before);
    Ok(())
}

/// A controller that ends may still have them. Meanwhile nobody else has to wait for the lock.
#[test]
fn an_apply_waits_for_its_ports_before_it_takes_the_lock() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let bgctl = lab.bgctl()?;
    let attach = [&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat();
    bgctl.run(&attach)?;
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "");
    let file = bgctl.write_config(&config)?;
    bgctl.apply(&config)?;
    let listen = || -> Result<_> { Ok(bgctl.deployment("shop")?["services"][0]["listen"].clone()) };
    let before = listen()?;
    let address: SocketAddr = before["blue"].as_str().context("no listener")?.parse()?;
    bgctl.run(&["detach", "--all"])?;
    bgctl.run(&attach)?;

    let listener = lab.edge.enter(|| TcpListener::bind(address))??;
    let (begin, mut apply) = (Instant::now(), Process::spawn(&mut bgctl.command(&["apply", "-c", &file]))?);
    while begin.elapsed() < Duration::from_secs(1) {
        let is_free = Command::new("flock").arg("--nonblock").arg(lab.sandbox.pin_root()).arg("true").status()?;
        ensure!(is_free.success(), "others wait");
        ensure!(apply.wait(Duration::ZERO)?.is_none(), "it has not waited");
        thread::sleep(Duration::from_millis(20));
    }
    drop(listener);
    let ended = apply.wait(Duration::from_secs(20))?.context("it waits for ever")?;
    ensure!(ended.success() && listen()? == before, "{ended} {before} {}", listen()?);
    Ok(())
}
