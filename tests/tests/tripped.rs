//! Switches to a green that does not answer as it should: the data path takes them back, and nothing of bgctl runs meanwhile. And
//! switches to a green that does, under load, which nothing takes back.

use anyhow::{Context, Result, bail, ensure};
use bg_common::Colour;
use bg_tests::{
    Fault, Faulty, Ready, Setting, address,
    config::{DEPLOYMENT, http_vip, udp_vip},
    in_each_setting,
    load::{Arrivals, Request},
};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];
/// Requests a second.
const RATE: u32 = 200;
/// Much longer than it takes.
const LONG: Duration = Duration::from_secs(30);

/// Waits until blue is live again. Returns when.
fn wait_for_blue(ready: &Ready) -> Result<Instant> {
    let (live, begin) = (ready.live()?, Instant::now());
    while live.word().live() != Colour::Blue {
        ensure!(begin.elapsed() < LONG, "green is still live: {}", ready.bgctl.deployment(DEPLOYMENT)?);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(Instant::now())
}

/// Switches to green under load, and expects that the data path takes that back for one of these reasons, of which each names a condition.
fn is_taken_back(ready: &Ready, server: SocketAddr, is_tcp: bool, conditions: &[&str]) -> Result<()> {
    let bgctl = &ready.bgctl;
    let load = Arrivals::start(&ready.lab.client, server, is_tcp, RATE)?;
    while load.count() < 50 {
        thread::sleep(Duration::from_millis(10));
    }
    let guards = conditions.iter().flat_map(|condition| ["--revert-if", condition]);
    let arguments: Vec<_> = ["switch", DEPLOYMENT, "green"].into_iter().chain(guards).collect();
    let switched = bgctl.json(&arguments)?;
    let begin = Instant::now();
    ensure!(switched["revert_if"].as_array().is_some_and(|told| told.len() == conditions.len()), "{switched}");
    let back = wait_for_blue(ready)?;
    // Once only, and what is opened from now on is answered by blue.
    while load.count() < 100 || back.elapsed() < Duration::from_millis(300) {
        thread::sleep(Duration::from_millis(10));
    }
    let requests = load.finish_from(back)?;
    let failed = requests.iter().filter(|request| request.is_failed()).count();
    let took = back.duration_since(begin).as_millis();
    println!("{conditions:?}: back after {took} ms, {failed} of {} requests failed", requests.len());
    let lost = |request: &&Request| request.sent > back && request.colour != Some(Colour::Blue);
    let lost: Vec<_> = requests.iter().filter(lost).collect();
    ensure!(lost.is_empty(), "not by blue, though it was live: {lost:?}");

    let status = bgctl.deployment(DEPLOYMENT)?;
    let generation = switched["to"]["generation"].as_u64().context("a number")?;
    ensure!(status["live"] == "blue" && status["generation"] == generation + 1, "{status}");
    ensure!(status["revert_if"].as_array().is_some_and(Vec::is_empty), "{status}");
    let why = status["taken_back"].as_str().context("a reason")?;
    ensure!(conditions.iter().any(|condition| why.contains(condition)), "{why}");
    let confirmed = bgctl.try_run(&["confirm", DEPLOYMENT])?;
    ensure!(confirmed.status.code() == Some(3), "too late to confirm");
    let told = String::from_utf8_lossy(&confirmed.stderr).into_owned();
    ensure!(told.contains(why), "{told}");
    Ok(())
}

fn each_fault_is_found(setting: Setting) -> Result<()> {
    let ready = setting.ready("")?;
    for vip in VIPS {
        let faulty = Faulty::green(&ready.lab, Fault::Closed)?;
        is_taken_back(&ready, http_vip(vip), true, &["resets > 5% of 20"])?;
        drop(faulty);
        let _faulty = Faulty::green(&ready.lab, Fault::Silent)?;
        is_taken_back(&ready, http_vip(vip), true, &["unanswered > 5% of 20"])?;
        is_taken_back(&ready, udp_vip(vip), false, &["unanswered > 5% of 20", "resets > 5% of 20"])?;
        is_taken_back(&ready, udp_vip(vip), false, &["silence 300ms"])?;
    }
    ready.neighbour_is_undisturbed()
}

in_each_setting!(each_fault_is_found);

/// A probe of an operator: every second a connection to each backend of green. The first that does not come in a second rolls back.
fn probe(ready: &Ready, end: Instant) -> Result<Option<Instant>> {
    let greens = || ready.lab.backends.iter().filter(|backend| backend.colour == Colour::Green);
    while Instant::now() < end {
        thread::sleep(Duration::from_secs(1));
        for green in greens() {
            let to = SocketAddr::new(green.addresses[0], 8080);
            let connected = ready.lab.edge.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))?;
            if connected.is_err() {
                ready.bgctl.run(&["rollback", DEPLOYMENT])?;
                return Ok(Some(Instant::now()));
            }
        }
    }
    Ok(None)
}

/// Switches to a green with a fault, under load. Returns the time until blue is live again, if it is, and how many requests have failed.
fn measured(ready: &Ready, fault: Fault, is_guarded: bool) -> Result<(Option<Duration>, usize)> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let _faulty = Faulty::green(&ready.lab, fault)?;
    let load = Arrivals::start(&ready.lab.client, http_vip(address::VIP_V4), true, RATE)?;
    thread::sleep(Duration::from_millis(500));
    let guards = ["resets > 5% of 20", "unanswered > 2% of 200", "silence 500ms"].map(|guard| ["--revert-if", guard]);
    let switch: &[&str] = &["switch", DEPLOYMENT, "green"];
    let started = Instant::now();
    ready.bgctl.run(&if is_guarded { [switch, guards.as_flattened()].concat() } else { switch.to_vec() })?;
    let begin = Instant::now();
    let back = if is_guarded { Some(wait_for_blue(ready)?) } else { probe(ready, begin + PATIENCE)? };
    if back.is_none() {
        ready.bgctl.run(&["rollback", DEPLOYMENT])?;
    }
    // By then each request has failed that was not answered in a second.
    let until = Instant::now();
    thread::sleep(Duration::from_millis(1100));
    let requests = load.finish_from(Instant::now())?;
    let failed =
        requests.iter().filter(|request| (started..until).contains(&request.sent) && request.is_failed()).count();
    Ok((back.map(|back| back.duration_since(begin)), failed))
}

/// Prints, for each fault, the time to the reversal and the requests that fail until then, by the data path and by a probe every second.
#[test]
fn lost_packets_are_found() -> Result<()> {
    let ready = Ready::native("")?;
    println!("{RATE} requests a second, each by a new connection; failed: not answered in a second");
    println!("fault    data path: back after, failed   probe every second: back after, failed");
    for fault in [Fault::Closed, Fault::Silent, Fault::Lossy] {
        let (by_data_path, failed) = measured(&ready, fault, true)?;
        let (by_probe, failed_by_probe) = measured(&ready, fault, false)?;
        let millis =
            |time: Option<Duration>| time.map_or("never".to_owned(), |time| format!("{} ms", time.as_millis()));
        println!(
            "{:8} {:>20} {failed:9} {:>29} {failed_by_probe:7}",
            format!("{fault:?}").to_lowercase(),
            millis(by_data_path),
            millis(by_probe)
        );
    }
    ready.neighbour_is_undisturbed()
}

/// Switches to and fro with guards. None may be taken back.
fn nothing_is_taken_back(ready: &Ready, switches: u32, each: Duration) -> Result<()> {
    let live = ready.live()?;
    let guards = ["resets > 5% of 20", "unanswered > 5% of 20", "silence 1s"].map(|guard| ["--revert-if", guard]);
    for number in 0..switches {
        let to = live.word().live().other();
        let arguments = [&["switch", DEPLOYMENT, to.name()], guards.as_flattened()].concat();
        ready.bgctl.run(&arguments)?;
        let word = live.word();
        thread::sleep(each);
        if live.word() != word {
            bail!("switch {number} was taken back: {}", ready.bgctl.deployment(DEPLOYMENT)?);
        }
    }
    Ok(())
}

#[test]
fn healthy_switches_under_load_stay() -> Result<()> {
    let ready = Ready::native("")?;
    let loads = VIPS.map(|vip| {
        let client = &ready.lab.client;
        [Arrivals::start(client, http_vip(vip), true, RATE), Arrivals::start(client, udp_vip(vip), false, RATE)]
    });
    let loads = loads.into_iter().flatten().collect::<Result<Vec<_>>>()?;
    let switches = if std::env::var_os("BG_TEST_FULL").is_some() { 1000 } else { 30 };
    nothing_is_taken_back(&ready, switches, Duration::from_millis(100))?;
    // Long enough for flows to be judged that have no answer.
    nothing_is_taken_back(&ready, switches / 10, Duration::from_millis(1700))?;
    let confirmed = ready.bgctl.json(&["confirm", DEPLOYMENT])?;
    ensure!(confirmed["changed"] == true, "{confirmed}");
    for load in loads {
        let requests = load.finish()?;
        let lost = requests.iter().filter(|request| request.colour.is_none()).count();
        println!("{} requests, {lost} without an answer", requests.len());
        ensure!(lost == 0, "{lost} of {}", requests.len());
    }
    ready.neighbour_is_undisturbed()
}
