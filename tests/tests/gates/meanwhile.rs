//! What others do while the gates are asked, and switches that take effect later.

use crate::{Gated, PATIENCE, shell};
use anyhow::{Context, Result, ensure};
use bg_tests::config::{DEPLOYMENT, shop};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Runs a switch whose gates take long, and something else as soon as `colour` is live.
fn meanwhile(lab: &Gated, arguments: &[&str], colour: &str, other: &[&str]) -> Result<crate::Said> {
    thread::scope(|scope| {
        let switch = scope.spawn(|| lab.run(&[&["--json", "switch", DEPLOYMENT], arguments].concat()));
        let began = Instant::now();
        while lab.state(DEPLOYMENT)?.0 != colour {
            ensure!(began.elapsed() < PATIENCE, "it was not switched");
        }
        let said = lab.run(other)?;
        ensure!(said.code == Some(0), "{other:?}: {}", said.err);
        let said = switch.join().ok().context("panicked")??;
        ensure!(began.elapsed() < PATIENCE, "it has waited for {:?}", began.elapsed());
        Ok(said)
    })
}

#[test]
fn whoever_decides_first_has_decided() -> Result<()> {
    let lab = Gated::new()?;
    // It would pass, and then hang.
    lab.apply(&[
        shell(DEPLOYMENT, "after", "true"),
        shell(DEPLOYMENT, "after", "sleep 100").replace("\"2s\"", "\"1m\""),
    ])?;
    let window = ["--confirm-within", "1m"];
    let confirmed = meanwhile(&lab, &window, "green", &["confirm", DEPLOYMENT])?;
    assert_eq!(confirmed.code, Some(0), "{}", confirmed.err);
    assert_eq!(confirmed.json()?["confirmed"], "by_somebody");
    assert_eq!(lab.state(DEPLOYMENT)?.0, "green");

    let back = meanwhile(&lab, &window, "blue", &["rollback", DEPLOYMENT])?;
    assert_eq!(back.code, Some(3), "{}", back.err);
    assert!(back.err.contains("is at generation"), "{}", back.err);
    assert_eq!(lab.state(DEPLOYMENT)?.0, "green");
    let actions: Vec<_> = lab
        .history(DEPLOYMENT)?
        .iter()
        .map(|record| record["action"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert!(actions.ends_with(&["switch", "confirm", "switch", "rollback"].map(str::to_owned)), "{actions:?}");

    // The gates before a switch have judged what is live no more.
    lab.apply(&[shell(
        DEPLOYMENT,
        "before",
        &format!(
            "{} --pin-root $BGCTL_PIN_ROOT --state-dir $BGCTL_STATE_DIR switch shop blue --skip-gates >&2",
            lab.ready.bgctl.program().display()
        ),
    )])?;
    let overtaken = lab.run(&["switch", DEPLOYMENT, "blue"])?;
    assert_eq!(overtaken.code, Some(3), "{}", overtaken.err);
    assert!(overtaken.err.contains("somebody else has switched"), "{}", overtaken.err);
    Ok(())
}

#[test]
fn a_ramp_is_watched_from_its_beginning_and_a_schedule_from_its_time() -> Result<()> {
    let lab = Gated::new()?;
    let log = lab.file("log").display().to_string();
    lab.apply(&[shell(DEPLOYMENT, "after", &format!("date +%s%N >> {log}; test $(grep -c . {log}) -ne 3"))])?;
    let (_, generation, _) = lab.state(DEPLOYMENT)?;
    let failed = lab.run(&["switch", DEPLOYMENT, "--ramp", "30s", "--confirm-within", "10s"])?;
    assert_eq!(failed.code, Some(3), "{}", failed.err);
    assert!(failed.took < PATIENCE, "{:?}", failed.took);
    let (live, now, phase) = lab.state(DEPLOYMENT)?;
    assert_eq!((live.as_str(), phase.as_str()), ("blue", "steady"), "{now} after {generation}");
    let found = lab.ready.bgctl.deployment(DEPLOYMENT)?;
    assert_eq!(found["green_share"], 0.0, "{found}");

    std::fs::write(lab.file("log"), "1\n2\n3\n")?;
    let kept = lab.run(&["--json", "switch", DEPLOYMENT, "--ramp", "500ms", "--confirm-within", "1s"])?;
    assert_eq!(kept.code, Some(0), "{}", kept.err);
    assert_eq!(kept.json()?["confirmed"], "by_gates");
    assert!(kept.took >= Duration::from_millis(1300), "{:?}", kept.took);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(lab.state(DEPLOYMENT)?.0, "green");

    std::fs::write(lab.file("log"), "1\n2\n3\n")?;
    let at = std::time::SystemTime::now() + Duration::from_secs(2);
    let text = humantime::format_rfc3339_millis(at).to_string();
    let kept = lab.run(&["--json", "switch", DEPLOYMENT, "--at", &text, "--confirm-within", "1s"])?;
    assert_eq!(kept.code, Some(0), "{}", kept.err);
    let since = at.duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let asked: Vec<u128> = lab.lines("log").iter().skip(3).filter_map(|line| line.parse().ok()).collect();
    assert!(!asked.is_empty() && asked.iter().all(|at| *at + 5_000_000 >= since), "{asked:?} before {since}");
    assert_eq!(kept.json()?["confirmed"], "by_gates");
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");

    // In a frozen window nobody waits for them.
    let frozen = lab.run(&["switch", DEPLOYMENT, "--freeze", "1s"])?;
    assert_eq!(frozen.code, Some(2), "{}", frozen.err);
    assert!(frozen.err.contains("--freeze and gates after the switch exclude each other"), "{}", frozen.err);
    lab.apply(&[shell(DEPLOYMENT, "before", "exit 3")])?;
    assert_eq!(lab.run(&["switch", DEPLOYMENT, "--freeze", "1s"])?.code, Some(3));
    lab.apply(&[shell(DEPLOYMENT, "before", "true")])?;
    assert_eq!(lab.run(&["switch", DEPLOYMENT, "--freeze", "1s"])?.code, Some(0));
    lab.ready.neighbour_is_undisturbed()
}

#[test]
fn an_apply_meanwhile_makes_the_gates_judge_something_else() -> Result<()> {
    let lab = Gated::new()?;
    let other = lab.file("other.toml");
    let bgctl =
        format!("{} --pin-root $BGCTL_PIN_ROOT --state-dir $BGCTL_STATE_DIR", lab.ready.bgctl.program().display());
    let gate = shell(DEPLOYMENT, "before", &format!("{bgctl} apply -c {} >&2", other.display()));
    let own = shop(&lab.ready.lab, "nat", "") + "\n" + &gate;
    // One more backend of the colour that is to be live.
    let (before, shop_text) = own.split_once("[deployments.shop]").context("no such deployment")?;
    let (head, green) = shop_text.split_once("green = [").context("no backends")?;
    let changed = [
        format!("{before}[deployments.shop]{head}green = [\"10.99.0.9:80\", {green}"),
        own.clone() + &shell(DEPLOYMENT, "before", "false"),
        own.replace("[deployments.shop]", "[deployments.shop]\ndrain_timeout = \"7m\""),
    ];
    for text in &changed {
        lab.apply(std::slice::from_ref(&gate))?;
        std::fs::write(&other, text)?;
        lab.refused(&[], &["an apply has changed deployment \"shop\""]);
    }
    // The same again is no change.
    lab.apply(std::slice::from_ref(&gate))?;
    std::fs::write(&other, &own)?;
    assert_eq!(lab.run(&["switch", DEPLOYMENT])?.code, Some(0));
    Ok(())
}
