//! Gates that are commands.

use std::{ffi::OsString, time::Instant};

use super::failure::Failure;
use crate::runner::{self, Job, Outcome};

/// Runs a command, which passes if it exits with 0. At the deadline it is killed, with all that it has started.
pub(super) fn run(
    command: &[String],
    variables: &[(&'static str, OsString)],
    deadline: Instant,
    is_moot: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let job = Job { command, variables, deadline, hears_stdout: true, kills_rest: false };
    Err(match runner::run(&job, is_moot) {
        Outcome::Ended(status, _) if status.success() => return Ok(()),
        Outcome::Ended(status, said) => Some(format!("{status}{said}")),
        Outcome::Late(said) if said.is_empty() => None,
        Outcome::Late(said) => Some(format!("it had not ended in time, and was killed{said}")),
        Outcome::Moot => Some("it was killed, since the switch had been decided elsewhere".to_owned()),
        Outcome::NotRun(error) => Some(format!("it cannot be run: {error}")),
        Outcome::Lost => Some("its end could not be waited for".to_owned()),
    })
}
