//! Load with exact accounts: every request ends as an answer of a colour or as a failure that is named.

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

/// How long a client waits for anything before it calls it a failure.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A load that runs until its guard is dropped.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    worker: Worker,
}

impl Load {
    /// The account so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Stops once each client has finished what it is at, and returns the account.
    pub fn finish(self) -> anyhow::Result<Counts> {
        self.worker.stop()?;
        Ok(self.tally.counts())
    }
}
