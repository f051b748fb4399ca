//! The real `bgctl serve`, on a lab's edge.

use crate::{bgctl::Bgctl, command::Process};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A running controller. Dropping the guard ends it.
#[derive(Debug)]
pub struct Controller {
    process: Process,
    log: PathBuf,
}

impl Controller {
    /// Starts `bgctl serve` with the lab's configuration, and returns once it says that it is ready.
    pub fn start(bgctl: &Bgctl) -> Result<Self> {
        let config = bgctl.config().to_owned();
        Self::start_with(bgctl, &["-c", &config.display().to_string()])
    }

    /// The same with these arguments.
    pub fn start_with(bgctl: &Bgctl, arguments: &[&str]) -> Result<Self> {
        let mut controller = Self::launch(bgctl, arguments)?;
        controller.wait_for("the controller is ready")?;
        Ok(controller)
    }

    /// Starts it and does not wait.
    pub fn launch(bgctl: &Bgctl, arguments: &[&str]) -> Result<Self> {
        Self::launch_by(bgctl, &[], arguments)
    }

    /// The same by way of another program, whose words are `wrapper`.
    pub fn launch_by(bgctl: &Bgctl, wrapper: &[&str], arguments: &[&str]) -> Result<Self> {
        let log = bgctl.config().with_file_name("serve.log");
        let mut command = bgctl.command_by(wrapper, &[&["serve", "--log-format", "json"], arguments].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        Ok(Self { process: Process::spawn(&mut command)?, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has said since it was started.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// Waits until its log has this text, for ten seconds at most.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while !self.log()?.contains(text) {
            if let Some(status) = self.process.wait(Duration::ZERO)? {
                bail!("bgctl serve has ended ({status}) before it said \"{text}\": {}", self.log()?);
            }
            if Instant::now() > end {
                bail!("bgctl serve has not said \"{text}\" in ten seconds: {}", self.log()?);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        self.process.wait(patience)
    }

    /// Has it read its configuration again.
    pub fn reload(&mut self) -> Result<()> {
        let before = self.log()?.matches("configuration was").count();
        self.signal(libc::SIGHUP)?;
        let end = Instant::now() + Duration::from_secs(10);
        while self.log()?.matches("configuration was").count() == before {
            if Instant::now() > end {
                bail!("bgctl serve has not read its configuration again in ten seconds: {}", self.log()?);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        // SAFETY: `kill` takes no pointers. The child has not been waited for, so its id is still its own.
        match unsafe { libc::kill(self.id().cast_signed(), signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("cannot signal bgctl serve"),
        }
    }

    /// Ends it by a signal and returns how it has ended.
    pub fn end(mut self, signal: i32) -> Result<ExitStatus> {
        self.signal(signal)?;
        let ended = self.wait(Duration::from_secs(10))?;
        ended.with_context(|| format!("bgctl serve runs on ten seconds after signal {signal}"))
    }
}
