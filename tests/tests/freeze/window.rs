//! `bgctl switch --freeze`: nothing meets the new colour before it is ready, and whatever fails, the old colour goes on.

use crate::{connect, new_flows, phase, wait_for_held};
use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Process, RawSocket, Ready, address,
    config::{DEPLOYMENT, http_vip, udp_vip},
    frames::{PacketSpec, tcp_flags},
    load::{Connection, Echo},
};
use std::{
    net::{IpAddr, SocketAddr},
    process::Output,
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn asks(ready: &Ready) -> Result<Colour> {
    Ok(Echo::open(&ready.lab.client, udp_vip(address::VIP_V4))?.ask("which")?.colour)
}

/// Asserts that the command has failed with this code, and that blue is live and open to new flows.
fn blue_goes_on(ready: &Ready, output: &Output, code: i32) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains("new flows go on"), "{said}");
    assert_eq!(ready.bgctl.live(DEPLOYMENT)?, "blue", "{said}");
    assert_ne!(phase(&ready.bgctl, DEPLOYMENT)?, "frozen");
    assert_eq!(asks(ready)?, Colour::Blue);
    ready.neighbour_is_undisturbed()
}

/// How many flows the services of the deployment have opened on green.
fn opened_on_green(ready: &Ready) -> Result<u64> {
    let status = ready.bgctl.deployment(DEPLOYMENT)?;
    let services = status["services"].as_array().context("no services")?;
    Ok(services.iter().filter_map(|service| service["green"]["flows_opened"].as_u64()).sum())
}

/// A connection and a datagram of each family come while the first command runs. It ends once they are held.
pub(crate) fn the_commands_run_while_new_flows_wait_and_those_then_meet_the_new_colour(ready: &Ready) -> Result<()> {
    let Ready { bgctl, lab, .. } = ready;
    let (client, vips) = (&lab.client, [address::VIP_V4, address::VIP_V6]);
    let (ran, go) = (lab.sandbox.dir().join("ran"), lab.sandbox.dir().join("go"));
    let write = |what: &str| {
        format!("echo {what} $BGCTL_DEPLOYMENT $BGCTL_FROM $BGCTL_TO $BGCTL_GENERATION >> {}", ran.display())
    };
    let before = format!("{}; while ! test -e {}; do sleep 0.01; done", write("before"), go.display());
    let (before, after) = (before.as_str(), &write("after"));
    let generation = bgctl.deployment(DEPLOYMENT)?["generation"].as_u64().context("no generation")?;
    let waiting = new_flows(lab)?;
    let (switched, connected) = thread::scope(|scope| -> Result<_> {
        let words = ["switch", DEPLOYMENT, "green", "--freeze", "1m", "--before", before, "--after", after];
        let switch = scope.spawn(move || bgctl.json(&words));
        let start = Instant::now();
        while phase(bgctl, DEPLOYMENT)? != "frozen" {
            ensure!(start.elapsed() < PATIENCE, "it does not freeze");
        }
        waiting.iter().try_for_each(|flow| flow.send("waits"))?;
        let connecting = vips.map(|vip| scope.spawn(move || Connection::open(client, http_vip(vip))));
        let held = wait_for_held(bgctl, 4);
        std::fs::write(&go, "")?;
        let connected = connecting.into_iter().map(|client| client.join().expect("no panic"));
        let connected = connected.collect::<Result<Vec<_>>>();
        held.and(Ok((switch.join().expect("no panic")?, connected?)))
    })?;
    assert_eq!((&switched["changed"], &switched["to"]["live"]), (&true.into(), &"green".into()), "{switched}");
    assert!(switched["confirm_deadline"].is_null(), "{switched}");
    // More than four, if a SYN was sent again meanwhile.
    assert!(switched["played_back"].as_u64() >= Some(4), "{switched}");
    for flow in &waiting {
        assert_eq!(flow.receive("waits")?.colour, Colour::Green);
    }
    for connection in &connected {
        assert_eq!(connection.colour()?, "green");
    }
    let expected = format!("before shop blue green {generation}\nafter shop blue green {}\n", generation + 1);
    assert_eq!(std::fs::read_to_string(&ran)?, expected);
    assert_ne!(phase(bgctl, DEPLOYMENT)?, "frozen");
    assert_ne!(phase(bgctl, DEPLOYMENT)?, "confirming");
    let again = bgctl.json(&["switch", DEPLOYMENT, "green", "--freeze", "1m", "--before", "exit 1"])?;
    assert_eq!(again["changed"], false, "green is live: nothing is frozen and no command runs");
    Ok(())
}

#[test]
fn a_command_that_fails_leaves_the_old_colour() -> Result<()> {
    let ready = Ready::native("")?;
    let switch = |rest: &[&str]| ready.bgctl.try_run(&[&["switch", DEPLOYMENT, "--freeze", "20s"], rest].concat());
    let marker = ready.lab.sandbox.dir().join("after");
    let touch = format!("touch {}", marker.display());
    blue_goes_on(&ready, &switch(&["--before", "exit 7", "--after", &touch])?, 3)?;
    assert!(!marker.exists());
    assert_eq!(ready.bgctl.deployment(DEPLOYMENT)?["generation"], 1);
    // The datagram of the question above is in flight for a second.
    blue_goes_on(&ready, &switch(&["--after", "exit 7"])?, 3)?;
    assert_eq!(ready.bgctl.deployment(DEPLOYMENT)?["generation"], 3, "there and back");
    assert_eq!(opened_on_green(&ready)?, 0);
    Ok(())
}

#[test]
fn what_does_not_come_to_rest_in_time_leaves_the_old_colour() -> Result<()> {
    let ready = Ready::native("")?;
    let open = connect(&ready.lab.client, http_vip(address::VIP_V4), 1)?;
    let switch = |rest: &[&str]| ready.bgctl.try_run(&[&["switch", DEPLOYMENT], rest].concat());
    blue_goes_on(&ready, &switch(&["--freeze", "500ms"])?, 4)?;
    assert_eq!(ready.bgctl.deployment(DEPLOYMENT)?["generation"], 1);
    drop(open);
    blue_goes_on(&ready, &switch(&["--freeze", "500ms", "--before", "sleep 100"])?, 4)?;
    blue_goes_on(&ready, &switch(&["--freeze", "5s", "--after", "sleep 100"])?, 4)?;
    assert_eq!(opened_on_green(&ready)?, 0);
    Ok(())
}

/// SYNs from hosts that never answer, as of a port scan. Sends them once more if called again.
fn scan(ready: &Ready, vip: IpAddr) -> Result<()> {
    let lab = &ready.lab;
    let wire = RawSocket::open(&lab.client, "eth0")?;
    let (from, to) = (lab.client.mac("eth0")?, lab.edge.mac("front")?);
    for port in 30_000..30_000 + SCANNED as u16 {
        let nobody: IpAddr = if vip.is_ipv4() { "192.0.2.77".parse()? } else { "2001:db8:c::77".parse()? };
        let mut frame = PacketSpec::tcp(SocketAddr::new(nobody, port), http_vip(vip), tcp_flags::SYN).frame();
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
        wire.send(&frame)?;
    }
    Ok(())
}

const SCANNED: usize = 20;

/// How many handshakes with a VIP are not complete, by colour.
fn half_open(ready: &Ready, vip: IpAddr) -> Result<[usize; 2]> {
    let flows = ready.bgctl.json(&["flows", DEPLOYMENT])?;
    let flows = flows["flows"].as_array().context("no flows")?;
    let of_vip = flows.iter().filter(|flow| flow["destination"] == http_vip(vip).to_string());
    let opening: Vec<_> = of_vip.filter(|flow| flow["state"] == "opening").collect();
    Ok(Colour::ALL.map(|colour| opening.iter().filter(|flow| flow["colour"] == colour.name()).count()))
}

#[test]
fn handshakes_that_are_never_completed_do_not_keep_the_old_colour_from_coming_to_rest() -> Result<()> {
    let ready = Ready::native("")?;
    for vip in [address::VIP_V4, address::VIP_V6] {
        ready.bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
        scan(&ready, vip)?;
        let start = Instant::now();
        while half_open(&ready, vip)?[0] < SCANNED {
            ensure!(start.elapsed() < PATIENCE, "{:?} handshakes", half_open(&ready, vip)?);
        }
        let said = ready.bgctl.json(&["switch", DEPLOYMENT, "--freeze", "20s", "--dry-run"])?;
        assert_eq!(said["freeze"]["in_flight"]["handshakes"], SCANNED, "{said}");
        let switched = ready.bgctl.json(&["switch", DEPLOYMENT, "--freeze", "20s"])?;
        assert_eq!(switched["to"]["live"], "green", "{switched}");
        assert_eq!(half_open(&ready, vip)?, [0, 0], "they have ended");
        // Of a client that was only slow.
        scan(&ready, vip)?;
        while half_open(&ready, vip)?[1] < SCANNED {
            ensure!(start.elapsed() < 2 * PATIENCE, "{:?} handshakes", half_open(&ready, vip)?);
        }
        assert_eq!(half_open(&ready, vip)?, [0, SCANNED]);
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn a_cut_does_not_wait_for_open_flows() -> Result<()> {
    let ready = Ready::native("")?;
    let _open = connect(&ready.lab.client, http_vip(address::VIP_V4), 1)?;
    let switched = ready.bgctl.json(&["switch", DEPLOYMENT, "--freeze", "20s", "--on-switch", "cut"])?;
    assert_eq!(switched["to"]["live"], "green", "{switched}");
    assert_eq!(asks(&ready)?, Colour::Green);
    ready.neighbour_is_undisturbed()
}

#[test]
fn when_the_command_is_killed_the_old_colour_goes_on_by_itself() -> Result<()> {
    let ready = Ready::native("")?;
    let Ready { bgctl, lab, .. } = &ready;
    let pid = lab.sandbox.dir().join("pid");
    let after = format!("echo $$ > {}; exec sleep 100", pid.display());
    let mut command = bgctl.command(&["switch", DEPLOYMENT, "--freeze", "3s", "--after", &after]);
    let mut switch = Process::spawn(&mut command)?;
    let start = Instant::now();
    let sleeps = || std::fs::read_to_string(&pid).ok()?.trim().parse::<i32>().ok();
    while sleeps().is_none() {
        ensure!(start.elapsed() < PATIENCE, "the command after the switch does not run");
        thread::sleep(Duration::from_millis(5));
    }
    switch.child().kill()?;
    // SAFETY: takes no pointers. The process is a child of the one that was killed.
    unsafe { libc::kill(sleeps().context("a process")?, libc::SIGKILL) };
    assert_eq!(bgctl.live(DEPLOYMENT)?, "green", "it had switched");
    let colour = loop {
        let new = Echo::open(&lab.client, udp_vip(address::VIP_V4))?;
        new.set_patience(Duration::from_millis(20))?;
        if let Ok(answer) = new.ask("which") {
            break answer.colour;
        }
        ensure!(start.elapsed() < PATIENCE, "frozen for ever");
    };
    assert_eq!(colour, Colour::Blue);
    assert_eq!((bgctl.live(DEPLOYMENT)?.as_str(), opened_on_green(&ready)?), ("blue", 0));
    Ok(())
}

#[test]
fn a_switch_that_waits_for_another_is_taken_back_before_the_freeze_ends_all_the_same() -> Result<()> {
    let ready = Ready::native("")?;
    let Ready { bgctl, lab, .. } = &ready;
    let (pid, maps) = (lab.sandbox.dir().join("pid"), lab.sandbox.pin_root().join("maps"));
    // Another switch holds the lock while this one wants it.
    let before = format!("flock {} sleep 1 & sleep 0.2", maps.display());
    let after = format!("echo $$ > {}; exec sleep 100", pid.display());
    let options = ["switch", DEPLOYMENT, "--freeze", "6s", "--before", &before, "--after", &after];
    let mut switch = Process::spawn(&mut bgctl.command(&options))?;
    let start = Instant::now();
    while !pid.exists() {
        ensure!(start.elapsed() < PATIENCE, "the command after the switch does not run");
        thread::sleep(Duration::from_millis(5));
    }
    let status = bgctl.deployment(DEPLOYMENT)?;
    let time = |key: &str| Ok::<_, anyhow::Error>(status[key].as_str().context("no time")?.to_owned());
    // RFC 3339 in UTC with the same number of digits, or fewer: cut to milliseconds, the order of text is that of time.
    let [revert, thaw] = ["confirm_deadline", "frozen_until"].map(|key| time(key).map(|time| time[..23].to_owned()));
    let (revert, thaw) = (revert?, thaw?);
    assert!(revert < thaw, "the switch would be taken back at {revert}, and new flows go on at {thaw}");
    ensure!(switch.wait(PATIENCE)?.is_some(), "the command does not end");
    assert_eq!((bgctl.live(DEPLOYMENT)?.as_str(), opened_on_green(&ready)?), ("blue", 0));
    ready.neighbour_is_undisturbed()
}
