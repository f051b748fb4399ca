//! Gates that are commands.

use crate::{Gated, PATIENCE, is_running, shell};
use anyhow::{Result, ensure};
use bg_tests::config::DEPLOYMENT;
use std::{
    fs, thread,
    time::{Duration, Instant},
};

#[test]
fn a_command_before_the_switch_decides_whether_there_is_one() -> Result<()> {
    let lab = Gated::new()?;
    let (blue, generation, _) = lab.state(DEPLOYMENT)?;
    assert_eq!(blue, "blue");
    let told = lab.file("told").display().to_string();
    let tell = format!(
        "echo $BGCTL_DEPLOYMENT $BGCTL_FROM $BGCTL_TO $BGCTL_GENERATION $BGCTL_PIN_ROOT $BGCTL_STATE_DIR >> {told}; \
         echo ${{NOTIFY_SOCKET:-none}} ${{WATCHDOG_USEC:-none}} >> {told}; test ! -t 0"
    );
    let fails = shell(DEPLOYMENT, "before", "echo looking; echo >&2 the checkout is broken; exit 7");
    lab.apply(&[
        shell(DEPLOYMENT, "before", &tell),
        fails,
        shell(DEPLOYMENT, "before", &format!("echo third >> {told}")),
    ])?;
    lab.refused(
        &[],
        &["/bin/sh", "before the switch", "exit status: 7: looking / the checkout is broken", "blue stays live"],
    );
    assert_eq!(lab.history(DEPLOYMENT)?.last().map(|record| record["action"].clone()), Some("apply".into()));
    let (pins, state) = (lab.ready.lab.sandbox.pin_root().display(), lab.ready.lab.sandbox.state_dir());
    let expected = format!("shop blue green {generation} {pins} {}", state.display());
    assert_eq!(lab.lines("told"), [expected, "none none".to_owned()], "in order, until the first that fails");

    // What systemd gives to bgctl is not for its gates.
    let mut command = lab.ready.bgctl.command(&["switch", DEPLOYMENT]);
    command.env("NOTIFY_SOCKET", "/nowhere").env("WATCHDOG_USEC", "1000000");
    assert_eq!(command.output()?.status.code(), Some(3));
    assert_eq!(lab.lines("told")[3], "none none");

    // A dry run asks none of them.
    let asked = lab.lines("told").len();
    let dry_run = lab.run(&["--json", "switch", DEPLOYMENT, "--dry-run"])?.json()?;
    let gates: Vec<_> = dry_run["gates"].as_array().into_iter().flatten().filter_map(|gate| gate.as_str()).collect();
    assert_eq!(gates.len(), 3, "{dry_run}");
    assert!(gates[1].starts_with("before: exec /bin/sh -c echo looking; echo >&2"), "{gates:?}");
    assert!(lab.run(&["switch", DEPLOYMENT, "--dry-run"])?.out.contains("\n  gate before: exec /bin/sh"));
    assert_eq!(lab.lines("told").len(), asked);

    // Who goes without them is known.
    let skipped = lab.run(&["switch", DEPLOYMENT, "--skip-gates", "--reason", "night"])?;
    assert_eq!(skipped.code, Some(0), "{}", skipped.err);
    assert_eq!(lab.last_record(DEPLOYMENT)?, ("switch".to_owned(), "night (gates skipped)".to_owned()));
    assert_eq!(lab.lines("told").len(), asked);
    // The colour that is live already needs no gate, and the way back neither.
    assert_eq!(lab.run(&["switch", DEPLOYMENT, "green"])?.code, Some(0));
    assert_eq!(lab.run(&["rollback", DEPLOYMENT])?.code, Some(0));
    assert_eq!(lab.lines("told").len(), asked);

    lab.apply(&[shell(DEPLOYMENT, "before", &tell)])?;
    let passed = lab.run(&["--json", "switch", DEPLOYMENT])?;
    assert_eq!(passed.code, Some(0), "{}", passed.err);
    let json = passed.json()?;
    assert_eq!(
        (&json["to"]["live"], &json["gates"][0]["passed"], &json["gates"][0]["attempts"]),
        (&"green".into(), &true.into(), &1.into())
    );
    assert!(
        json["confirmed"].is_null() && json["confirm_deadline"].is_null(),
        "only gates after it ask for that: {json}"
    );
    lab.ready.neighbour_is_undisturbed()
}

#[test]
fn what_hangs_crashes_or_cannot_be_run_has_failed() -> Result<()> {
    let lab = Gated::new()?;
    // All that it has started ends with it.
    let mark = lab.file("mark").display().to_string();
    let hangs = format!("echo waiting; /bin/sh -c 'sleep 100; : {mark}' & sleep 100; : {mark}");
    let short = |line: &str| shell(DEPLOYMENT, "before", line).replace("\"2s\"", "\"300ms\"");
    lab.apply(&[short(&hangs)])?;
    let began = Instant::now();
    lab.refused(&[], &["it had not ended in time, and was killed: waiting"]);
    while is_running(&mark)? {
        ensure!(began.elapsed() < PATIENCE, "what the gate has started runs on");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    // One that says too much is killed in time, too.
    lab.apply(&[short("yes")])?;
    lab.refused(&[], &["was killed: y / y / y"]);
    lab.apply(&[shell(DEPLOYMENT, "before", "kill -SEGV $$")])?;
    lab.refused(&[], &["signal: 11"]);
    lab.apply(&[shell(DEPLOYMENT, "before", "true").replace("/bin/sh", "/nowhere/smoke-test")])?;
    lab.refused(&[], &["/nowhere/smoke-test", "it cannot be run: No such file or directory"]);
    // One whose child keeps the pipe has ended nevertheless.
    lab.apply(&[shell(DEPLOYMENT, "before", "sleep 100 & exit 4")])?;
    let began = Instant::now();
    lab.refused(&[], &["exit status: 4"]);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    Ok(())
}

#[test]
fn commands_after_the_switch_keep_it_or_take_it_back() -> Result<()> {
    let lab = Gated::new()?;
    let asked = lab.file("asked").display().to_string();
    let counts =
        format!("echo $BGCTL_FROM $BGCTL_TO $BGCTL_GENERATION >> {asked}; test ! -e {}", lab.file("broken").display());
    let after = shell(DEPLOYMENT, "after", &counts);
    lab.apply(std::slice::from_ref(&after))?;
    let (_, generation, _) = lab.state(DEPLOYMENT)?;

    let kept = lab.run(&["--json", "switch", DEPLOYMENT, "--confirm-within", "2s"])?;
    assert_eq!(kept.code, Some(0), "{}", kept.err);
    let json = kept.json()?;
    assert_eq!((&json["confirmed"], &json["confirm_deadline"]), (&"by_gates".into(), &().into()), "{json}");
    assert!(
        kept.took >= Duration::from_millis(1700),
        "they were asked until the time was nearly over: {:?}",
        kept.took
    );
    let attempts = json["gates"][0]["attempts"].as_u64().unwrap_or_default();
    assert!((2..=18).contains(&attempts), "{json}");
    assert_eq!(lab.lines("asked"), vec![format!("blue green {}", generation + 1); attempts as usize]);
    // Nothing takes it back any more.
    thread::sleep(Duration::from_millis(300));
    let (live, now, phase) = lab.state(DEPLOYMENT)?;
    assert_eq!((live.as_str(), now), ("green", generation + 1));
    assert_ne!(phase, "confirming");
    let (action, reason) = lab.last_record(DEPLOYMENT)?;
    assert!(action == "confirm" && reason.starts_with("gates passed: exec /bin/sh"), "{action}: {reason}");

    // It fails at a later attempt, long before the time is over.
    let breaks = format!("{counts} && touch {}", lab.file("broken").display());
    lab.apply(&[shell(DEPLOYMENT, "after", &breaks)])?;
    let failed = lab.run(&["switch", DEPLOYMENT, "--confirm-within", "1m"])?;
    assert_eq!(failed.code, Some(3), "{}", failed.err);
    assert!(failed.took < PATIENCE, "{:?}", failed.took);
    for part in [
        "after the switch",
        "exit status: 1",
        "was rolled back, and green is live",
        &format!("generation {}", generation + 3),
    ] {
        assert!(failed.err.contains(part), "no {part} in {}", failed.err);
    }
    let (live, now, phase) = lab.state(DEPLOYMENT)?;
    assert_eq!((live.as_str(), now), ("green", generation + 3));
    assert_ne!(phase, "confirming");
    let (action, reason) = lab.last_record(DEPLOYMENT)?;
    assert!(
        action == "rollback" && reason.starts_with("gate exec /bin/sh") && reason.ends_with("failed: exit status: 1"),
        "{action}: {reason}"
    );

    // Without a time, there is one: what an attempt may take, and an interval.
    fs::remove_file(lab.file("broken"))?;
    lab.apply(&[after.replace("\"2s\"", "\"50ms\"")])?;
    let usual = lab.run(&["--json", "switch", DEPLOYMENT])?;
    assert_eq!(usual.code, Some(0), "{}", usual.err);
    assert_eq!(usual.json()?["confirmed"], "by_gates");
    assert!((1.0..20.0).contains(&usual.took.as_secs_f64()), "{:?}", usual.took);
    // One that hangs takes it back.
    lab.apply(&[shell(DEPLOYMENT, "after", "sleep 100").replace("\"2s\"", "\"200ms\"")])?;
    let hung = lab.run(&["switch", DEPLOYMENT, "--confirm-within", "1m"])?;
    assert_eq!(hung.code, Some(3), "{}", hung.err);
    assert!(hung.took < PATIENCE && hung.err.contains("it had not ended after 200ms"), "{}", hung.err);
    lab.ready.neighbour_is_undisturbed()
}
