//! The receipt of a switch against what clients, servers and ss(8) see.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bg_common::{Colour, LiveWord};
use bg_tests::{
    Fabric, Lab, NewFlows, Offloads, Ready, address,
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    load::{Answer, Echo, PATIENCE},
    monotonic_ns,
};
use serde_json::Value;

const VIPS: [(IpAddr, IpAddr); 2] = [(address::VIP_V4, address::CLIENT_V4), (address::VIP_V6, address::CLIENT_V6)];
/// Flows of each kind and family.
const FLOWS: usize = 7;
/// Switches under traffic, for each family.
const ROUNDS: usize = 8;
/// Ports of the flows that are opened around one of these switches.
const PORTS: u16 = 5000;

fn switch(ready: &Ready, on_switch: &str) -> Result<Value> {
    ready.bgctl.json(&["switch", DEPLOYMENT, "--on-switch", on_switch])
}

fn numbers(receipt: &Value) -> [u64; 3] {
    ["kept", "moved", "reset"].map(|key| receipt[key].as_u64().unwrap_or_else(|| panic!("{key}: {receipt}")))
}

/// Open flows of the client: datagrams that were answered, and idle connections.
struct Open {
    udp: Vec<Echo>,
    tcp: Vec<TcpStream>,
}

impl Open {
    fn new(lab: &Lab) -> Result<Self> {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for (vip, _) in VIPS {
            for number in 0..FLOWS {
                let flow = Echo::open(&lab.client, udp_vip(vip))?;
                flow.ask(&number.to_string())?;
                udp.push(flow);
                let mut stream = lab.client.enter(|| TcpStream::connect_timeout(&http_vip(vip), PATIENCE))??;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
                anyhow::ensure!(stream.read(&mut [0; 1024])? > 0, "no answer");
                tcp.push(stream);
            }
        }
        Ok(Self { udp, tcp })
    }
}

/// The connections to the shop that are established for the client's stack, as ss(8) lists them.
fn established(lab: &Lab) -> Result<u64> {
    let text = lab.client.run("ss -Htn state established")?;
    let servers = VIPS.map(|(vip, _)| http_vip(vip).to_string());
    Ok(text.lines().filter(|line| servers.iter().any(|server| line.contains(server))).count() as u64)
}

fn flows(ready: &Ready) -> Result<u64> {
    ready.bgctl.json(&["flows", DEPLOYMENT, "--count"])?["count"].as_u64().context("no count")
}

/// A drain keeps every open flow, and a cut moves or resets each, as clients and ss(8) count them.
fn what_becomes_of_open_flows(ready: &Ready) -> Result<()> {
    let open = Open::new(&ready.lab)?;
    let before = flows(ready)?;
    let (udp, tcp) = (open.udp.len() as u64, established(&ready.lab)?);
    assert_eq!((before, tcp), (udp + tcp, open.tcp.len() as u64));
    let drained = switch(ready, "drain")?;
    assert_eq!(numbers(&drained["receipt"]), [before, 0, 0], "{drained}");
    assert_eq!(flows(ready)?, before);
    // Nobody has opened a flow of the shop meanwhile.
    assert_eq!((&drained["receipt"]["first_new_us"], &drained["receipt"]["last_old_us"]), (&Value::Null, &Value::Null));

    // Those flows are on the idle colour. A cut back to it keeps them.
    let back = switch(ready, "cut")?;
    assert_eq!(numbers(&back["receipt"]), [before, 0, 0], "{back}");
    let cut = switch(ready, "cut")?;
    assert_eq!(numbers(&cut["receipt"]), [0, udp, tcp], "{cut}");
    assert_eq!(flows(ready)?, 0);
    let history = ready.bgctl.json(&["history", DEPLOYMENT, "-n", "1"])?;
    assert_eq!(history["records"][0]["receipt"], cut["receipt"]);
    Ok(())
}

/// A moment just before the live word changes.
fn watch(ready: &Ready, before: LiveWord) -> Result<u64> {
    let live = ready.live()?;
    let mut last = monotonic_ns();
    loop {
        let now = monotonic_ns();
        if live.word() != before {
            return Ok(last);
        }
        last = now;
    }
}

/// Opens flows until told to stop, slowly enough to have ports for as long as a command takes on a busy machine.
fn open_flows(flows: &mut NewFlows, stop: &AtomicBool) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (flow, payload) = flows.open()?;
        answers.push(flow.ask(&payload)?);
        thread::sleep(Duration::from_micros(100));
    }
    Ok(answers)
}

/// Under traffic, the times are those of flows that servers have seen.
fn when_flows_were_decided(ready: &Ready) -> Result<()> {
    let (mut known, mut doubtful) = (0, Vec::new());
    for (round, (vip, client)) in (0..ROUNDS).flat_map(|_| VIPS).enumerate() {
        let live = ready.live()?;
        let before = live.word();
        let first = 20_000 + PORTS * (round / 2) as u16;
        let mut flows = NewFlows::new(udp_vip(vip), &[client], first..first + PORTS);
        let stop = AtomicBool::new(false);
        let (switched, store, answers) = thread::scope(|scope| -> Result<_> {
            let opening = scope.spawn(|| ready.lab.client.enter(|| open_flows(&mut flows, &stop)));
            let watching = scope.spawn(|| watch(ready, before));
            thread::sleep(Duration::from_millis(20));
            let switched = switch(ready, "drain");
            stop.store(true, Ordering::Relaxed);
            let answers = opening.join().expect("the client does not panic")??;
            Ok((switched?, watching.join().expect("nor does who watches")?, answers))
        })?;
        let receipt = &switched["receipt"];
        let fence = switched["fence_us"].as_u64().context("no fence")?;
        let last_old = receipt["last_old_us"].as_u64();
        assert!(last_old.is_none_or(|last_old| last_old <= fence + 1), "{switched}");
        let after_store = |micros: u64| store + 1000 * micros;
        let on = |colour: Colour| answers.iter().filter(move |it| it.colour == colour).map(|it| it.arrived_ns);
        let [old, new] = [before.live(), before.live().other()];
        let first_new = receipt["first_new_us"].as_u64();
        known += usize::from(first_new.is_some());
        // A flow is decided before its datagram arrives.
        let is_early = |decided: Option<u64>, arrived: Option<u64>| {
            decided.is_none_or(|micros| arrived.is_some_and(|arrived| after_store(micros) <= arrived))
        };
        // Whatever has arrived before the end of the fence has been noted.
        let is_missed = first_new.is_none() && on(new).any(|arrived| arrived < after_store(fence));
        // The command reads the clock before the store, and may be stopped in between.
        let agrees = is_early(first_new, on(new).min()) && is_early(last_old, on(old).max()) && !is_missed;
        doubtful.extend((!agrees).then_some(switched.clone()));
        assert_eq!(receipt["dropped"], serde_json::json!({}), "{switched}");
    }
    println!("{known} of {} saw a new flow in time, {} are doubtful", 2 * ROUNDS, doubtful.len());
    assert!(known > 0 && doubtful.len() < ROUNDS / 2, "{known}: {doubtful:?}");
    Ok(())
}

/// Flows that a cut moves while they speak are counted once.
fn flows_that_speak_move(ready: &Ready) -> Result<()> {
    let old = ready.bgctl.live(DEPLOYMENT)?;
    let udp: Vec<Echo> = (0..FLOWS)
        .flat_map(|_| VIPS)
        .map(|(vip, _)| Echo::open(&ready.lab.client, udp_vip(vip)))
        .collect::<Result<_>>()?;
    udp.iter().try_for_each(|flow| flow.ask("before").map(drop))?;
    let stop = AtomicBool::new(false);
    let cut = thread::scope(|scope| -> Result<_> {
        let speaking = scope.spawn(|| -> Result<()> {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                udp.iter().try_for_each(|flow| flow.send(&number.to_string()))?;
                number += 1;
                // So that the answers fit into the sockets, where nobody reads them yet.
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        thread::sleep(Duration::from_millis(20));
        let cut = switch(ready, "cut");
        stop.store(true, Ordering::Relaxed);
        speaking.join().expect("it does not panic")?;
        cut
    })?;
    assert_eq!(numbers(&cut["receipt"])[1], udp.len() as u64, "{cut}");
    for flow in &udp {
        assert_ne!(flow.ask("after")?.colour.name(), old);
    }
    Ok(())
}

fn receipts(ready: &Ready) -> Result<()> {
    what_becomes_of_open_flows(ready)?;
    flows_that_speak_move(ready)?;
    when_flows_were_decided(ready)?;
    ready.neighbour_is_undisturbed()
}

#[test]
fn of_native_xdp() -> Result<()> {
    receipts(&Ready::native("")?)
}

#[test]
fn of_generic_xdp() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = shop(&lab, "nat", "");
    receipts(&Ready::with(lab, "generic", &config)?)
}

#[test]
fn of_tc() -> Result<()> {
    let lab = Lab::bridge()?;
    let config = shop(&lab, "nat", "");
    receipts(&Ready::with(lab, "tc", &config)?)
}

#[test]
fn of_local_zones() -> Result<()> {
    let lab = Lab::zones(Offloads::Default)?;
    let config = shop(&lab, "local", "");
    receipts(&Ready::with(lab, "tc", &config)?)
}

#[test]
fn a_switch_that_changes_nothing_has_none() -> Result<()> {
    let ready = Ready::native("")?;
    let live = ready.bgctl.live(DEPLOYMENT)?;
    assert_eq!(ready.bgctl.json(&["switch", DEPLOYMENT, &live])?["receipt"], Value::Null);
    let text = ready.bgctl.run(&["switch", DEPLOYMENT])?;
    assert!(text.lines().count() == 2 && text.contains("no new flow yet; open flows: 0 kept"), "{text}");
    Ok(())
}
