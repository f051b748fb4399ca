//! The controller is killed at random moments, under load, while backends come and go and switches wait for their confirmation. Packets
//! do not notice, and its successor knows what it knew.

use anyhow::{Context, Result, ensure};
use bg_tests::{
    Chance, Controller, Fabric, HTTP_PORT, Lab, Ready, address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip, shop},
    load::{Fresh, KeepAlive},
};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

fn rounds() -> usize {
    if std::env::var_os("BG_TEST_FULL").is_some() { 200 } else { 15 }
}

/// UDP services, too, are asked at the port of HTTP.
fn checks() -> String {
    format!(
        "health = {{ kind = \"tcp\", port = {HTTP_PORT}, interval = \"50ms\", timeout = \"40ms\", rise = 2, fall = 2 }}\n"
    )
}

/// The health of a service's backends in one colour, by address.
fn health(status: &Value, deployment: &str, colour: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let deployments = status["deployments"].as_array().into_iter().flatten();
    for service in
        deployments.filter(|found| found["name"] == deployment).flat_map(|found| found["services"].as_array()).flatten()
    {
        for backend in service[colour]["backends"].as_array().into_iter().flatten() {
            let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
            all.push((text("address"), text("health")));
        }
    }
    all
}

fn until(ready: &Ready, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let status = ready.bgctl.json(&["status"])?;
        if holds(&status) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{what} for five seconds: {status:#}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn packets_do_not_notice_and_the_successor_knows() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let checks = checks();
    let config = shop(&lab, "nat", &checks).replace("[deployments.mail]\n", &format!("[deployments.mail]\n{checks}"));
    let ready = Ready::with(lab, "native", &config)?;
    let mut chance = Chance::new();
    // Its live colour is green, and only blue is cut off: none of its flows has a reason to fail.
    let vip = http_vip(address::NEIGHBOUR_V4);
    let new = Fresh { clients: 2, pause: Duration::from_millis(3) }.start(&ready.lab.client, vip)?;
    let kept = KeepAlive { clients: 2, pause: Duration::from_millis(3) }.start(&ready.lab.client, vip)?;

    // One blue backend of the deployment under test is cut off from checks and flows, in every other round.
    let victim = ready.lab.backends.iter().find(|backend| backend.name == "blue2").context("blue2")?;
    let is_victim = |address: &str| victim.addresses.iter().any(|own| address.contains(&own.to_string()));
    let of_http = |found: &(String, String)| found.0.ends_with(&format!(":{HTTP_PORT}"));
    for round in 0..rounds() {
        let controller = Controller::start(&ready.bgctl)?;
        let is_cut = round % 2 == 0;
        if is_cut {
            for line in [
                "add table inet cut",
                "add chain inet cut input { type filter hook input priority 0 ; }",
                &format!("add rule inet cut input tcp dport {HTTP_PORT} ct state new reject with tcp reset"),
            ] {
                victim.namespace.run(&format!("nft {line}"))?;
            }
        } else if round > 0 {
            victim.namespace.run("nft delete table inet cut")?;
        }
        if chance.below(Duration::from_millis(2)) > Duration::from_millis(1) {
            ready.bgctl.run(&["switch", DEPLOYMENT, "--confirm-within", "80ms"])?;
        }
        thread::sleep(chance.below(Duration::from_millis(300)));
        let ended = controller.end(libc::SIGKILL)?;
        ensure!(ended.code().is_none(), "round {round}: it was killed, not {ended}");

        // What was known stays in the kernel, and nothing is judged without a look.
        let known = health(&ready.bgctl.json(&["status"])?, DEPLOYMENT, "blue");
        let successor = Controller::start(&ready.bgctl)?;
        let wanted = if is_cut { "down" } else { "up" };
        until(&ready, &format!("round {round}: the victim is not {wanted}, after {known:?}"), |status| {
            let blue = health(status, DEPLOYMENT, "blue");
            blue.iter()
                .filter(|found| of_http(found))
                .all(|(address, health)| health == if is_victim(address) { wanted } else { "up" })
        })?;
        until(&ready, &format!("round {round}: the switch is not taken back"), |status| {
            status["deployments"].as_array().into_iter().flatten().all(|found| found["phase"] != "confirming")
        })?;
        ensure!(ready.bgctl.live(DEPLOYMENT)? == "blue", "round {round}: nobody has confirmed a switch");
        ensure!(ready.bgctl.live(NEIGHBOUR)? == "green", "round {round}: nobody has switched the other deployment");
        successor.end(libc::SIGTERM)?;
    }
    ready.bgctl.run(&["history", "--verify"])?;
    for load in [new, kept] {
        let counts = load.finish()?;
        ensure!(counts.failures == 0 && counts.strayed == 0, "{counts:?}");
        ensure!(counts.answers[0] == 0 && counts.answers[1] > 100, "{counts:?}");
    }
    Ok(())
}
