//! Commands that freeze and thaw are killed at random moments. A freeze ends at its time all the same, and the next command completes what was begun.

use crate::{PATIENCE, phase, processes, wait_for_held};
use anyhow::{Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Chance, Ready, address,
    config::{DEPLOYMENT, udp_vip},
    load::Echo,
};
use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

fn rounds() -> usize {
    if std::env::var_os("BG_TEST_FULL").is_some() { 100 } else { 10 }
}

/// Starts a command, and kills it at a random moment of the time that it usually takes, or a little later.
fn kill(bgctl: &Bgctl, arguments: &[&str], usual: Duration, chance: &mut Chance) -> Result<()> {
    let mut child = bgctl.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    thread::sleep(chance.below(usual.mul_f64(1.2)));
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Kills the processes that freezes have left to wait for their end.
fn kill_those_who_wait(ready: &Ready) -> Result<()> {
    let pins = ready.lab.sandbox.pin_root().display().to_string();
    // SAFETY: takes no pointers.
    processes(&[&pins, "freeze"])?.iter().for_each(|id| _ = unsafe { libc::kill(*id, libc::SIGKILL) });
    Ok(())
}

/// Waits until new flows go on, without any command.
fn wait_for_the_end(ready: &Ready) -> Result<()> {
    let start = Instant::now();
    loop {
        let new = Echo::open(&ready.lab.client, udp_vip(address::VIP_V4))?;
        new.set_patience(Duration::from_millis(50))?;
        if let Ok(answer) = new.ask("new") {
            assert_eq!(answer.colour, Colour::Blue);
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "frozen for ever");
    }
}

/// Holds a datagram, and thaws.
fn hold_and_thaw(ready: &Ready) -> Result<()> {
    let Ready { bgctl, lab, .. } = ready;
    bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
    let held = Echo::open(&lab.client, udp_vip(address::VIP_V4))?;
    held.set_patience(PATIENCE)?;
    held.send("held")?;
    wait_for_held(bgctl, 1)?;
    bgctl.run(&["thaw", DEPLOYMENT])?;
    assert_eq!(held.receive("held")?.colour, Colour::Blue);
    assert_ne!(phase(bgctl, DEPLOYMENT)?, "frozen");
    Ok(())
}

#[test]
fn a_freeze_that_is_killed_at_any_moment_ends_at_its_time() -> Result<()> {
    let ready = Ready::native("")?;
    let bgctl = &ready.bgctl;
    let start = Instant::now();
    bgctl.run(&["freeze", DEPLOYMENT])?;
    let usual = start.elapsed();
    bgctl.run(&["thaw", DEPLOYMENT])?;
    let mut chance = Chance::new();
    for round in 0..rounds() {
        kill(bgctl, &["freeze", DEPLOYMENT, "--max", "300ms"], usual, &mut chance)?;
        if round % 2 == 0 {
            kill_those_who_wait(&ready)?;
        }
        // If it is held, nobody may play it back.
        Echo::open(&ready.lab.client, udp_vip(address::VIP_V4))?.send("perhaps held")?;
        wait_for_the_end(&ready)?;
        if round % 3 == 0 {
            bgctl.run(&["status"])?;
            assert_ne!(phase(bgctl, DEPLOYMENT)?, "frozen");
        }
        hold_and_thaw(&ready)?;
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn a_thaw_that_is_killed_at_any_moment_is_completed_by_the_next_or_ends_by_itself() -> Result<()> {
    const FLOWS: usize = 30;
    let ready = Ready::native("")?;
    let Ready { bgctl, lab, .. } = &ready;
    let start = Instant::now();
    bgctl.run(&["thaw", DEPLOYMENT])?;
    let usual = start.elapsed() * 2;
    let mut chance = Chance::new();
    for round in 0..rounds() {
        let is_left_alone = round % 5 == 4;
        bgctl.run(&["freeze", DEPLOYMENT, "--max", if is_left_alone { "3s" } else { "1m" }])?;
        kill_those_who_wait(&ready)?;
        let flows: Vec<_> =
            (0..FLOWS).map(|_| Echo::open(&lab.client, udp_vip(address::VIP_V4))).collect::<Result<_>>()?;
        for flow in &flows {
            flow.set_patience(PATIENCE)?;
            flow.send("held")?;
        }
        wait_for_held(bgctl, FLOWS as u64)?;
        kill(bgctl, &["thaw", DEPLOYMENT], usual, &mut chance)?;
        if is_left_alone {
            wait_for_the_end(&ready)?;
            bgctl.run(&["status"])?;
        } else {
            bgctl.run(&["thaw", DEPLOYMENT])?;
        }
        for flow in &flows {
            assert_eq!(flow.receive("held")?.colour, Colour::Blue, "round {round}");
        }
        assert_ne!(phase(bgctl, DEPLOYMENT)?, "frozen");
    }
    ready.neighbour_is_undisturbed()
}
