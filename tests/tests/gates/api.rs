//! The controller asks the gates for those who ask it to switch.

use crate::{Gated, PATIENCE, shell};
use anyhow::{Context, Result, ensure};
use bg_tests::{
    Controller,
    config::{DEPLOYMENT, shop},
};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Asks for a switch, and returns the status and the answer.
fn post(lab: &Gated, body: &str) -> Result<(String, Value)> {
    let mut command = lab.ready.lab.edge.command("curl");
    command.arg("-s").arg("--unix-socket").arg(lab.file("api.sock")).args(["-w", "\n%{http_code}"]);
    command.args(["-H", "Content-Type: application/json", "-d", body]);
    command.arg(format!("http://localhost/v1/deployments/{DEPLOYMENT}/switch"));
    let text = bg_tests::output(&mut command)?;
    let (json, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.to_owned(), serde_json::from_str(json).with_context(|| text.clone())?))
}

#[test]
fn a_request_gets_the_outcome_of_the_gates() -> Result<()> {
    let lab = Gated::new()?;
    let broken = lab.file("broken").display().to_string();
    let gates = |before: &str, after: &str| {
        let serve = format!("[serve]\nsocket = \"{}\"\n\n", lab.file("api.sock").display());
        let gates = shell(DEPLOYMENT, "before", before) + &shell(DEPLOYMENT, "after", after);
        lab.ready.bgctl.apply(&(serve + &shop(&lab.ready.lab, "nat", "") + "\n" + &gates))
    };
    gates("echo not yet; exit 1", "true")?;
    let controller = Controller::start(&lab.ready.bgctl)?;
    let (status, refused) = post(&lab, "{}")?;
    assert_eq!((status.as_str(), &refused["exit_code"]), ("409", &3.into()), "{refused}");
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("exit status: 1: not yet")), "{refused}");
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");
    let (status, dry_run) = post(&lab, r#"{"dry_run": true}"#)?;
    assert_eq!((status.as_str(), dry_run["gates"].as_array().map(Vec::len)), ("200", Some(2)), "{dry_run}");
    let (status, skipped) = post(&lab, r#"{"skip_gates": true, "reason": "night"}"#)?;
    assert_eq!((status.as_str(), &skipped["to"]["live"]), ("200", &"green".into()), "{skipped}");
    assert_eq!(lab.last_record(DEPLOYMENT)?.1, "night (gates skipped)");

    gates("true", &format!("test ! -e {broken}"))?;
    let (status, kept) = post(&lab, r#"{"confirm_within": "1s"}"#)?;
    assert_eq!((status.as_str(), &kept["confirmed"]), ("200", &"by_gates".into()), "{kept}");
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");
    std::fs::write(&broken, "")?;
    let (status, failed) = post(&lab, r#"{"confirm_within": "1m"}"#)?;
    assert_eq!(status, "409", "{failed}");
    assert!(failed["detail"].as_str().is_some_and(|detail| detail.contains("blue is live")), "{failed}");
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");

    // The controller is killed while it asks: the data path goes back.
    gates("true", "sleep 100; : mark")?;
    std::thread::scope(|scope| {
        scope.spawn(|| post(&lab, r#"{"confirm_within": "2s"}"#));
        let began = Instant::now();
        while lab.state(DEPLOYMENT)?.0 != "green" {
            ensure!(began.elapsed() < PATIENCE, "it was not switched");
        }
        controller.end(libc::SIGKILL)?;
        while lab.state(DEPLOYMENT)?.0 != "blue" {
            ensure!(began.elapsed() < PATIENCE, "nobody has confirmed it");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    })?;
    lab.ready.neighbour_is_undisturbed()
}
