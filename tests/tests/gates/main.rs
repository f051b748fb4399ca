//! Gates decide about switches: with real commands, nginx and Prometheus. A gate that hangs or crashes has failed, and a runner that is killed
//! leaves no deployment on a colour that nobody has confirmed.

mod api;
mod apply;
mod drill;
mod exec;
mod hangs;
mod http;
mod killed;
mod meanwhile;
mod prometheus;
mod together;
mod ungated;

use anyhow::{Context, Result};
use bg_tests::{
    Ready,
    config::{DEPLOYMENT, shop},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

/// Everything ends well before.
const PATIENCE: Duration = Duration::from_secs(20);

/// A lab whose deployments have gates.
struct Gated {
    ready: Ready,
}

/// What a command has said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
    took: Duration,
}

impl Gated {
    fn new() -> Result<Self> {
        Ok(Self { ready: Ready::native("")? })
    }

    /// Applies the lab's configuration with these gates.
    fn apply(&self, gates: &[String]) -> Result<()> {
        let config = shop(&self.ready.lab, "nat", "") + "\n" + &gates.concat();
        self.ready.bgctl.apply(&config).map(drop)
    }

    /// A directory for what gates write.
    fn dir(&self) -> &Path {
        self.ready.lab.sandbox.dir()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The lines of a file that gates have written, none if there is no file.
    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn run(&self, arguments: &[&str]) -> Result<Said> {
        let began = Instant::now();
        let output = self.ready.bgctl.try_run(arguments)?;
        Ok(Said::of(&output, began.elapsed()))
    }

    /// Live colour, generation and phase of a deployment.
    fn state(&self, deployment: &str) -> Result<(String, u64, String)> {
        let found = self.ready.bgctl.deployment(deployment)?;
        let text = |key: &str| found[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {found}"));
        let generation = found["generation"].as_u64().context("no generation")?;
        Ok((text("live")?, generation, text("phase")?))
    }

    /// The records of a deployment, the oldest first.
    fn history(&self, deployment: &str) -> Result<Vec<Value>> {
        let history = self.ready.bgctl.json(&["history", deployment])?;
        let records = history.as_array().or(history["records"].as_array()).context("no records")?;
        let mut records = records.clone();
        records.sort_by_key(|record| record["seq"].as_u64());
        Ok(records)
    }

    /// The last record of a deployment: action and reason.
    fn last_record(&self, deployment: &str) -> Result<(String, String)> {
        let records = self.history(deployment)?;
        let last = records.last().context("no record")?;
        let text = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
        Ok((text("action"), text("reason")))
    }

    /// Asserts that a switch was refused by a gate, and that this has changed nothing.
    #[track_caller]
    fn refused(&self, arguments: &[&str], says: &[&str]) {
        let before = self.state(DEPLOYMENT).unwrap();
        let said = self.run(&[&["switch", DEPLOYMENT], arguments].concat()).unwrap();
        assert_eq!(said.code, Some(3), "{}", said.err);
        says.iter().for_each(|part| assert!(said.err.contains(part), "no {part:?} in {}", said.err));
        let now = self.state(DEPLOYMENT).unwrap();
        assert_eq!((now.0, now.1), (before.0, before.1), "nothing was changed");
    }
}

impl Said {
    fn of(output: &Output, took: Duration) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr), took }
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {} {}", self.out, self.err))
    }
}

/// A gate of a deployment with these further lines.
fn gate(deployment: &str, when: &str, lines: &str) -> String {
    format!("[[deployments.{deployment}.gates]]\nwhen = \"{when}\"\n{lines}\n")
}

/// A gate that runs a line of shell, with a short timeout and interval.
fn shell(deployment: &str, when: &str, line: &str) -> String {
    let command = format!("kind = \"exec\"\ncommand = ['/bin/sh', '-c', '''{line}''']");
    gate(deployment, when, &format!("{command}\ntimeout = \"2s\"\ninterval = \"100ms\""))
}

/// Whether a process with this text in its command line runs.
fn is_running(text: &str) -> Result<bool> {
    for entry in fs::read_dir("/proc")? {
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(text) {
            return Ok(true);
        }
    }
    Ok(false)
}
