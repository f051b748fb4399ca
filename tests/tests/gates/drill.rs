//! A drill goes there and back, whatever its gates say, and whether it lives or not.

use crate::{Gated, PATIENCE, shell};
use anyhow::Result;
use bg_tests::{Chance, config::DEPLOYMENT};
use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

#[test]
fn a_drill_reports_and_the_old_colour_is_live_again() -> Result<()> {
    let lab = Gated::new()?;
    let (_, generation, _) = lab.state(DEPLOYMENT)?;
    // Without gates it is the bare way.
    let bare = lab.run(&["drill", DEPLOYMENT])?;
    assert_eq!(bare.code, Some(0), "{}", bare.err);
    assert!(bare.out.starts_with("shop: drill blue -> green -> blue, done, without gates\n"), "{}", bare.out);

    let log = lab.file("log").display().to_string();
    let after = format!("echo $BGCTL_FROM $BGCTL_TO >> {log}");
    lab.apply(&[shell(DEPLOYMENT, "before", "true"), shell(DEPLOYMENT, "after", &after)])?;
    let drill = lab.run(&["--json", "drill", DEPLOYMENT, "--back-after", "800ms", "--reason", "monthly"])?;
    assert_eq!(drill.code, Some(0), "{}", drill.err);
    let json = drill.json()?;
    assert_eq!(
        (&json["passed"], &json["from"]["live"], &json["there"]["to"]["live"]),
        (&true.into(), &"blue".into(), &"green".into())
    );
    assert_eq!(
        (&json["back"]["to"]["live"], &json["back"]["to"]["generation"]),
        (&"blue".into(), &(generation + 4).into())
    );
    let away = json["away_ms"].as_u64().unwrap_or_default();
    assert!((800..20_000).contains(&away), "{json}");
    for leg in ["there", "back"] {
        let (call, fence) = (json[leg]["call_us"].as_u64(), json[leg]["fence_us"].as_u64());
        assert!(call.zip(fence).is_some_and(|(call, fence)| call >= fence && call > 0), "{json}");
    }
    let attempts = json["gates"][1]["attempts"].as_u64().unwrap_or_default();
    assert!(attempts >= 2, "they are asked all the while: {json}");
    assert_eq!(lab.lines("log"), vec!["blue green"; attempts as usize]);
    let records = lab.history(DEPLOYMENT)?;
    let told: Vec<_> = records[records.len() - 2..]
        .iter()
        .map(|record| (record["action"].clone(), record["reason"].clone()))
        .collect();
    assert_eq!(told, [("switch".into(), "drill: monthly".into()), ("rollback".into(), "drill over: monthly".into())]);

    lab.apply(&[shell(DEPLOYMENT, "after", "echo no database; exit 1")])?;
    let failed = lab.run(&["drill", DEPLOYMENT, "--back-after", "1m"])?;
    assert_eq!(failed.code, Some(3), "{}", failed.err);
    assert!(failed.took < PATIENCE, "back at once: {:?}", failed.took);
    assert!(
        failed.out.contains("-> blue, failed: gate exec") && failed.out.contains("exit status: 1: no database"),
        "{}",
        failed.out
    );
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");
    lab.apply(&[shell(DEPLOYMENT, "before", "exit 1")])?;
    let (_, generation, _) = lab.state(DEPLOYMENT)?;
    assert_eq!(lab.run(&["drill", DEPLOYMENT])?.code, Some(3));
    assert_eq!(lab.state(DEPLOYMENT)?.1, generation, "nothing was changed");
    lab.ready.neighbour_is_undisturbed()
}

#[test]
fn a_drill_that_is_killed_goes_back_by_itself() -> Result<()> {
    let lab = Gated::new()?;
    lab.apply(&[shell(DEPLOYMENT, "after", "true").replace("\"2s\"", "\"50ms\"")])?;
    let mut child = lab
        .ready
        .bgctl
        .command(&["drill", DEPLOYMENT, "--back-after", "1s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let began = Instant::now();
    while lab.state(DEPLOYMENT)?.0 != "green" {
        anyhow::ensure!(began.elapsed() < PATIENCE, "it was not switched");
    }
    thread::sleep(Chance::new().below(Duration::from_millis(500)));
    child.kill()?;
    child.wait()?;
    let deadline = lab.ready.bgctl.deployment(DEPLOYMENT)?["confirm_deadline"].clone();
    assert!(deadline.is_string(), "{deadline}");
    while lab.state(DEPLOYMENT)?.0 != "blue" {
        anyhow::ensure!(began.elapsed() < PATIENCE, "it has not gone back, the deadline is {deadline}");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(began.elapsed() > Duration::from_secs(1), "not before it would have been over");
    Ok(())
}

#[test]
fn what_somebody_has_confirmed_is_not_gone_back_on() -> Result<()> {
    let lab = Gated::new()?;
    lab.apply(&[shell(DEPLOYMENT, "after", "true")])?;
    thread::scope(|scope| {
        let drill = scope.spawn(|| lab.run(&["drill", DEPLOYMENT, "--back-after", "1m"]));
        let began = Instant::now();
        while lab.state(DEPLOYMENT)?.0 != "green" {
            anyhow::ensure!(began.elapsed() < PATIENCE && !drill.is_finished(), "it was not switched");
        }
        lab.ready.bgctl.run(&["confirm", DEPLOYMENT])?;
        let confirmed = lab.state(DEPLOYMENT)?;
        let said = drill.join().expect("it runs")?;
        anyhow::ensure!(said.code == Some(3) && said.took < PATIENCE, "{:?} after {:?}", said.code, said.took);
        anyhow::ensure!(said.err.contains("so the drill does not go back"), "{}", said.err);
        anyhow::ensure!(lab.state(DEPLOYMENT)? == confirmed, "{:?} and not {confirmed:?}", lab.state(DEPLOYMENT)?);
        Ok(())
    })
}

#[test]
fn a_drill_whose_switch_is_not_recorded_says_so_and_ends() -> Result<()> {
    let lab = Gated::new()?;
    // The history cannot be written: a directory is in its place.
    let state = lab.ready.lab.sandbox.state_dir();
    let aside = state.with_extension("aside");
    std::fs::rename(&state, &aside)?;
    std::fs::write(&state, "no directory")?;
    let began = Instant::now();
    let said = lab.run(&["drill", DEPLOYMENT])?;
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("the drill goes back when its time is over"), "{}", said.err);
    while lab.state(DEPLOYMENT)?.0 != "blue" {
        anyhow::ensure!(began.elapsed() < PATIENCE, "it has not gone back");
        thread::sleep(Duration::from_millis(50));
    }
    std::fs::remove_file(&state)?;
    std::fs::rename(&aside, &state)?;
    let generation = lab.state(DEPLOYMENT)?.1;
    assert_eq!(generation, 3, "there and back");
    Ok(())
}
