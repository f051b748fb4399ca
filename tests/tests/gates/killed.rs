//! The process that runs the gates is killed at random moments. No outcome is invented, and none is lost: what nobody has confirmed is taken back.

use crate::{Gated, PATIENCE, is_running, shell};
use anyhow::{Context, Result, ensure};
use bg_tests::{
    Chance,
    config::{DEPLOYMENT, NEIGHBOUR},
};
use std::{
    fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// The time for the confirmation.
const WINDOW: Duration = Duration::from_millis(600);

/// Each kills two commands.
fn rounds() -> usize {
    if std::env::var_os("BG_TEST_FULL").is_some() { 50 } else { 5 }
}

#[test]
fn a_gate_dies_with_its_runner() -> Result<()> {
    let lab = Gated::new()?;
    let mark = lab.file("mark").display().to_string();
    for when in ["before", "after"] {
        let hangs = shell(DEPLOYMENT, when, &format!("sleep 100; : {mark}")).replace("\"2s\"", "\"1m\"");
        lab.apply(&[hangs])?;
        let mut command = lab.ready.bgctl.command(&["switch", DEPLOYMENT, "--confirm-within", "500ms"]);
        let mut runner = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let began = Instant::now();
        while !is_running(&format!("sleep 100; : {mark}"))? {
            ensure!(began.elapsed() < PATIENCE, "the gate {when} the switch was not asked");
        }
        runner.kill()?;
        runner.wait()?;
        while is_running(&mark)? {
            ensure!(began.elapsed() < PATIENCE, "the gate {when} the switch runs on without its runner");
        }
        while lab.state(DEPLOYMENT)?.0 != "blue" {
            ensure!(began.elapsed() < PATIENCE, "nobody has confirmed it");
        }
    }
    Ok(())
}

#[test]
fn no_outcome_is_invented_and_none_is_lost() -> Result<()> {
    let lab = Gated::new()?;
    let mark = lab.file("mark").display().to_string();
    // Each attempt tells of its end, so that it is known whether all were asked.
    let gate = |deployment, when| {
        shell(
            deployment,
            when,
            &format!(
                ": {mark}; sleep 0.05; echo $BGCTL_GENERATION >> {}",
                lab.file(&format!("{deployment}-{when}")).display()
            ),
        )
    };
    lab.apply(&[NEIGHBOUR, DEPLOYMENT].map(|deployment| gate(deployment, "before") + &gate(deployment, "after")))?;
    let mut chance = Chance::new();
    let mut outcomes = [0; 3];
    for round in 0..rounds() {
        let deployments = [NEIGHBOUR, DEPLOYMENT];
        let mut before = Vec::new();
        let mut children = Vec::new();
        for deployment in deployments {
            before.push(lab.state(deployment)?);
            let window = humantime::format_duration(WINDOW).to_string();
            let mut command = lab.ready.bgctl.command(&["switch", deployment, "--confirm-within", &window]);
            children.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        }
        let delay = chance.below(WINDOW.mul_f64(1.4));
        thread::sleep(delay);
        children.iter_mut().try_for_each(std::process::Child::kill)?;
        let ended = children.iter_mut().map(std::process::Child::wait).collect::<Result<Vec<_>, _>>()?;
        let gone = Instant::now();
        while is_running(&mark)? {
            ensure!(gone.elapsed() < PATIENCE, "round {round}: a gate runs on without its runner");
        }
        // Nobody but the data path acts from here on.
        thread::sleep((WINDOW + Duration::from_millis(50)).saturating_sub(gone.elapsed()));
        for ((deployment, before), ended) in deployments.into_iter().zip(before).zip(ended) {
            let (live, generation, phase) = lab.state(deployment)?;
            let context = || {
                format!(
                    "round {round}, {deployment} after {delay:?}: {before:?} -> {live} {generation} {phase}, {ended}"
                )
            };
            assert_ne!(phase, "confirming", "{}", context());
            let asked = |when: &str| {
                let name = format!("{deployment}-{when}");
                let lines = lab.lines(&name);
                let _ = fs::remove_file(lab.file(&name));
                lines
            };
            let (asked_before, asked_after) = (asked("before"), asked("after"));
            match generation - before.1 {
                0 => {
                    assert_eq!(live, before.0, "{}", context());
                    assert!(asked_after.is_empty(), "{}", context());
                    outcomes[0] += 1;
                }
                // Confirmed, or taken back: the generation tells.
                1 => {
                    assert_ne!(live, before.0, "{}", context());
                    let generation = generation.to_string();
                    assert!(
                        !asked_after.is_empty() && asked_after.iter().all(|asked| *asked == generation),
                        "{asked_after:?}: {}",
                        context()
                    );
                    assert!(delay >= WINDOW / 2, "too early for a confirmation: {}", context());
                    outcomes[1] += 1;
                }
                2 => {
                    assert_eq!(live, before.0, "{}", context());
                    assert!(!ended.success(), "{}", context());
                    outcomes[2] += 1;
                }
                more => panic!("{more} changes: {}", context()),
            }
            assert!(generation == before.1 || !asked_before.is_empty(), "{}", context());
            if ended.success() {
                assert_eq!(generation - before.1, 1, "an outcome that was told is kept: {}", context());
            }
        }
    }
    println!("unchanged {}, confirmed {}, taken back {}", outcomes[0], outcomes[1], outcomes[2]);
    assert!(outcomes[2] > 0, "no switch was taken back, so the test has shown nothing");
    // A command that is not killed does its work as ever.
    let said = lab.run(&["switch", DEPLOYMENT, "--confirm-within", "2s"]).context("the last")?;
    assert!(said.code == Some(0) && said.took < PATIENCE, "{}", said.err);
    lab.ready.bgctl.run(&["history", "--verify"]).map(drop)
}
