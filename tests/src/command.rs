//! Running other programs: to their end, or as a child that a guard ends.

use anyhow::{Context, Result, bail};
use std::{
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

/// Runs a command to its end and returns its standard output. An error has its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}`: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command line to its end. Its words contain neither spaces nor quotes.
pub fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    output(Command::new(program).args(words))
}

/// A child process that does not outlive its guard. It gets SIGTERM, and is killed after two
/// seconds.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    const PATIENCE: Duration = Duration::from_secs(2);

    /// Starts the command.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Self { child: command.spawn().with_context(|| format!("cannot run `{name}`"))? })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for its end, at most for this long.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + patience;
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None if Instant::now() >= end => return Ok(None),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // SAFETY: `kill` takes no pointers. The child has not been waited for, so its id is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        if !matches!(self.wait(Self::PATIENCE), Ok(Some(_))) {
            // Both errors mean that it has ended meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
