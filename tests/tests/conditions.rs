//! Conditions that take switches back: of several deployments at once, before and after other switches, and what ends them.

use anyhow::{Context, Result, ensure};
use bg_common::{Colour, LiveFlags};
use bg_tests::{
    Fault, Faulty, NewFlows, Ready, Setting, address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip, neighbour, shop_alone, udp_vip},
    in_each_setting,
    load::{Arrivals, Connection, Echo, Request},
};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant, SystemTime},
};

const FAMILIES: [(IpAddr, IpAddr, IpAddr); 2] = [
    (address::VIP_V4, address::NEIGHBOUR_V4, address::CLIENT_V4),
    (address::VIP_V6, address::NEIGHBOUR_V6, address::CLIENT_V6),
];
/// Requests a second.
const RATE: u32 = 200;
/// The deployment before the one under test. Green is live, and it has services of TCP in both families.
const FIRST: &str = "post";
const RESETS: [&str; 2] = ["--revert-if", "resets > 5% of 20"];

/// A lab with [`FIRST`] and [`DEPLOYMENT`], which may both be switched.
fn ready(setting: Setting) -> Result<Ready> {
    setting.ready_with(|lab, mode| {
        let first = neighbour(lab, mode).replace(&format!("deployments.{NEIGHBOUR}"), &format!("deployments.{FIRST}"));
        Ok(first + &shop_alone(lab, mode, ""))
    })
}

/// Generation, live colour and phase of the first deployment.
fn state_of_first(ready: &Ready) -> Result<[Value; 3]> {
    let status = ready.bgctl.deployment(FIRST)?;
    Ok(["generation", "live", "phase"].map(|key| status[key].clone()))
}

fn wait_until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is()? {
        ensure!(begin.elapsed() < Duration::from_secs(20), "not {what}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Both deployments are guarded, the first one's switch to blue and the other one's to green, and green fails.
fn of_two_guarded_deployments_only_the_one_that_fails_goes_back(setting: Setting) -> Result<()> {
    let ready = ready(setting)?;
    let (bgctl, client, live) = (&ready.bgctl, &ready.lab.client, ready.live()?);
    for (vip, first_vip, address) in FAMILIES {
        let of_first = Arrivals::start(client, http_vip(first_vip), true, RATE)?;
        let load = Arrivals::start(client, http_vip(vip), true, RATE)?;
        wait_until("under load", || Ok(of_first.count() > 30 && load.count() > 30))?;
        bgctl.run(&[&["switch", FIRST, "blue"], &RESETS[..], &["--revert-if", "unanswered > 5% of 20"]].concat())?;
        let faulty = Faulty::green(&ready.lab, Fault::Closed)?;
        let (first, before) = (state_of_first(&ready)?, live.word());
        ensure!(first[1..] == [json!("blue"), json!("confirming")], "{first:?}");
        bgctl.run(&[&["switch", DEPLOYMENT, "green"], &RESETS[..]].concat())?;
        wait_until("taken back", || Ok(live.word().live() == Colour::Blue))?;
        let back = Instant::now();
        // Its other services are back, too, whoever has failed.
        let mut datagrams = NewFlows::new(udp_vip(vip), &[address], 2000..40_000);
        for _ in 0..20 {
            let answer = client.enter(|| datagrams.ask(&live))??.answer.context("no answer")?;
            ensure!(answer.colour == Colour::Blue, "{answer:?}");
        }
        // Long enough for the other one to be judged by flows that have no answer.
        thread::sleep(Duration::from_millis(1500));
        let first_after = state_of_first(&ready)?;
        ensure!(first_after == first, "{first_after:?}");
        ensure!(live.word().generation() == before.generation() + 2 && live.word().live() == Colour::Blue);
        drop(faulty);
        for requests in [of_first.finish_from(back)?, load.finish_from(back)?] {
            let lost = requests.iter().filter(|request| request.sent > back && request.colour != Some(Colour::Blue));
            ensure!(lost.count() == 0, "not by blue");
        }
        bgctl.run(&["confirm", FIRST])?;
        bgctl.run(&["switch", FIRST, "green"])?;
    }
    Ok(())
}

in_each_setting!(of_two_guarded_deployments_only_the_one_that_fails_goes_back);

/// Waits until the generation after this one was taken back for its resets. Returns when that was seen.
fn taken_back(ready: &Ready, before: u32) -> Result<SystemTime> {
    let live = ready.live()?;
    wait_until("taken back", || Ok(live.word().generation() == before + 2))?;
    let seen = SystemTime::now();
    let status = ready.bgctl.deployment(DEPLOYMENT)?;
    ensure!(status["live"] == "blue" && status["green_share"] == 0.0, "{status}");
    ensure!(status["taken_back"].as_str().is_some_and(|why| why.contains(RESETS[1])), "{status}");
    ensure!(ready.bgctl.try_run(&["confirm", DEPLOYMENT])?.status.code() == Some(3), "too late");
    Ok(seen)
}

/// A release after the other: both were confirmed, and the next ones come by a ramp, and at an instant.
fn a_ramp_is_called_off_while_it_goes_on_and_a_schedule_once_it_has_begun(setting: Setting) -> Result<()> {
    const RAMP: Duration = Duration::from_secs(15);
    const SOON: Duration = Duration::from_millis(700);
    let ready = ready(setting)?;
    let (bgctl, client, live) = (&ready.bgctl, &ready.lab.client, ready.live()?);
    let (first, others) =
        (state_of_first(&ready)?, FAMILIES.map(|(_, vip, _)| Connection::open(client, http_vip(vip))));
    for to in ["green", "blue"] {
        bgctl.run(&["switch", DEPLOYMENT, to, "--revert-if", "silence 1h"])?;
        bgctl.run(&["confirm", DEPLOYMENT])?;
    }
    let loads = FAMILIES.map(|(vip, ..)| Arrivals::start(client, http_vip(vip), true, RATE));
    let loads = loads.into_iter().collect::<Result<Vec<_>>>()?;
    wait_until("under load", || Ok(loads.iter().all(|load| load.count() > 30)))?;
    let faulty = Faulty::green(&ready.lab, Fault::Closed)?;

    let (before, begin) = (live.word().generation(), SystemTime::now());
    let ramp = format!("{}s", RAMP.as_secs());
    let switched = bgctl.json(&[&["switch", DEPLOYMENT, "green", "--ramp", &ramp], &RESETS[..]].concat())?;
    ensure!(switched["revert_if"] == json!([RESETS[1]]), "{switched}");
    let called_off = taken_back(&ready, before)?;
    ensure!(called_off < begin + RAMP, "green has got more and more new flows, until it got all of them");

    let before = live.word().generation();
    let (at, now) = (SystemTime::now() + SOON, Instant::now());
    let at_text = humantime::format_rfc3339_millis(at).to_string();
    let switched = bgctl.json(&[&["switch", DEPLOYMENT, "green", "--at", &at_text], &RESETS[..]].concat())?;
    ensure!(switched["revert_if"] == json!([RESETS[1]]) && switched["to"]["live"] == "blue", "{switched}");
    let back = taken_back(&ready, before)?;
    ensure!(back + Duration::from_millis(5) > at, "{:?} too early", at.duration_since(back));
    let records = bgctl.json(&["history", DEPLOYMENT, "-n", "1"])?;
    ensure!(records["records"][0]["action"] == "tripped" && records["records"][0]["reason"] == "resets", "{records}");

    // Well before the instant, and once it was taken back, each new flow was on blue.
    let (at, back) = (now + SOON, Instant::now());
    thread::sleep(Duration::from_millis(100));
    for load in loads {
        let requests = load.finish_from(back)?;
        let early = |request: &&Request| request.sent > now && request.sent + request.took + SOON / 10 < at;
        let (early, late) = (requests.iter().filter(early), requests.iter().filter(|request| request.sent > back));
        let elsewhere: Vec<_> = early.chain(late).filter(|request| request.colour != Some(Colour::Blue)).collect();
        ensure!(elsewhere.is_empty(), "{elsewhere:?}");
    }
    drop(faulty);
    let first_after = state_of_first(&ready)?;
    ensure!(first_after == first, "{first_after:?}");
    for other in others {
        ensure!(other?.colour()? == "green", "a connection of {FIRST}");
    }
    Ok(())
}

in_each_setting!(a_ramp_is_called_off_while_it_goes_on_and_a_schedule_once_it_has_begun);

#[test]
fn nothing_goes_back_to_a_colour_that_fails_the_same_test() -> Result<()> {
    let ready = ready(Setting::Native)?;
    let bgctl = &ready.bgctl;
    let conditions = [&RESETS[..], &["--revert-if", "unanswered > 5% of 20"]].concat();
    for (vip, ..) in FAMILIES {
        let faulty = Faulty::new(&ready.lab, &Colour::ALL, Fault::Closed)?;
        let load = Arrivals::start(&ready.lab.client, http_vip(vip), true, RATE)?;
        wait_until("under load", || Ok(load.count() > 100))?;
        let switched = bgctl.json(&[&["switch", DEPLOYMENT, "green"], &conditions[..]].concat())?;
        ensure!(switched["not_armed"] == json!([RESETS[1]]), "{switched}");
        ensure!(switched["revert_if"] == json!([conditions[3]]), "{switched}");
        let word = ready.live()?.word();
        let so_far = load.count();
        wait_until("under load", || Ok(load.count() > so_far + 300))?;
        ensure!(ready.live()?.word() == word && bgctl.live(DEPLOYMENT)? == "green");
        // With that condition alone, nothing waits for a confirmation.
        bgctl.run(&["rollback", DEPLOYMENT])?;
        wait_until("under load", || Ok(load.count() > so_far + 400))?;
        let switched = bgctl.json(&[&["switch", DEPLOYMENT, "green"], &RESETS[..]].concat())?;
        ensure!(switched["changed"] == true && switched["not_armed"] == json!([RESETS[1]]), "{switched}");
        ensure!(!ready.live()?.word().flags().has(LiveFlags::TIMED));
        load.finish()?;
        drop(faulty);
        bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
    }
    Ok(())
}

/// Silence of which no packet tells: the next command judges.
#[test]
fn when_nothing_arrives_the_next_command_decides() -> Result<()> {
    let ready = ready(Setting::Native)?;
    let bgctl = &ready.bgctl;
    let silence = ["--revert-if", "silence 300ms"];
    for (vip, _, client) in FAMILIES {
        let _faulty = Faulty::green(&ready.lab, Fault::Silent)?;
        // Without a new flow there is no silence.
        bgctl.run(&[&["switch", DEPLOYMENT, "green"], &silence[..]].concat())?;
        let word = ready.live()?.word();
        thread::sleep(Duration::from_millis(600));
        ensure!(bgctl.live(DEPLOYMENT)? == "green" && ready.live()?.word() == word);
        for port in 2000..2003 {
            let from = SocketAddr::new(client, port);
            ready.lab.client.enter(|| Echo::open_from(from, udp_vip(vip)).and_then(|flow| flow.send("?")))??;
        }
        thread::sleep(Duration::from_millis(600));
        ensure!(ready.live()?.word() == word, "nobody has judged");
        let told = bgctl.run(&["status", DEPLOYMENT])?;
        ensure!(bgctl.live(DEPLOYMENT)? == "blue", "{told}");
        let records = bgctl.json(&["history", DEPLOYMENT])?;
        let last = records["records"].as_array().and_then(|all| all.last()).context("records")?;
        ensure!(last["action"] == "tripped" && last["reason"] == "silence", "{last}");
        ensure!(bgctl.try_run(&["confirm", DEPLOYMENT])?.status.code() == Some(3), "too late");
    }
    Ok(())
}

#[test]
fn a_confirmation_and_a_rollback_end_conditions() -> Result<()> {
    let ready = ready(Setting::Native)?;
    let bgctl = &ready.bgctl;
    for end in ["confirm", "rollback"] {
        bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
        let load = Arrivals::start(&ready.lab.client, http_vip(address::VIP_V6), true, RATE)?;
        wait_until("under load", || Ok(load.count() > 30))?;
        let switched = bgctl.json(&[&["switch", DEPLOYMENT, "green"], &RESETS[..]].concat())?;
        ensure!(switched["revert_if"] == json!([RESETS[1]]), "{switched}");
        bgctl.run(&[end, DEPLOYMENT])?;
        let word = ready.live()?.word();
        let _faulty = Faulty::new(&ready.lab, &Colour::ALL, Fault::Closed)?;
        let so_far = load.count();
        wait_until("under load", || Ok(load.count() > so_far + 200))?;
        let status = bgctl.deployment(DEPLOYMENT)?;
        ensure!(ready.live()?.word() == word && status["revert_if"] == json!([]), "{end}: {status}");
        load.finish_from(Instant::now())?;
    }
    Ok(())
}
