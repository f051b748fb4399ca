//! The receipt of a switch against what clients, servers, ss(8) and captures see.

use std::{
    collections::{BTreeMap, HashSet},
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use bg_common::{Colour, LiveWord, Protocol};
use bg_tests::{
    Backend, Capture, Lab, NewFlows, RawSocket, Ready, Seen, Setting, address,
    config::{DEPLOYMENT, http_vip, udp_vip},
    frames::{PacketSpec, tcp_flags},
    in_each_setting,
    load::{Answer, Connection, Echo},
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
    tcp: Vec<Connection>,
}

impl Open {
    fn new(lab: &Lab) -> Result<Self> {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for (vip, _) in VIPS {
            for number in 0..FLOWS {
                let flow = Echo::open(&lab.client, udp_vip(vip))?;
                flow.ask(&number.to_string())?;
                udp.push(flow);
                let connection = Connection::open(&lab.client, http_vip(vip))?;
                connection.ask()?;
                tcp.push(connection);
            }
        }
        Ok(Self { udp, tcp })
    }

    /// Each says something and hears an answer. Returns the number of connections that were reset instead.
    fn speak(&self) -> Result<u64> {
        self.udp.iter().try_for_each(|flow| flow.ask("again").map(drop))?;
        let mut resets = 0;
        for connection in &self.tcp {
            match connection.ask() {
                Ok(_) => (),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => resets += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(resets)
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

/// Captures at the client and, if they are other machines than the edge, at the backends.
struct Captures {
    client: Capture,
    backends: Vec<(Colour, Capture)>,
}

/// What the client has seen, and what backends have received, with their colours.
type Captured = (Vec<Seen>, Vec<(Colour, Seen)>);

impl Captures {
    fn start(lab: &Lab) -> Result<Self> {
        let others = lab.backends.iter().filter(|backend| !Arc::ptr_eq(&backend.namespace, &lab.edge));
        let start = |backend: &Backend| Ok((backend.colour, Capture::start(&backend.namespace, "eth0")?));
        Ok(Self { client: Capture::start(&lab.client, "eth0")?, backends: others.map(start).collect::<Result<_>>()? })
    }

    /// What the client has seen, and what backends have received from these clients' ends.
    fn stop(self, of: impl Fn(&Seen) -> bool) -> Result<Captured> {
        let seen = self.client.stop()?;
        let ends: HashSet<_> = seen.iter().filter(|seen| of(seen)).map(|seen| (seen.protocol, seen.from)).collect();
        let mut received = Vec::new();
        for (colour, capture) in self.backends {
            let theirs = capture.stop()?.into_iter().filter(|seen| ends.contains(&(seen.protocol, seen.from)));
            received.extend(theirs.map(|seen| (colour, seen)));
        }
        Ok((seen, received))
    }
}

fn is_to_shop(seen: &Seen) -> bool {
    VIPS.iter().any(|(vip, _)| seen.to == http_vip(*vip) || seen.to == udp_vip(*vip))
}

/// The flows from which backends of a colour have received something. `None`: no backend was watched.
fn received_by(received: &[(Colour, Seen)], colour: Colour, lab: &Lab) -> Option<usize> {
    let flows: HashSet<_> =
        received.iter().filter(|(of, _)| *of == colour).map(|(_, seen)| (seen.protocol, seen.from)).collect();
    lab.backends.iter().all(|backend| !Arc::ptr_eq(&backend.namespace, &lab.edge)).then_some(flows.len())
}

/// A drain keeps every open flow, and a cut moves or resets each, as clients, ss(8) and captures count them.
fn what_becomes_of_open_flows(ready: &Ready) -> Result<()> {
    let open = Open::new(&ready.lab)?;
    let lab = &ready.lab;
    let before = flows(ready)?;
    let (udp, tcp) = (open.udp.len() as u64, established(&ready.lab)?);
    assert_eq!((before, tcp), (udp + tcp, open.tcp.len() as u64));
    let drained = switch(ready, "drain")?;
    assert_eq!(numbers(&drained["receipt"]), [before, 0, 0], "{drained}");
    assert_eq!(flows(ready)?, before);
    let captures = Captures::start(lab)?;
    assert_eq!(open.speak()?, 0, "no connection is reset");
    let (_, received) = captures.stop(is_to_shop)?;
    assert!(received_by(&received, Colour::Blue, lab).is_none_or(|flows| flows == before as usize), "{received:?}");
    assert!(received_by(&received, Colour::Green, lab).is_none_or(|flows| flows == 0), "{received:?}");
    // Nobody has opened a flow of the shop meanwhile.
    assert_eq!((&drained["receipt"]["first_new_us"], &drained["receipt"]["last_old_us"]), (&Value::Null, &Value::Null));

    // Those flows are on the idle colour. A cut back to it keeps them.
    let back = switch(ready, "cut")?;
    assert_eq!(numbers(&back["receipt"]), [before, 0, 0], "{back}");
    let cut = switch(ready, "cut")?;
    assert_eq!(numbers(&cut["receipt"]), [0, udp, tcp], "{cut}");
    assert_eq!(flows(ready)?, 0);
    let captures = Captures::start(lab)?;
    assert_eq!(open.speak()?, tcp);
    let (seen, received) = captures.stop(|seen| is_to_shop(seen) && seen.protocol == Protocol::Udp)?;
    let resets: HashSet<_> = seen.iter().filter(|seen| seen.is_reset).map(|seen| seen.to).collect();
    assert_eq!((resets.len() as u64, established(lab)?), (tcp, 0), "{resets:?}");
    assert!(received_by(&received, Colour::Green, lab).is_none_or(|flows| flows == udp as usize), "{received:?}");
    assert!(received_by(&received, Colour::Blue, lab).is_none_or(|flows| flows == 0), "{received:?}");
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

/// A flow that was opened around a switch.
struct Opened {
    colour: Colour,
    /// When its datagram left the client, and when it arrived at the backend: in between it was decided.
    sent: u64,
    arrived: u64,
}

fn opened(captures: Captures, vip: SocketAddr) -> Result<Vec<Opened>> {
    let (seen, received) = captures.stop(|seen| seen.to == vip)?;
    let sent: BTreeMap<_, _> =
        seen.iter().rev().filter(|seen| seen.to == vip).map(|seen| (seen.from, seen.at_ns)).collect();
    let arrived: BTreeMap<_, _> =
        received.iter().rev().map(|(colour, seen)| (seen.from, (*colour, seen.at_ns))).collect();
    let opened = |(from, (colour, arrived)): (_, (_, u64))| Some(Opened { colour, sent: *sent.get(&from)?, arrived });
    Ok(arrived.into_iter().filter_map(opened).collect())
}

/// When the last switch has stored its word, as the history tells it, in nanoseconds of `CLOCK_MONOTONIC`.
fn stored(ready: &Ready) -> Result<u64> {
    let history = ready.bgctl.json(&["history", DEPLOYMENT, "-n", "1"])?;
    let time = humantime::parse_rfc3339(history["records"][0]["time"].as_str().context("no time")?)?;
    let ago = SystemTime::now().duration_since(time)?.as_nanos() as u64;
    Ok(monotonic_ns().saturating_sub(ago))
}

/// Whether captures agree with the times of a receipt: the first flow on the new colour, and the last one on the old.
fn is_as_captured(receipt: &Value, stored: u64, opened: &[Opened], [old, new]: [Colour; 2]) -> bool {
    // For the two clocks, which are not read at once, and since the receipt has whole microseconds.
    const SLACK: u64 = 100_000;
    let at = |key: &str| receipt[key].as_u64().map(|micros| stored + 1000 * micros);
    let on = |colour| opened.iter().filter(move |flow| flow.colour == colour);
    let is_first = at("first_new_us").is_none_or(|first| {
        on(new).map(|flow| flow.sent).min().is_some_and(|sent| sent <= first + SLACK)
            && on(new).map(|flow| flow.arrived).min().is_some_and(|arrived| first <= arrived + SLACK)
    });
    let last_sent = on(old).map(|flow| flow.sent).max().unwrap_or_default();
    let is_last = last_sent <= at("last_old_us").unwrap_or(stored) + SLACK
        && at("last_old_us")
            .is_none_or(|last| on(old).map(|flow| flow.arrived).max().is_some_and(|arrived| last <= arrived + SLACK));
    is_first && is_last
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
    let (mut known, mut doubtful, mut captured) = (0, Vec::new(), Vec::new());
    for (round, (vip, client)) in (0..ROUNDS).flat_map(|_| VIPS).enumerate() {
        let live = ready.live()?;
        let before = live.word();
        let first = 20_000 + PORTS * (round / 2) as u16;
        let mut flows = NewFlows::new(udp_vip(vip), &[client], first..first + PORTS);
        let stop = AtomicBool::new(false);
        let captures = Captures::start(&ready.lab)?;
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
        let opened = opened(captures, udp_vip(vip))?;
        if !opened.is_empty() {
            captured.push((is_as_captured(receipt, stored(ready)?, &opened, [old, new]), switched.clone()));
        }
    }
    println!("{known} of {} saw a new flow in time, {} are doubtful", 2 * ROUNDS, doubtful.len());
    assert!(known > 0 && doubtful.len() < ROUNDS / 2, "{known}: {doubtful:?}");
    let differing: Vec<_> = captured.iter().filter(|(agrees, _)| !agrees).map(|(_, switched)| switched).collect();
    println!("captures agree with {} of {}", captured.len() - differing.len(), captured.len());
    assert!(differing.len() <= captured.len() / 4, "{differing:?}");
    Ok(())
}

/// Segments that are dropped all the time are counted while a switch is made, and nothing else is.
fn what_was_dropped(ready: &Ready) -> Result<()> {
    const MOST_ROUNDS: usize = 50;
    let lab = &ready.lab;
    let spec = PacketSpec::tcp(SocketAddr::new(address::CLIENT_V4, 1), http_vip(address::VIP_V4), tcp_flags::ACK);
    let mut frame = spec.frame();
    frame[..6].copy_from_slice(&lab.edge.mac("front")?);
    // A TCP header of four words.
    frame[14 + 20 + 12] = 0x40;
    let socket = RawSocket::open(&lab.client, "eth0")?;
    let counted = || ready.bgctl.json(&["status"])?["drops"]["malformed"].as_u64().context("no count");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                socket.send(&frame)?;
                thread::sleep(Duration::from_micros(50));
            }
            Ok(())
        });
        let rounds = || -> Result<()> {
            for _ in 0..MOST_ROUNDS {
                let before = counted()?;
                let switched = switch(ready, "drain")?;
                let all = counted()? - before;
                let dropped = switched["receipt"]["dropped"].as_object().context("no drops")?;
                anyhow::ensure!(dropped.keys().all(|reason| reason == "malformed"), "{switched}");
                let count = dropped.get("malformed").and_then(Value::as_u64).unwrap_or_default();
                anyhow::ensure!(count <= all, "{count} of {all}: {switched}");
                if count > 0 {
                    return Ok(());
                }
            }
            anyhow::bail!("none of {MOST_ROUNDS} switches has seen a drop")
        };
        let result = rounds();
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("it does not panic")?;
        result
    })
}

/// Flows that a cut moves while they speak are counted once.
fn flows_that_speak_move(ready: &Ready) -> Result<()> {
    let (old, before) = (ready.bgctl.live(DEPLOYMENT)?, flows(ready)?);
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
    assert_eq!(numbers(&cut["receipt"])[1], before + udp.len() as u64, "{cut}");
    for flow in &udp {
        assert_ne!(flow.ask("after")?.colour.name(), old);
    }
    Ok(())
}

fn receipts(setting: Setting) -> Result<()> {
    let ready = setting.ready("")?;
    what_becomes_of_open_flows(&ready)?;
    flows_that_speak_move(&ready)?;
    when_flows_were_decided(&ready)?;
    what_was_dropped(&ready)?;
    ready.neighbour_is_undisturbed()
}

in_each_setting!(receipts);

#[test]
fn a_switch_that_changes_nothing_has_none() -> Result<()> {
    let ready = Ready::native("")?;
    let live = ready.bgctl.live(DEPLOYMENT)?;
    assert_eq!(ready.bgctl.json(&["switch", DEPLOYMENT, &live])?["receipt"], Value::Null);
    let text = ready.bgctl.run(&["switch", DEPLOYMENT])?;
    assert!(text.lines().count() == 2 && text.contains("no new flow yet; open flows: 0 kept"), "{text}");
    Ok(())
}
