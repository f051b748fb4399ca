//! What becomes of listeners that an apply has chosen.

use crate::{SHOP_PORT, WIKI_PORT, deployment};
use anyhow::{Context, Result, ensure};
use bg_tests::{Fabric, Lab, address};
use std::fs;

const GATE: &str = "[[deployments.shop.gates]]\nwhen = \"before\"\nkind = \"exec\"\ncommand = [\"/bin/true\"]\n";

#[test]
fn an_apply_that_cannot_begin_changes_neither_listeners_nor_gates() -> Result<()> {
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
    // What an apply opens last, before it changes anything.
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
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "");
    let file = bgctl.write_config(&config)?;
    bgctl.apply(&config)?;
    let kept = || -> Result<_> {
        let file = fs::read_to_string(lab.sandbox.state_dir().join("listeners.json"))?;
        Ok((bgctl.deployment("shop")?["services"][0]["listen"].clone(), file))
    };
    let before = kept()?;
    let is_warned = |verb: &str| -> Result<bool> {
        let said = String::from_utf8(bgctl.try_run(&[verb, "-c", &file])?.stderr)?;
        let is_there = said.contains(&format!("stay at {}", address::BACK_V4));
        ensure!(is_there == said.contains(OTHER), "{said}");
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
    lab.edge.ip(&format!("address add {own} dev back"))?;
    ensure!(!is_warned("apply")? && kept()? == before);
    Ok(())
}
