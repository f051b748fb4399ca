//! The real bgctl, on a lab's edge.

use crate::{command::output, netns::Namespace, sandbox::Sandbox};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

/// Runs bgctl in the edge's namespace, with the lab's pins and state directory.
#[derive(Clone, Debug)]
pub struct Bgctl {
    program: PathBuf,
    edge: Arc<Namespace>,
    pin_root: PathBuf,
    state_dir: PathBuf,
    config: PathBuf,
}

impl Bgctl {
    pub(crate) fn new(program: PathBuf, edge: &Arc<Namespace>, sandbox: &Sandbox) -> Self {
        Self {
            program,
            edge: edge.clone(),
            pin_root: sandbox.pin_root().to_owned(),
            state_dir: sandbox.state_dir(),
            config: sandbox.dir().join("bgctl.toml"),
        }
    }

    /// One for another instance beside this one, with pins, state and a configuration file of its own.
    pub fn another(&self, name: &str) -> Result<Self> {
        let dir = self.config.with_file_name(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (pin_root, state_dir) = (self.pin_root.join(name), dir.join("state"));
        Ok(Self { pin_root, state_dir, config: dir.join("bgctl.toml"), ..self.clone() })
    }

    /// The program itself.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The lab's configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// A bgctl command with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.edge.command(&self.program);
        command.arg("--pin-root").arg(&self.pin_root).arg("--state-dir").arg(&self.state_dir).args(arguments);
        command
    }

    /// The same by way of another program, whose words come first.
    pub fn command_by(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        let direct = self.command(arguments);
        let mut words = direct.get_args();
        let mut command = Command::new(direct.get_program());
        // nsenter's own arguments come first.
        command.args(words.by_ref().take(2)).args(wrapper).args(words);
        command
    }

    /// Runs it and returns its results. A failure is an error with its message.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Runs it and returns the output, whether it succeeds or fails.
    pub fn try_run(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().context("cannot run bgctl")
    }

    /// Runs it with `--json` and parses the result.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["--json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("bgctl {arguments:?} printed no JSON: {text}"))
    }

    /// The same, whether it succeeds or fails: its exit code too.
    pub fn try_json(&self, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
        let output = self.try_run(&[&["--json"], arguments].concat())?;
        let json = serde_json::from_slice(&output.stdout);
        Ok((output.status.code(), json.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?))
    }

    /// Applies a configuration.
    pub fn apply(&self, config: &str) -> Result<String> {
        self.run(&["apply", "-c", &self.write_config(config)?])
    }

    /// Writes a configuration to the lab's file and returns its path.
    pub fn write_config(&self, config: &str) -> Result<String> {
        fs::write(&self.config, config).with_context(|| format!("cannot write {}", self.config.display()))?;
        Ok(self.config.display().to_string())
    }

    /// The entry of a deployment in `status --json`.
    pub fn deployment(&self, name: &str) -> Result<Value> {
        let status = self.json(&["status"])?;
        let mut deployments = status["deployments"].as_array().into_iter().flatten();
        let found = deployments.find(|deployment| deployment["name"] == name);
        found.cloned().with_context(|| format!("no deployment {name} in {status}"))
    }

    /// The live colour of a deployment.
    pub fn live(&self, deployment: &str) -> Result<String> {
        let found = self.deployment(deployment)?;
        Ok(found["live"].as_str().with_context(|| format!("no live colour in {found}"))?.to_owned())
    }
}

/// The bgctl under test: `$BGCTL`, else the one in the target directory of the tests.
pub(crate) fn program_under_test() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BGCTL") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let beside = test.ancestors().skip(1).take(3).map(|dir| dir.join("bgctl")).find(|path| path.is_file());
    match beside {
        Some(path) => Ok(path),
        None => bail!(
            "no bgctl beside {}; build it (`cargo build -p bg-userspace`), or say in the variable BGCTL where it is",
            test.display()
        ),
    }
}
