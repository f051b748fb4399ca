//! What those who listen are told while packets pass.

use crate::setup::Served;
use anyhow::{Context, Result, bail, ensure};
use bg_tests::{
    address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip},
    load::{Arrivals, Connection},
};
use serde_json::Value;
use std::net::SocketAddr;

fn of<'a>(message: &'a Value, name: &str) -> &'a Value {
    let deployments = message["deployments"].as_array().map(Vec::as_slice).unwrap_or_default();
    deployments.iter().find(|deployment| deployment["name"] == name).unwrap_or(&Value::Null)
}

fn opened(counters: &Value, colour: &str) -> u64 {
    let services = of(counters, DEPLOYMENT)["services"].as_array().cloned().unwrap_or_default();
    services.iter().filter_map(|service| service[colour]["flows_opened"].as_u64()).sum()
}

#[test]
fn traffic_changes_counters_and_only_changes_are_told_as_state() -> Result<()> {
    const LOOKS: usize = 6;
    let served = Served::local()?;
    let ready = &served.ready;
    let stays =
        Connection::open_from(&ready.lab.client, SocketAddr::new(address::CLIENT_V4, 0), http_vip(address::VIP_V4))?;
    stays.ask()?;
    let load = Arrivals::start(&ready.lab.client, http_vip(address::VIP_V4), true, 50)?;
    let mut events = served.events()?;
    assert_eq!(events.next_event()?.0, "state", "the whole status comes first");
    // Counters move, and nothing else is told.
    let mut told = Vec::new();
    while told.len() < LOOKS {
        let (name, data) = events.next_event()?;
        ensure!(name == "counters", "{name} after {} counters: {data}", told.len());
        ensure!(of(&data, DEPLOYMENT)["live"] == "blue", "{data}");
        told.push(data);
    }
    let [first, last] = [told.first(), told.last()].map(|counters| opened(counters.unwrap_or(&Value::Null), "blue"));
    assert!(last > first + 50, "{first} flows were opened, then {last}");
    assert!(told.iter().all(|counters| of(counters, DEPLOYMENT)["flows"]["blue"].as_u64() >= Some(1)), "{told:?}");

    // One change is told once. It is seen soon, and from then on there are only counters again, also while its deadlines come nearer.
    ready.bgctl.run(&["switch", DEPLOYMENT, "green", "--confirm-within", "10m"])?;
    let mut states = 0;
    loop {
        match events.next_event()? {
            (name, data) if name == "state" => {
                states += 1;
                assert_eq!(of(&data["status"], DEPLOYMENT)["live"], "green");
            }
            (name, data) if name == "counters" && of(&data, DEPLOYMENT)["live"] == "green" && states > 0 => break,
            _ => {}
        }
    }
    let mut counters = 0;
    while counters < LOOKS {
        match events.next_event()? {
            (name, data) if name == "state" => bail!("it was told already: {data}"),
            (name, data) if name == "counters" => {
                counters += 1;
                let flows = of(&data, DEPLOYMENT)["flows"]["blue"].as_u64().context("no flows")?;
                assert!(flows >= 1, "the page shows from this what is left: {data}");
            }
            _ => {}
        }
    }
    assert_eq!(states, 1);
    drop(load);
    // And what does change is told at once, although nobody has asked the controller for it.
    ready.bgctl.run(&["confirm", DEPLOYMENT])?;
    let told = events.next_of("state")?;
    assert_eq!(of(&told["status"], DEPLOYMENT)["confirm_deadline"], Value::Null);
    assert_eq!(stays.colour()?, "blue");
    let neighbour = ready.bgctl.deployment(NEIGHBOUR)?;
    assert_eq!(of(&told["status"], NEIGHBOUR)["generation"], neighbour["generation"]);
    ready.neighbour_is_undisturbed()
}
