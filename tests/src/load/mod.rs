//! Load with exact counts: every request ends as an answer from a colour or as a failure with a name.

mod http;
mod paced;
mod tally;
mod udp;
mod wrk;

pub use http::{Fresh, KeepAlive};
pub use paced::Paced;
pub use tally::{Counts, Tally};
pub use udp::{Answer, Echo};
pub use wrk::{Wrk, WrkReport};

use crate::worker::Worker;
use std::{sync::Arc, time::Duration};

/// How long a client waits before it counts a failure.
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

    /// Stops after each client has finished its present request, and returns the counts.
    pub fn finish(self) -> anyhow::Result<Counts> {
        self.worker.stop()?;
        Ok(self.tally.counts())
    }
}
