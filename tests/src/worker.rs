//! A thread in a namespace that runs asynchronous work until it is told to stop.

use crate::netns::Namespace;
use anyhow::{Context, Result, anyhow};
use std::{
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::watch;

/// Tells the work of a [`Worker`] when to stop.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Whether it is time.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is time, or when the worker's guard is gone.
    pub async fn wait(&mut self) {
        // An error is a guard that is gone: as good a reason to stop.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// The guard of the thread. Dropping it stops the work and waits for it.
#[derive(Debug)]
pub struct Worker {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Worker {
    /// Starts `work` on a thread in the namespace. Returns when the thread is there.
    pub fn spawn<F>(namespace: &Namespace, work: impl FnOnce(Stop) -> F + Send + 'static) -> Result<Self>
    where
        F: Future<Output = Result<()>>,
    {
        let (stop, stopped) = watch::channel(false);
        let thread = namespace.enter(|| {
            // A thread begins in the namespace of the one that starts it.
            thread::Builder::new().spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let result = runtime.block_on(work(Stop(stopped)));
                runtime.shutdown_timeout(Duration::from_millis(100));
                result
            })
        })?;
        Ok(Self { stop, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// Stops the work and returns its result.
    pub fn stop(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.stop.send_replace(true);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("a worker panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("warning: a worker ended badly: {error:#}");
        }
    }
}
