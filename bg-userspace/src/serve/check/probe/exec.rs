//! Whether a command exits with 0.
//!
//! Each run has a thread of its own: starting a program takes as long as its file system, and no thread of the runtime may wait for that.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::why::Why;
use crate::{
    runner::{self, Job, Outcome},
    serve::board::BackendKey,
};

/// How many runs for a backend there may be. One that cannot be started or killed stays.
const MOST: usize = 2;
const STACK: usize = 256 * 1024;

/// The command, and how many runs of it there are.
#[derive(Debug)]
pub(super) struct Request {
    command: Vec<String>,
    timeout: Duration,
    running: Arc<AtomicUsize>,
}

impl Request {
    pub(super) fn new(command: &[String], timeout: Duration) -> Self {
        Self { command: command.to_owned(), timeout, running: Arc::default() }
    }

    /// Runs the command in a process group of its own, which is killed at its end, or if this does not wait for it.
    pub(super) async fn check(&self, key: &BackendKey, to: SocketAddr) -> Result<(), Why> {
        let program = self.command.first().cloned().unwrap_or_default();
        let Some(place) = Place::take(&self.running) else {
            return Err(Why::new(format_args!("{program}: {MOST} earlier runs have neither begun nor ended yet")));
        };
        let variables = [
            ("BGCTL_DEPLOYMENT", key.deployment.clone().into()),
            ("BGCTL_SERVICE", key.service.clone().into()),
            ("BGCTL_COLOUR", key.colour.name().into()),
            ("BGCTL_BACKEND", key.address.to_string().into()),
            ("BGCTL_ADDRESS", to.ip().to_string().into()),
            ("BGCTL_PORT", to.port().to_string().into()),
        ];
        let (command, deadline) = (self.command.clone(), Instant::now() + self.timeout);
        let (tell, told) = oneshot::channel();
        let work = move || {
            let job = Job { command: &command, variables: &variables, deadline, hears_stdout: false, kills_rest: true };
            let outcome = runner::run(&job, &|| tell.is_closed());
            drop(place);
            let _ = tell.send(outcome);
        };
        let thread = thread::Builder::new().name("check".to_owned()).stack_size(STACK).spawn(work);
        thread.map_err(|error| Why::of(format_args!("cannot run {program}"), &error))?;
        match told.await.unwrap_or(Outcome::Lost) {
            Outcome::Ended(status, _) if status.success() => Ok(()),
            Outcome::Ended(status, said) => Err(Why::new(format_args!("{program}: {status}{said}"))),
            Outcome::NotRun(error) => Err(Why::of(format_args!("cannot run {program}"), &error)),
            Outcome::Late(said) => {
                Err(Why::new(format_args!("{program}: it has not ended within {:?}{said}", self.timeout)))
            }
            Outcome::Moot | Outcome::Lost => Err(Why::new(format_args!("cannot wait for {program}"))),
        }
    }
}

/// One of the runs that may be.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(running: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(running.clone());
        (running.fetch_add(1, Ordering::Relaxed) < MOST).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;

    fn key() -> BackendKey {
        BackendKey {
            deployment: "shop".to_owned(),
            service: "web".to_owned(),
            colour: Colour::Green,
            address: "[2001:db8::1]:80".parse().unwrap(),
        }
    }

    fn request(script: &str) -> Request {
        Request::new(&["sh", "-c", script].map(str::to_owned), Duration::from_secs(20))
    }

    async fn run(script: &str) -> Result<(), Why> {
        let key = key();
        let to = SocketAddr::new(key.address.ip(), 8080);
        request(script).check(&key, to).await
    }

    #[tokio::test]
    async fn the_exit_code_decides_and_its_words_say_why() {
        assert_eq!(run("exit 0").await, Ok(()));
        assert_eq!(run("echo no database >&2; exit 3").await, Err(Why::new("sh: exit status: 3: no database")));
        let talks = "head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero; exit 1";
        assert!(run(talks).await.is_err());
        let missing = Request::new(&["/nonexistent".to_owned()], Duration::from_secs(1));
        let missing = missing.check(&key(), key().address).await;
        assert!(missing.unwrap_err().to_string().starts_with("cannot run /nonexistent"));
    }

    #[tokio::test]
    async fn it_is_told_which_backend_to_check() {
        let script = r#"[ "$BGCTL_DEPLOYMENT $BGCTL_SERVICE $BGCTL_COLOUR $BGCTL_BACKEND $BGCTL_ADDRESS $BGCTL_PORT" = \
            "shop web green [2001:db8::1]:80 2001:db8::1 8080" ]"#;
        assert_eq!(run(script).await, Ok(()));
    }

    #[tokio::test]
    async fn its_whole_process_group_is_killed_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("alive");
        let script = format!("(while :; do echo x >> {0}; sleep 0.01; done) & sleep 60", file.display());
        let ran = tokio::time::timeout(Duration::from_millis(300), run(&script)).await;
        assert!(ran.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let size = || std::fs::metadata(&file).unwrap().len();
        let before = size();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(before > 0 && size() == before, "what it has started goes on");
    }

    #[tokio::test]
    async fn a_child_that_stays_does_not_hold_it_up() {
        let begin = std::time::Instant::now();
        assert_eq!(run("sleep 5 & exit 0").await, Ok(()));
        assert!(begin.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn what_it_leaves_is_killed_after_its_end_too() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        assert_eq!(run(&format!("sleep 60 & echo $! > {}", pid.display())).await, Ok(()));
        let pid = std::fs::read_to_string(pid).unwrap();
        let is_alive = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
            status.contains("sleep") && !status.contains("State:\tZ")
        };
        for _ in 0..100 {
            if !is_alive() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("its child goes on");
    }

    #[tokio::test]
    async fn runs_that_do_not_end_are_not_joined_by_more_without_end() {
        let request = request("exit 0");
        for _ in 0..MOST {
            let place = Place::take(&request.running).unwrap();
            // Nobody gives it back.
            std::mem::forget(place);
        }
        let why = request.check(&key(), key().address).await.unwrap_err().to_string();
        assert!(why.contains("2 earlier runs"), "{why}");
        assert_eq!(request.running.load(Ordering::Relaxed), MOST, "one that was refused takes no place");
    }
}
