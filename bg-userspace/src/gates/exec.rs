//! Gates that are commands.
//!
//! Each run has a thread of its own: starting a program takes as long as its file system, and whoever asks the gate must not wait for that.

use std::{
    ffi::OsString,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::failure::Failure;
use crate::runner::{self, Job, Outcome};

/// How many runs this process may have at a time. One whose file system does not respond stays.
const MOST: usize = 128;
/// How often it is asked whether the outcome still matters, and how long a run may take to notice that it does not, or that it is late.
const LOOK: Duration = Duration::from_millis(20);
const GRACE: Duration = Duration::from_millis(500);

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Runs a command, which passes if it exits with 0. At the deadline it is killed, with all that it has started.
pub(super) fn run(
    command: &[String],
    variables: &[(&'static str, OsString)],
    deadline: Instant,
    is_moot: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let place = Place::take().ok_or_else(|| Some(format!("{MOST} commands have neither begun nor ended yet")))?;
    let (is_over, (tell, told)) = (Arc::new(AtomicBool::new(false)), channel());
    let (command, variables, over) = (command.to_vec(), variables.to_vec(), is_over.clone());
    let work = move || {
        let job = Job { command: &command, variables: &variables, deadline, hears_stdout: true, kills_rest: false };
        let outcome = runner::run(&job, &|| over.load(Ordering::Relaxed));
        drop(place);
        // Nobody may be there to hear it.
        let _ = tell.send(outcome);
    };
    let thread = thread::Builder::new().name("gate".to_owned()).spawn(work);
    thread.map_err(|error| Some(format!("it cannot be run: {error}")))?;
    let mut given_up = None;
    let outcome = loop {
        match told.recv_timeout(LOOK) {
            Ok(outcome) => break outcome,
            Err(RecvTimeoutError::Disconnected) => break Outcome::Lost,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        if given_up.is_none() && is_moot() {
            is_over.store(true, Ordering::Relaxed);
            given_up = Some(now);
        }
        let until = given_up.unwrap_or(deadline) + GRACE;
        if now >= until {
            is_over.store(true, Ordering::Relaxed);
            break if given_up.is_some() { Outcome::Moot } else { Outcome::Late(String::new()) };
        }
    };
    Err(match outcome {
        Outcome::Ended(status, _) if status.success() => return Ok(()),
        Outcome::Ended(status, said) => Some(format!("{status}{said}")),
        Outcome::Late(said) if said.is_empty() => None,
        Outcome::Late(said) => Some(format!("it had not ended in time, and was killed{said}")),
        Outcome::Moot => Some("it was killed, since the switch had been decided elsewhere".to_owned()),
        Outcome::NotRun(error) => Some(format!("it cannot be run: {error}")),
        Outcome::Lost => Some("its end could not be waited for".to_owned()),
    })
}

/// One of the runs that may be.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let place = Self;
        (RUNNING.fetch_add(1, Ordering::Relaxed) < MOST).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}
