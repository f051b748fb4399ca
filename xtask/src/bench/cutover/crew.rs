//! Threads that hold many connections. The kernel limits the open files of a table of files, and a process may lack the privilege to
//! raise that limit. So each thread has a table of its own.

use anyhow::{Context, Result, anyhow};
use bg_tests::Namespace;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::runtime::Runtime;

/// The most open files that are ever needed in a table.
const FILES: u64 = 1 << 20;

/// Lets a table have as many open files as possible, for this process and those that it starts. Returns how many.
pub(super) fn allow_files() -> Result<u32> {
    let raised = Rlimit { current: Some(FILES), maximum: Some(FILES) };
    if setrlimit(Resource::Nofile, raised).is_err() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("cannot allow more open files")?;
    }
    Ok(getrlimit(Resource::Nofile).current.unwrap_or(FILES).min(FILES) as u32)
}

/// Threads in a namespace. Dropping the guard ends them and closes their files.
pub(super) struct Crew {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts so many threads. Each calls `start` with its number in a runtime, in which the tasks that it spawns live. Returns when all have.
    pub(super) fn start<F>(namespace: &Namespace, threads: u32, start: F) -> Result<Self>
    where
        F: Fn(u32) -> Result<()> + Clone + Send + 'static,
    {
        // The first runtime of the process opens a pipe for signals that all use. Each table is to have it.
        drop(runtime()?);
        let mut crew = Self { stop: Arc::default(), threads: Vec::new() };
        for number in 0..threads {
            let (stop, start, (started, is_started)) = (crew.stop.clone(), start.clone(), mpsc::channel());
            let work = move || {
                let runtime = own_files().and_then(|()| runtime());
                let _ = match runtime {
                    Ok(runtime) => runtime.block_on(run(start, number, &started, &stop)),
                    Err(error) => started.send(Err(error)),
                };
            };
            // A thread begins in the namespace of the one that starts it.
            let thread = namespace.enter(|| thread::Builder::new().spawn(work))?.context("cannot start a thread")?;
            crew.threads.push(thread);
            // It may not copy files that this thread opens for a moment, like the pipe to a command: they would stay open.
            is_started.recv().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(crew)
    }
}

/// Nobody wakes this runtime from another thread, whose table of files does not have its files.
async fn run(
    start: impl Fn(u32) -> Result<()>,
    number: u32,
    started: &mpsc::Sender<Result<()>>,
    stop: &AtomicBool,
) -> Result<(), mpsc::SendError<Result<()>>> {
    started.send(start(number))?;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Gives the calling thread a table of files of its own.
fn own_files() -> Result<()> {
    // SAFETY: files that were opened before are in both tables under the same number, and each table closes its own.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.context("cannot have a table of files")
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("warning: a thread of the load panicked");
            }
        }
    }
}
