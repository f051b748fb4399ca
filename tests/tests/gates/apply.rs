//! The gates are those of the last apply.

use crate::{Gated, shell};
use anyhow::{Result, ensure};
use bg_tests::config::{DEPLOYMENT, shop};
use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

#[test]
fn the_last_apply_decides_which_gates_there_are() -> Result<()> {
    let lab = Gated::new()?;
    let bgctl = &lab.ready.bgctl;
    let state = lab.ready.lab.sandbox.state_dir();
    assert!(!state.join("gates.toml").exists() && !lab.ready.lab.sandbox.pin_root().join("gates").exists());
    // It may come from a pipe.
    let config = shop(&lab.ready.lab, "nat", "") + "\n" + &shell(DEPLOYMENT, "before", "echo from the pipe; exit 1");
    let mut child = bgctl.command(&["apply", "-c", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(config.as_bytes()))?;
    assert!(child.wait()?.success());
    lab.refused(&[], &["from the pipe"]);
    // A plan tells what would become of them, and so does what runs.
    let plan = |config: &str| {
        bgctl.write_config(config)?;
        lab.run(&["plan", "-c", &bgctl.config().display().to_string()])
    };
    let gone = plan(&shop(&lab.ready.lab, "nat", ""))?;
    assert!(
        gone.code == Some(5) && gone.out.contains("~ shop: gates [before: exec") && gone.out.contains("] -> none"),
        "{}",
        gone.out
    );
    assert_eq!(gone.out.lines().count(), 1, "{}", gone.out);
    assert_eq!(plan(&config)?.code, Some(0));
    let other = plan(&config.replace("timeout = \"2s\"", "timeout = \"3s\""))?;
    assert!(other.code == Some(5) && other.out.contains("(with other options)"), "{}", other.out);
    assert!(bgctl.run(&["show"])?.contains("[[deployments.shop.gates]]"));
    assert_eq!(plan(&bgctl.run(&["show"])?)?.code, Some(0), "applying what runs changes nothing");
    // An apply that changes nothing else is recorded.
    let records = lab.history(DEPLOYMENT)?.len();
    lab.apply(&[shell(DEPLOYMENT, "before", "echo from the pipe; exit 2")])?;
    assert_eq!((lab.last_record(DEPLOYMENT)?.0.as_str(), lab.history(DEPLOYMENT)?.len()), ("apply", records + 1));
    lab.apply(&[shell(DEPLOYMENT, "before", "echo from the pipe; exit 2")])?;
    assert_eq!(lab.history(DEPLOYMENT)?.len(), records + 1, "the same again");
    // What is not applied does not count.
    lab.refused(&[], &["from the pipe"]);

    // The disk is gone. The switch is refused, the emergency is not.
    let aside = state.with_extension("aside");
    fs::rename(&state, &aside)?;
    let unknown = lab.run(&["switch", DEPLOYMENT])?;
    assert_eq!(unknown.code, Some(1), "{}", unknown.err);
    assert!(
        unknown.err.contains("nothing was done, because the gates of the last apply cannot be read"),
        "{}",
        unknown.err
    );
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");
    fs::rename(&aside, &state)?;
    fs::write(state.join("gates.toml"), "[deployments.shop]\ngates = [{ when = \"never\" }]\n")?;
    let damaged = lab.run(&["switch", DEPLOYMENT])?;
    assert!(damaged.code == Some(1) && damaged.err.contains("unknown when"), "{}", damaged.err);
    assert_eq!(lab.run(&["switch", DEPLOYMENT, "--skip-gates"])?.code, Some(0));
    let rest = lab.run(&["show"])?;
    assert!(rest.code == Some(1) && rest.err.contains("the gates are missing in this"), "{}", rest.err);
    assert!(rest.out.contains("[deployments.shop"), "{}", rest.out);
    // Whoever applies it in a pipe does not remove them.
    let piped = lab.run(&["apply", "-c", &bgctl.write_config(&rest.out)?])?;
    assert!(piped.code == Some(2) && piped.err.contains("gates"), "{}", piped.err);

    // Where they cannot be kept, nothing is applied.
    fs::remove_file(state.join("gates.toml"))?;
    fs::create_dir(state.join("gates.toml"))?;
    let config = config
        .replace("from the pipe", "another")
        .replace("[deployments.shop]", "[deployments.shop]\ndrain_timeout = \"7m\"");
    let refused = lab.run(&["apply", "-c", &bgctl.write_config(&config)?])?;
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("nothing was applied"), "{}", refused.err);
    assert!(!lab.ready.lab.sandbox.pin_root().join("changes").exists(), "so there is nothing to record");
    let left = lab.run(&["plan", "-c", &bgctl.config().display().to_string()])?;
    assert!(left.code == Some(5) && left.out.contains("drain_timeout never -> 7m"), "{}", left.out);
    assert!(left.out.contains("gates unknown -> [before"), "{}", left.out);
    fs::remove_dir(state.join("gates.toml"))?;
    bgctl.run(&["apply", "-c", &bgctl.config().display().to_string()])?;
    lab.refused(&[], &["another"]);

    // None any more: then nothing is read.
    bgctl.apply(&shop(&lab.ready.lab, "nat", ""))?;
    fs::rename(&state, &aside)?;
    let plain = lab.run(&["switch", DEPLOYMENT])?;
    assert!(!plain.err.contains("gates"), "{}", plain.err);
    let _ = fs::remove_dir_all(&state);
    fs::rename(&aside, &state)?;
    lab.apply(&[shell(DEPLOYMENT, "before", "true")])?;
    // An apply that was killed while it made the link has left this.
    std::os::unix::fs::symlink("/nowhere", lab.ready.lab.sandbox.pin_root().join("gates:new"))?;
    bgctl.run(&["detach", "--all"])?;
    assert!(!lab.ready.lab.sandbox.pin_root().exists(), "the link is removed, too");
    Ok(())
}

#[test]
fn an_apply_that_is_killed_while_it_keeps_the_gates_is_recorded() -> Result<()> {
    let lab = Gated::new()?;
    let fifo = lab.ready.lab.sandbox.state_dir().join("gates.toml");
    ensure!(Command::new("mkfifo").arg(&fifo).status()?.success());
    let config = shop(&lab.ready.lab, "nat", "") + "\n" + &shell(DEPLOYMENT, "before", "true");
    let path = lab.ready.bgctl.write_config(&config)?;
    let records = lab.history(DEPLOYMENT)?.len();
    let mut apply = lab.ready.bgctl.command(&["apply", "-c", &path]).stderr(Stdio::null()).spawn()?;
    let changes = lab.ready.lab.sandbox.pin_root().join("changes");
    let is_written = || {
        let mut entries = fs::read_dir(&changes).into_iter().flatten().flatten();
        entries.any(|entry| !entry.file_name().to_string_lossy().ends_with(":new"))
    };
    while !is_written() {
        ensure!(apply.try_wait()?.is_none(), "it has written no record before it was to change the gates");
    }
    apply.kill()?;
    apply.wait()?;
    fs::remove_file(&fifo)?;
    lab.ready.bgctl.apply(&config)?;
    let actions: Vec<_> = lab.history(DEPLOYMENT)?.into_iter().skip(records).collect();
    ensure!(actions.len() == 2 && actions.iter().all(|record| record["action"] == "apply"), "{actions:?}");
    Ok(())
}
