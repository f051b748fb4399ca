//! Running an operator's command, until a deadline.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// Why a command was of no avail.
#[derive(Debug)]
pub(super) enum HookError {
    /// It could not be run.
    NotRun(io::Error),
    /// It has failed.
    Failed(ExitStatus),
    /// It had not ended at the deadline. It was killed.
    TimedOut,
}

/// Runs a command line by the shell, with these variables. What it prints goes to stderr, since stdout is for results.
pub(super) fn run(line: &str, variables: &[(&str, String)], deadline: Instant) -> Result<(), HookError> {
    const LOOK: Duration = Duration::from_millis(2);
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).envs(variables.iter().map(|(name, value)| (name, value)));
    // A group of its own, so that what it has started is killed with it.
    command.stdin(Stdio::null()).stdout(io::stderr()).process_group(0);
    let mut child = command.spawn().map_err(HookError::NotRun)?;
    loop {
        match child.try_wait().map_err(HookError::NotRun)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(HookError::Failed(status)),
            None if Instant::now() >= deadline => {
                kill(&mut child);
                return Err(HookError::TimedOut);
            }
            None => std::thread::sleep(LOOK),
        }
    }
}

fn kill(child: &mut Child) {
    // It has not been waited for, so its id is still its own, and that of its group.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_command_gets_its_variables_and_says_how_it_has_ended() {
        let variables = [("BGCTL_TO", "green".to_owned())];
        assert!(run("test \"$BGCTL_TO\" = green", &variables, soon()).is_ok());
        assert!(matches!(run("exit 7", &[], soon()), Err(HookError::Failed(status)) if status.code() == Some(7)));
    }

    #[test]
    fn what_does_not_end_is_killed_with_all_that_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let late = dir.path().join("late");
        let line = format!("(sleep 1; touch {0}) & sleep 100; touch {0}", late.display());
        let outcome = run(&line, &[], Instant::now() + Duration::from_millis(100));
        assert!(matches!(outcome, Err(HookError::TimedOut)), "{outcome:?}");
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!late.exists());
    }
}
