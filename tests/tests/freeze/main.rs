//! A frozen deployment opens no flows. Packets that would open one are held, and go on in order at the thaw, while open flows, testers and the
//! other deployment are not disturbed.

mod clients;
mod damaged;
mod killed;
mod latency;
mod pgbench;
mod several;
mod ways;
mod window;

use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Fabric, Lab, Offloads, Ready, address,
    config::{DEPLOYMENT, NEIGHBOUR, PREVIEW_PORT, http_vip, shop, udp_vip},
    load::{Answer, Echo, bind_new},
};
use clients::{Connected, connect, sent_again};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A SYN is sent again after a second. A round that takes almost as long, on a busy machine, shows nothing, and is repeated.
const ROUND: Duration = Duration::from_millis(900);
const ROUNDS: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until this many packets are held.
fn wait_for_held(bgctl: &Bgctl, count: u64) -> Result<()> {
    let start = Instant::now();
    loop {
        let status = bgctl.deployment(DEPLOYMENT)?;
        if status["held"].as_u64().context("no number of held packets")? >= count {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "{count} packets were to be held: {status}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn phase(bgctl: &Bgctl, deployment: &str) -> Result<String> {
    Ok(bgctl.deployment(deployment)?["phase"].as_str().context("no phase")?.to_owned())
}

fn event(bgctl: &Bgctl, of: &str, name: &str) -> Result<u64> {
    bgctl.json(&["status"])?[of][name].as_u64().with_context(|| format!("no {name} among the {of}"))
}

/// Clients that have connected during a freeze, and the command that has ended it.
struct Round {
    connected: Vec<Connected>,
    began: Instant,
    returned: Instant,
    /// Whether no client can have sent its SYN again.
    is_in_time: bool,
}

/// Connects clients during a freeze. They connect at its end without having sent anything twice, unless it has taken so long that they had to.
fn round(ready: &Ready, vip: IpAddr, count: usize) -> Result<Round> {
    let Ready { bgctl, lab, .. } = ready;
    bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
    let start = Instant::now();
    let (connected, thawed) = thread::scope(|scope| {
        let clients = scope.spawn(|| connect(&lab.client, http_vip(vip), count));
        let held = wait_for_held(bgctl, count as u64);
        let began = Instant::now();
        let thawed = held.and_then(|()| bgctl.json(&["thaw", DEPLOYMENT]));
        let returned = Instant::now();
        (clients.join().expect("no panic"), thawed.map(|thawed| (thawed, began, returned)))
    });
    let (thawed, began, returned) = thawed?;
    let connected = connected?;
    assert_eq!(thawed["expired"], 0, "{thawed}");
    let is_in_time = start.elapsed() < ROUND;
    if is_in_time {
        assert_eq!(sent_again(&connected)?, 0, "SYNs that were sent again");
        assert_eq!(thawed["played_back"], count, "{thawed}");
    }
    Ok(Round { connected, began, returned, is_in_time })
}

/// Datagrams of flows that are opened during a freeze come to their backends in the order in which they were sent.
fn ask_frozen(ready: &Ready, vip: IpAddr) -> Result<()> {
    const FLOWS: usize = 20;
    const EACH: usize = 5;
    let Ready { bgctl, lab, .. } = ready;
    let before = event(bgctl, "events", "held")?;
    bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
    let open = || Echo::open(&lab.client, udp_vip(vip));
    let flows = (0..FLOWS).map(|_| open()).collect::<Result<Vec<_>>>()?;
    let name = |flow: usize, nth: usize| format!("{flow} {nth} {}", "x".repeat(10 * flow));
    for nth in 0..EACH {
        for (number, flow) in flows.iter().enumerate() {
            flow.send(&name(number, nth))?;
        }
    }
    wait_for_held(bgctl, (FLOWS * EACH) as u64)?;
    assert_eq!(event(bgctl, "events", "held")? - before, (FLOWS * EACH) as u64);
    bgctl.run(&["thaw", DEPLOYMENT])?;
    let mut by_backend: BTreeMap<String, Vec<(u64, usize)>> = BTreeMap::new();
    for nth in 0..EACH {
        for (number, flow) in flows.iter().enumerate() {
            let answer: Answer = flow.receive(&name(number, nth))?;
            assert_eq!(answer.colour, Colour::Blue);
            by_backend.entry(answer.backend).or_default().push((answer.number, nth * FLOWS + number));
        }
    }
    for (backend, mut datagrams) in by_backend {
        datagrams.sort_unstable();
        assert!(datagrams.is_sorted_by_key(|(_, sent)| *sent), "{backend} got {datagrams:?}");
    }
    Ok(())
}

/// What a freeze leaves alone.
fn others_go_on(ready: &Ready, vip: IpAddr) -> Result<()> {
    let Ready { bgctl, lab, .. } = ready;
    let open = Echo::open(&lab.client, udp_vip(vip))?;
    assert_eq!(open.ask("before")?.colour, Colour::Blue);
    let generation = bgctl.deployment(DEPLOYMENT)?["generation"].clone();
    let frozen = bgctl.json(&["freeze", DEPLOYMENT, "--max", "1m", "--reason", "a test"])?;
    assert_eq!((&frozen["generation"], frozen["live"].as_str()), (&generation, Some("blue")), "{frozen}");
    assert_eq!((phase(bgctl, DEPLOYMENT)?.as_str(), phase(bgctl, NEIGHBOUR)?.as_str()), ("frozen", "steady"));

    assert_eq!(open.ask("an open flow")?.colour, Colour::Blue);
    let (neighbour, tester) = match vip {
        IpAddr::V4(_) => (address::NEIGHBOUR_V4, address::TESTER_V4),
        IpAddr::V6(_) => (address::NEIGHBOUR_V6, address::TESTER_V6),
    };
    assert_eq!(connect(&lab.client, http_vip(neighbour), 3)?.len(), 3, "the other deployment is not frozen");
    let from_tester = lab.client.enter(|| Echo::open_from(SocketAddr::new(tester, 0), udp_vip(vip)))??;
    assert_eq!(from_tester.ask("a tester")?.colour, Colour::Green);
    assert_eq!(connect(&lab.client, SocketAddr::new(vip, PREVIEW_PORT), 1)?.len(), 1, "the preview address");
    ready.neighbour_is_undisturbed()?;

    assert_eq!(bgctl.deployment(DEPLOYMENT)?["held"], 0);
    let thawed = bgctl.json(&["thaw", DEPLOYMENT])?;
    assert_eq!((&thawed["changed"], &thawed["generation"]), (&true.into(), &generation), "{thawed}");
    assert_eq!(bgctl.json(&["thaw", DEPLOYMENT])?["changed"], false, "it is thawed");
    assert_ne!(phase(bgctl, DEPLOYMENT)?, "frozen");
    Ok(())
}

fn a_freeze_delays(lab: Lab, mode: &str, service_mode: &str) -> Result<()> {
    let config = shop(&lab, service_mode, "");
    let ready = Ready::with(lab, mode, &config)?;
    for vip in [address::VIP_V4, address::VIP_V6] {
        others_go_on(&ready, vip)?;
        let mut rounds = (0..ROUNDS).map(|_| round(&ready, vip, 50));
        let in_time = rounds.find(|round| round.as_ref().is_ok_and(|round| round.is_in_time) || round.is_err());
        in_time.context("a machine on which a freeze takes a second is too busy for this test")??;
        ask_frozen(&ready, vip)?;
    }
    let drops = ready.bgctl.json(&["status"])?["drops"].clone();
    let drops = drops.as_object().context("drops is an object")?;
    assert!(drops.values().all(|count| count == 0), "{drops:?}");
    with_drop_new_flows_are_dropped_and_counted(&ready)?;
    a_freeze_ends_by_itself_and_the_process_it_has_left_plays_back(&ready)?;
    window::the_commands_run_while_new_flows_wait_and_those_then_meet_the_new_colour(&ready)?;
    held_packets_follow_a_switch_of_the_frozen_deployment(&ready)?;
    ready.neighbour_is_undisturbed()
}

/// A flow of each family that nobody knows yet.
fn new_flows(lab: &Lab) -> Result<[Echo; 2]> {
    let open = |vip| {
        let flow = Echo::open(&lab.client, udp_vip(vip))?;
        flow.set_patience(PATIENCE)?;
        anyhow::Ok(flow)
    };
    Ok([open(address::VIP_V4)?, open(address::VIP_V6)?])
}

fn with_drop_new_flows_are_dropped_and_counted(ready: &Ready) -> Result<()> {
    let Ready { bgctl, lab, .. } = ready;
    let (held, dropped) = (|| event(bgctl, "events", "held"), || event(bgctl, "drops", "frozen"));
    let (held_before, dropped_before) = (held()?, dropped()?);
    let frozen = bgctl.json(&["freeze", DEPLOYMENT, "--drop", "--max", "1m"])?;
    assert_eq!(frozen["drop"], true);
    let lost = new_flows(lab)?;
    lost.iter().try_for_each(|flow| flow.send("lost"))?;
    let start = Instant::now();
    while dropped()? < dropped_before + 2 {
        ensure!(start.elapsed() < PATIENCE, "{} were dropped", dropped()? - dropped_before);
    }
    assert_eq!(bgctl.json(&["thaw", DEPLOYMENT])?["played_back"], 0);
    for flow in &lost {
        flow.set_patience(Duration::from_millis(50))?;
        assert!(flow.receive("lost").is_err());
        flow.set_patience(PATIENCE)?;
        assert_eq!(flow.ask("new")?.colour, Colour::Blue);
    }
    assert_eq!((held()?, dropped()?), (held_before, dropped_before + 2));
    Ok(())
}

fn a_freeze_ends_by_itself_and_the_process_it_has_left_plays_back(ready: &Ready) -> Result<()> {
    let Ready { bgctl, lab, .. } = ready;
    let waiting = new_flows(lab)?;
    bgctl.run(&["freeze", DEPLOYMENT, "--max", "300ms"])?;
    waiting.iter().try_for_each(|flow| flow.send("held"))?;
    // Nobody calls bgctl.
    for flow in &waiting {
        assert_eq!(flow.receive("held")?.colour, Colour::Blue);
    }
    let start = Instant::now();
    loop {
        let records = bgctl.json(&["history", DEPLOYMENT, "-n", "1"])?;
        let last = &records["records"][0];
        if (&last["action"], &last["reason"]) == (&"thaw".into(), &"the freeze ended by itself".into()) {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "{records}");
    }
}

fn held_packets_follow_a_switch_of_the_frozen_deployment(ready: &Ready) -> Result<()> {
    let Ready { bgctl, lab, .. } = ready;
    let (open, held) = (new_flows(lab)?, new_flows(lab)?);
    let [old, new] = if bgctl.live(DEPLOYMENT)? == "blue" { Colour::ALL } else { [Colour::Green, Colour::Blue] };
    for flow in &open {
        assert_eq!(flow.ask("open")?.colour, old);
    }
    bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
    held.iter().try_for_each(|flow| flow.send("held"))?;
    wait_for_held(bgctl, 2)?;
    bgctl.run(&["switch", DEPLOYMENT, new.name()])?;
    assert_eq!(phase(bgctl, DEPLOYMENT)?, "frozen", "a switch does not thaw");
    for flow in &open {
        assert_eq!(flow.ask("still open")?.colour, old);
    }
    assert_eq!(bgctl.json(&["thaw", DEPLOYMENT])?["played_back"], 2);
    for flow in &held {
        assert_eq!(flow.receive("held")?.colour, new);
    }
    Ok(())
}

#[test]
fn a_freeze_delays_new_flows_with_native_xdp() -> Result<()> {
    a_freeze_delays(Lab::wire(Fabric::Switch)?, "native", "nat")
}

#[test]
fn a_freeze_delays_new_flows_with_generic_xdp() -> Result<()> {
    a_freeze_delays(Lab::wire(Fabric::Router)?, "generic", "nat")
}

#[test]
fn a_freeze_delays_new_flows_with_tc_before_a_bridge() -> Result<()> {
    a_freeze_delays(Lab::bridge()?, "tc", "nat")
}

#[test]
fn a_freeze_delays_new_flows_between_zones_with_tc() -> Result<()> {
    a_freeze_delays(Lab::zones(Offloads::Default)?, "tc", "local")
}

#[test]
fn a_freeze_delays_new_flows_between_zones_with_native_xdp() -> Result<()> {
    a_freeze_delays(Lab::zones(Offloads::Wire)?, "native", "local")
}

/// Processes whose command line contains all words.
fn processes(words: &[&str]) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if words.iter().all(|word| line.contains(word)) {
            found.push(id);
        }
    }
    Ok(found)
}

#[test]
fn a_freeze_ends_by_itself_when_nobody_lives_and_the_next_command_plays_back() -> Result<()> {
    let ready = Ready::native("")?;
    let Ready { bgctl, lab, .. } = &ready;
    let pins = lab.sandbox.pin_root().display().to_string();
    for next in [["status", "--json"], ["switch", DEPLOYMENT], ["flows", DEPLOYMENT]] {
        let held = Echo::open(&lab.client, udp_vip(address::VIP_V4))?;
        let frozen = bgctl.json(&["freeze", DEPLOYMENT, "--max", "2s"])?;
        let left = processes(&[&pins, "freeze"])?;
        assert_eq!(left.len(), 1, "the process that waits for the end");
        // SAFETY: takes no pointers.
        left.iter().for_each(|id| _ = unsafe { libc::kill(*id, libc::SIGKILL) });
        held.send("held")?;

        // A new flow goes on as soon as the freeze is over, without any command.
        let end = Instant::now() + PATIENCE;
        let answer = loop {
            let new = Echo::open(&lab.client, udp_vip(address::VIP_V4))?;
            new.set_patience(Duration::from_millis(50))?;
            if let Ok(answer) = new.ask("new") {
                break answer;
            }
            assert!(Instant::now() < end, "frozen for ever: {frozen}");
        };
        held.set_patience(Duration::from_millis(100))?;
        assert!(held.receive("held").is_err(), "nobody has played it back");
        bgctl.run(&next)?;
        held.set_patience(PATIENCE)?;
        let expected = if next[0] == "switch" { answer.colour.other() } else { answer.colour };
        assert_eq!(held.receive("held")?.colour, expected, "{next:?}");
        let last = bgctl.json(&["history", DEPLOYMENT, "-n", "2"])?;
        assert!(last.to_string().contains("the freeze ended by itself"), "{last}");
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn no_packet_overtakes_another_of_its_flow_and_a_full_log_loses_the_latest() -> Result<()> {
    const HELD: usize = 4000;
    let ready = Ready::native("")?;
    let Ready { bgctl, lab, .. } = &ready;
    let socket = lab.client.enter(|| bind_new(address::CLIENT_V4))??;
    socket.connect(udp_vip(address::VIP_V4))?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let send = |nth: usize| socket.send(format!("{nth:08} {}", "x".repeat(1300)).as_bytes());
    bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
    for nth in 0..HELD {
        send(nth)?;
    }
    wait_for_held(bgctl, HELD as u64)?;
    let lost = event(bgctl, "drops", "hold_overflow")?;
    assert!((1..HELD as u64 / 2).contains(&lost), "{lost} of {HELD} found no room");

    // Others arrive while these are played back.
    let thawed = AtomicBool::new(false);
    let (answer, seen) = thread::scope(|scope| {
        let thaw = scope.spawn(|| {
            let answer = bgctl.json(&["thaw", DEPLOYMENT]);
            thawed.store(true, Ordering::SeqCst);
            answer
        });
        let (mut next, mut seen, mut buffer) = (HELD, Vec::new(), [0; 2048]);
        while !thawed.load(Ordering::SeqCst) {
            let _ = send(next);
            next += 1;
        }
        let _ = send(next);
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            // Its number at the backend, and the number that was sent.
            let words: Vec<_> = text.splitn(6, ' ').collect();
            if let (Ok(number), Ok(sent)) = (words[2].parse::<u64>(), words[4].parse::<usize>()) {
                seen.push((number, sent));
            }
        }
        (thaw.join().expect("no panic"), seen)
    });
    let answer = answer?;
    let (played, lost) =
        (answer["played_back"].as_u64().context("no number")?, event(bgctl, "drops", "hold_overflow")?);
    assert_eq!(played, event(bgctl, "events", "held")?, "{answer}");
    assert!(played >= HELD as u64 / 2 && lost != 0, "{answer}");
    let mut seen = seen;
    seen.sort_unstable();
    let overtaken = seen.windows(2).find(|pair| pair[0].1 > pair[1].1);
    assert!(seen.len() > 10 && overtaken.is_none(), "{overtaken:?}");
    Ok(())
}
