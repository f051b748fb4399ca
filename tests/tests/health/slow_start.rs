//! A backend that has come back gets its part of the new flows by and by.

use crate::{at, health, times};
use anyhow::{Result, ensure};
use bg_common::Colour;
use bg_tests::{Answers, Controller, Fabric, Lab, Ready, Scripted, address::VIP_V4, load::Connection};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

const PORT: u16 = 8081;
const FLOWS: usize = 150;
/// Long enough that many flows are opened in a small part of it, also on a machine that is busy.
const SLOW_START: Duration = Duration::from_secs(30);

/// How many flows each of the two blue backends has got.
fn opened(ready: &Ready) -> Result<[usize; 2]> {
    let flows = ready.bgctl.json(&["flows", "shop"])?;
    let flows = flows["flows"].as_array().cloned().unwrap_or_default();
    let to = |nth: usize| {
        let backend = at(&ready.lab.backends[nth], PORT).to_string();
        flows.iter().filter(|flow| flow["backend"].as_str() == Some(&backend)).count()
    };
    Ok([to(0), to(1)])
}

#[test]
fn a_backend_that_returns_is_given_more_and_more() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let colour = |colour: Colour| {
        let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
        of_colour.map(|backend| format!("\"{}\"", at(backend, PORT))).collect::<Vec<_>>().join(", ")
    };
    let vip = SocketAddr::new(VIP_V4, 80);
    let config = format!(
        "[[deployments.shop.services]]\nname = \"web\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
         blue = [{}]\ngreen = [{}]\nhealth = {{ kind = \"http\", slow_start = \"{SLOW_START:?}\", {} }}\n",
        colour(Colour::Blue),
        colour(Colour::Green),
        times()
    );
    let servers = lab.backends.iter().map(|backend| Scripted::start(backend, at(backend, PORT)));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let ready = Ready::with_others(lab, "native", &config)?;
    let _controller = Controller::start(&ready.bgctl)?;
    let maps = health(&ready)?;
    let soon = Duration::from_secs(10);
    for backend in &ready.lab.backends {
        maps.wait(at(backend, PORT), "up", soon)?;
    }
    // The share of the first backend among flows that are opened now.
    let mut kept = Vec::new();
    let mut share = || -> Result<f64> {
        let before = opened(&ready)?;
        for _ in 0..FLOWS {
            kept.push(Connection::open(&ready.lab.client, vip)?);
        }
        let after = opened(&ready)?;
        let [ours, others] = [after[0] - before[0], after[1] - before[1]];
        ensure!(ours + others == FLOWS, "{before:?} {after:?}");
        Ok(ours as f64 / FLOWS as f64)
    };
    let started = || -> Result<Option<f64>> {
        let status = ready.bgctl.deployment("shop")?;
        Ok(status["services"][0]["blue"]["backends"][0]["slow_start"].as_f64())
    };
    let usual = share()?;
    ensure!((0.3..0.7).contains(&usual), "both have the same weight, and the first got {usual}");
    let first = at(&ready.lab.backends[0], PORT);
    servers[0].answer(Answers::Error);
    maps.wait(first, "down", soon)?;
    ensure!(share()? == 0.0, "it is down");
    servers[0].answer(Answers::Well);
    maps.wait(first, "up", soon)?;
    let begin = Instant::now();
    let early = share()?;
    println!("{early} of the new flows until {:?} after it has come back", begin.elapsed());
    if begin.elapsed() < SLOW_START / 3 {
        // A third of its weight is a quarter of the flows.
        ensure!(early < 0.36, "it has just come back, and got {early}");
    }
    let end = Instant::now() + 3 * SLOW_START;
    let mut seen = Vec::new();
    while let Some(part) = started()? {
        ensure!(Instant::now() < end, "it never ends: {seen:?}");
        seen.push(part);
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure!(seen.is_sorted() && seen.len() > 2, "it only grows: {seen:?}");
    let late = share()?;
    println!("{late} after {:?}", begin.elapsed());
    ensure!((0.3..0.7).contains(&late) && late > early, "it has all of its weight again, and got {late} after {early}");
    Ok(())
}
