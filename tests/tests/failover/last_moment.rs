//! What counts is what is so at the last moment, not what was so when somebody decided.

use crate::{OTHER, PORTS, Shop, live, stays, until};
use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{Answers, BackendHealth, Controller, Process, config::DEPLOYMENT};
use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

const HOLD_OFF: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

/// Holds the lock of this directory until the guard is dropped.
fn lock(directory: &Path) -> Result<Process> {
    let holder = Process::spawn(Command::new("flock").arg("--no-fork").arg(directory).args(["sleep", "60"]))?;
    let begin = Instant::now();
    while Command::new("flock").arg("--nonblock").arg(directory).arg("true").status()?.success() {
        ensure!(begin.elapsed() < PATIENCE, "{} is not locked", directory.display());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(holder)
}

fn wait_until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is()? {
        ensure!(begin.elapsed() < PATIENCE, "not {what}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The health of the servers of a colour in the maps.
fn in_maps(shop: &Shop, colour: Colour) -> Result<Vec<&'static str>> {
    let maps = BackendHealth::open(shop.ready.lab.sandbox.pin_root())?;
    let backends = shop.ready.lab.backends.iter().filter(|backend| backend.colour == colour);
    let of = |backend: &bg_tests::Backend| maps.of(SocketAddr::new(backend.addresses[0], PORTS[0]));
    Ok(backends.map(of).collect::<Result<Vec<_>>>()?.concat())
}

/// Packets go by the maps. A colour that is down there gets none, whatever the checks have just found.
#[test]
fn it_does_not_go_to_a_colour_before_the_maps_have_it_up() -> Result<()> {
    let shop = Shop::open(HOLD_OFF)?;
    let word = shop.ready.live()?;
    let controller = Controller::start(&shop.ready.bgctl)?;
    shop.all_up()?;
    shop.answer(Colour::Green, Answers::Error);
    shop.wait(Colour::Green, "down")?;
    shop.answer(Colour::Blue, Answers::Error);
    shop.wait(Colour::Blue, "down")?;
    stays(&word, Duration::from_millis(300), "both are down")?;

    // As an apply does, so that the health cannot be written.
    let holder = lock(shop.ready.lab.sandbox.pin_root())?;
    let found = |log: &str| log.matches("a backend is up").count();
    let before = found(&controller.log()?);
    shop.answer(Colour::Green, Answers::Well);
    wait_until("found to be well", || Ok(found(&controller.log()?) >= before + 2))?;
    thread::sleep(Duration::from_millis(500));
    ensure!(live(&word) == Colour::Blue, "green is down in the maps");
    ensure!(in_maps(&shop, Colour::Green)? == ["down"; 2], "this test has shown nothing");
    drop(holder);
    until(&word, Colour::Green, PATIENCE)?;
    ensure!(in_maps(&shop, Colour::Green)?.contains(&"up"));
    Ok(())
}

/// The switch waits for its lock. Meanwhile the colour dies that it would go to.
#[test]
fn it_judges_anew_when_it_has_waited_for_the_lock() -> Result<()> {
    let shop = Shop::open(HOLD_OFF)?;
    let (word, bgctl) = (shop.ready.live()?, &shop.ready.bgctl);
    let controller = Controller::start(bgctl)?;
    shop.all_up()?;
    let other = bgctl.deployment(OTHER)?["generation"].clone();
    let holder = lock(&shop.ready.lab.sandbox.pin_root().join("maps"))?;
    shop.answer(Colour::Blue, Answers::Error);
    shop.wait(Colour::Blue, "down")?;
    // Its checks need longer to fail than a switch to come to its lock.
    shop.answer(Colour::Green, Answers::Error);
    shop.wait(Colour::Green, "down")?;
    ensure!(live(&word) == Colour::Blue, "somebody holds the lock");
    drop(holder);
    wait_until("looked again", || {
        Ok(live(&word) == Colour::Green || controller.log()?.contains("is not due any more"))
    })?;
    stays(&word, Duration::from_millis(500), "green is dead")?;
    ensure!(live(&word) == Colour::Blue);

    shop.answer(Colour::Green, Answers::Well);
    until(&word, Colour::Green, PATIENCE).context("green is well again")?;
    ensure!(bgctl.deployment(OTHER)?["generation"] == other && bgctl.live(DEPLOYMENT)? == "green");
    Ok(())
}
