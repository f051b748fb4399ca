//! What is measured, and for how long.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Changes a minute, as in the simulations of Cheetah.
pub(super) const RATES: [f64; 6] = [1.56, 3.12, 7.8, 15.6, 31.2, 78.0];

/// The settings of a run. Results of different settings are not compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Connections that are open at a time.
    pub(super) connections: u32,
    /// The mean of their lives.
    pub(super) life: Duration,
    /// The time from an answer to the next request on a connection.
    pub(super) interval: Duration,
    /// The time after which an answer does not count.
    pub(super) patience: Duration,
    /// Changes a minute.
    pub(super) rates: Vec<f64>,
    /// The time for which a rate is measured. At a low rate, it is the time of one change.
    pub(super) window: Duration,
    /// Files that a process, or a table of files, may have open.
    pub(super) files: u32,
    pub(super) quick: bool,
}

/// The changes at one rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Schedule {
    pub(super) changes: u32,
    /// The time for one change. The change is made in its middle.
    pub(super) period: Duration,
}

impl Plan {
    pub(super) fn new(connections: u32, files: u32, quick: bool) -> Self {
        let seconds = Duration::from_secs;
        if quick {
            let (life, interval, patience, window) = (seconds(12), seconds(1), seconds(3), seconds(4));
            return Self { connections, life, interval, patience, rates: vec![78.0], window, files, quick };
        }
        let (life, interval, patience, window) = (seconds(60), seconds(5), seconds(5), seconds(10));
        Self { connections, life, interval, patience, rates: RATES.into(), window, files, quick }
    }

    /// The time in which the connections are opened.
    pub(super) fn ramp(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.connections) / 4000.0)
    }

    /// Connections that a thread may hold, with some files to spare.
    pub(super) fn of_thread(&self) -> u32 {
        self.files * 3 / 4
    }

    /// Connections that a proxy may have, each with one to a backend, in one process.
    pub(super) fn of_proxy(&self) -> u32 {
        self.connections.min(self.files * 2 / 5)
    }

    pub(super) fn schedule(&self, rate: f64) -> Schedule {
        let period = Duration::from_secs_f64(60.0 / rate);
        let changes = (self.window.as_secs_f64() / period.as_secs_f64()).round().max(1.0);
        Schedule { changes: changes as u32, period }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rate_gets_a_change_and_its_time() {
        let plan = Plan::new(70_000, 20_000, false);
        let changes = RATES.map(|rate| plan.schedule(rate).changes);
        assert_eq!(changes, [1, 1, 1, 3, 5, 13]);
        let all: Duration = RATES.iter().map(|rate| plan.schedule(*rate)).map(|it| it.period * it.changes).sum();
        assert!((90..110).contains(&all.as_secs()), "{all:?}");
    }
}
