//! Load with exact counts: every request ends as an answer from a colour or as a failure with a name.

mod arrivals;
mod connection;
mod http;
mod new_port;
mod paced;
mod tally;
mod udp;
mod wrk;

pub use arrivals::{Arrivals, Request};
pub use connection::Connection;
pub use http::{Fresh, KeepAlive};
pub use new_port::bind_new;
pub use paced::Paced;
pub use tally::{Counts, Tally};
pub use udp::{Answer, Echo};
pub use wrk::{Wrk, WrkReport};

use crate::worker::Worker;
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// How long a client waits before it counts a failure: much longer than a round trip, even on a busy machine, so that silence
/// means that a packet was lost.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A load that runs until its guard is dropped.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    worker: Worker,
}

impl Load {
    /// The counts so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Waits until there have been so many answers, or failures instead of them.
    pub fn wait_for(&self, requests: u64) -> anyhow::Result<()> {
        let start = Instant::now();
        let ended = |counts: &Counts| counts.total() + counts.failures;
        while ended(&self.tally.counts()) < requests {
            anyhow::ensure!(
                start.elapsed() < Duration::from_secs(30),
                "no {requests} answers: {:?}",
                self.tally.counts()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Stops after each client has finished its present request, and returns the counts.
    pub fn finish(self) -> anyhow::Result<Counts> {
        self.worker.stop()?;
        Ok(self.tally.counts())
    }
}
