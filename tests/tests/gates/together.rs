//! Two deployments with gates of their own, at the same time.

use crate::{Gated, shell};
use anyhow::{Context, Result};
use bg_tests::config::{DEPLOYMENT, NEIGHBOUR};
use std::thread;

#[test]
fn each_deployment_is_ruled_by_its_own_gates() -> Result<()> {
    let lab = Gated::new()?;
    let log = |name: &str| format!("echo $BGCTL_DEPLOYMENT $BGCTL_TO >> {}", lab.file(name).display());
    for failing in [NEIGHBOUR, DEPLOYMENT] {
        let gates = |deployment: &str| {
            let outcome = if deployment == failing { "exit 1" } else { "exit 0" };
            let (before, after) = (log(&format!("{deployment}-before")), log(&format!("{deployment}-after")));
            // It fails at the second attempt, while the other deployment waits, too.
            let second = format!(
                "{after}; test $(grep -c . {}) -lt 2 || {outcome}",
                lab.file(&format!("{deployment}-after")).display()
            );
            [shell(deployment, "before", &before), shell(deployment, "after", &second)]
        };
        lab.apply(&[gates(NEIGHBOUR), gates(DEPLOYMENT)].concat())?;
        let before = [NEIGHBOUR, DEPLOYMENT].map(|deployment| lab.state(deployment));
        let both = thread::scope(|scope| {
            let lab = &lab;
            let switch = |deployment| scope.spawn(move || lab.run(&["switch", deployment, "--confirm-within", "2s"]));
            let switches = [NEIGHBOUR, DEPLOYMENT].map(switch);
            switches.map(|switch| switch.join().ok().context("panicked")?)
        });
        for ((deployment, said), before) in [NEIGHBOUR, DEPLOYMENT].into_iter().zip(both).zip(before) {
            let (said, (colour, ..)) = (said?, before?);
            let (live, _, phase) = lab.state(deployment)?;
            assert_ne!(phase, "confirming");
            let failed = deployment == failing;
            assert_eq!(said.code, Some(if failed { 3 } else { 0 }), "{deployment}: {}", said.err);
            assert_eq!(live == colour, failed, "{deployment}: {live} after {colour}: {}", said.err);
            for when in ["before", "after"] {
                let lines = lab.lines(&format!("{deployment}-{when}"));
                let other = if colour == "blue" { "green" } else { "blue" };
                assert!(
                    !lines.is_empty() && lines.iter().all(|line| *line == format!("{deployment} {other}")),
                    "{lines:?}"
                );
                std::fs::remove_file(lab.file(&format!("{deployment}-{when}")))?;
            }
        }
    }
    Ok(())
}
