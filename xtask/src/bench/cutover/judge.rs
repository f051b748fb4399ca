//! Judging what connections saw: whether one broke, and what a change of the balancer did to new ones.

use serde::{Deserialize, Serialize};
use std::{io, net::Ipv4Addr};

/// How an open connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// It was reset or closed, or its answer was not one to its request.
    Ended,
    /// Another backend answered than the one on which it began.
    Strayed,
    /// No answer came in time.
    Silent,
}

/// The judgement of a request on a connection that began on backend `own`. The outcome is the address of the backend that
/// answered, or an error, or `None` if neither came in time.
pub(super) fn judge(own: Ipv4Addr, outcome: Option<&io::Result<Ipv4Addr>>) -> Option<Break> {
    match outcome {
        Some(Ok(backend)) if *backend == own => None,
        Some(Ok(_)) => Some(Break::Strayed),
        Some(Err(_)) => Some(Break::Ended),
        None => Some(Break::Silent),
    }
}

/// A connection that was opened and got a first answer. Times are of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) begun_ns: u64,
    pub(super) answered_ns: u64,
    pub(super) backend: Ipv4Addr,
}

/// A change by a command.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Before the command was started.
    pub(super) issued_ns: u64,
    /// After it had ended.
    pub(super) returned_ns: u64,
    /// Backends that got new connections before, and are to get none.
    pub(super) old: Vec<Ipv4Addr>,
    /// Backends that got none before, and are to get some.
    pub(super) new: Vec<Ipv4Addr>,
}

/// What one change did to new connections. Times are milliseconds since the command was started.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Instants {
    pub(super) command: f64,
    /// The first answer from a new backend.
    pub(super) first_new: Option<f64>,
    /// The beginning of the last connection that went to an old backend.
    pub(super) last_old: Option<f64>,
    /// Connections that began after the command had returned, and went to an old backend.
    pub(super) late: u64,
    /// The longest time between two answers on any connections, from the command's start to half a second after its end.
    pub(super) pause: Option<f64>,
}

/// How long after a command pauses count as its doing.
const AFTERMATH_NS: u64 = 500_000_000;

impl Instants {
    /// Judges a change. `until_ns` is when the next one was started. `answers` are the instants of all answers, in order.
    pub(super) fn of(change: &Change, until_ns: u64, opened: &[Opened], answers: &[u64]) -> Self {
        let Change { issued_ns, returned_ns, old, new } = change;
        let since = |ns: u64| (ns as f64 - *issued_ns as f64) / 1e6;
        // What is answered later may have been sent again, and decided anew, after the next change.
        let of = |backends: &'_ [Ipv4Addr]| {
            let in_time = opened.iter().filter(|one| one.answered_ns < until_ns);
            in_time.copied().filter(|one| backends.contains(&one.backend)).collect::<Vec<_>>()
        };
        let (on_old, on_new) = (of(old), of(new));
        let first_new = on_new.iter().map(|one| one.answered_ns).filter(|at| at >= issued_ns).min();
        let until = until_ns.min(returned_ns + AFTERMATH_NS);
        let near = answers.iter().skip_while(|at| **at < *issued_ns).take_while(|at| **at <= until);
        let near: Vec<u64> = near.copied().collect();
        Self {
            command: since(*returned_ns),
            first_new: first_new.map(since),
            last_old: on_old.iter().map(|one| one.begun_ns).max().map(since),
            late: on_old.iter().filter(|one| one.begun_ns > *returned_ns).count() as u64,
            pause: near.windows(2).map(|two| (two[1] - two[0]) as f64 / 1e6).max_by(f64::total_cmp),
        }
    }
}

/// Quantiles of a time, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Quantiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Quantiles {
    /// Of times in microseconds. All are zero for none.
    pub(super) fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let Some(last) = micros.len().checked_sub(1) else { return Self::default() };
        let at = |share: f64| f64::from(micros[(last as f64 * share).ceil() as usize]) / 1000.0;
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// The share of connections that broke, in percent: of all that ended in the time, how many ended by breaking. Each
/// connection counts once, and over its whole life.
pub(super) fn broken_share(broken: u64, ended_well: u64) -> f64 {
    100.0 * broken as f64 / (broken + ended_well).max(1) as f64
}

/// If none of `count` connections broke, then less than this share of all would, in percent, with a confidence of 95 %.
pub(super) fn bound_of_none(count: u64) -> f64 {
    300.0 / count.max(3) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLUE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
    const GREEN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 11);
    const MS: u64 = 1_000_000;

    #[test]
    fn only_an_answer_from_the_same_backend_in_time_is_none_that_broke() {
        assert_eq!(judge(BLUE, Some(&Ok(BLUE))), None);
        assert_eq!(judge(BLUE, Some(&Ok(GREEN))), Some(Break::Strayed));
        assert_eq!(judge(BLUE, Some(&Err(io::ErrorKind::ConnectionReset.into()))), Some(Break::Ended));
        assert_eq!(judge(BLUE, None), Some(Break::Silent));
    }

    fn opened(begun: u64, answered: u64, backend: Ipv4Addr) -> Opened {
        Opened { begun_ns: begun * MS, answered_ns: answered * MS, backend }
    }

    #[test]
    fn a_change_is_judged_by_connections_until_the_next_one() {
        let change = Change { issued_ns: 100 * MS, returned_ns: 110 * MS, old: vec![BLUE], new: vec![GREEN] };
        let seen = [
            opened(90, 91, GREEN),
            opened(98, 104, BLUE),
            opened(103, 107, GREEN),
            opened(105, 106, BLUE),
            opened(112, 113, BLUE),
            opened(114, 115, GREEN),
            opened(120, 202, BLUE),
            opened(201, 202, BLUE),
        ];
        let instants = Instants::of(&change, 200 * MS, &seen, &[50, 101, 103, 110, 111, 112].map(|ms| ms * MS));
        let expected =
            Instants { command: 10.0, first_new: Some(7.0), last_old: Some(12.0), late: 1, pause: Some(7.0) };
        assert_eq!(instants, expected);
        let in_time = Instants::of(&change, 200 * MS, &seen[..4], &[]);
        assert_eq!((in_time.last_old, in_time.late, in_time.pause), (Some(5.0), 0, None));
    }

    #[test]
    fn a_backend_that_returns_takes_no_connection_from_another() {
        let change = Change { issued_ns: 0, returned_ns: MS, old: vec![], new: vec![GREEN] };
        let instants = Instants::of(&change, 9 * MS, &[opened(2, 3, BLUE), opened(4, 5, GREEN)], &[]);
        assert_eq!((instants.first_new, instants.last_old, instants.late), (Some(5.0), None, 0));
    }

    #[test]
    fn quantiles_are_of_the_sample() {
        let quantiles = Quantiles::of((1..=1000).rev().map(|number| number * 1000).collect());
        assert_eq!(quantiles, Quantiles { p50: 501.0, p99: 991.0, max: 1000.0 });
        assert_eq!(Quantiles::of(vec![]), Quantiles::default());
    }

    #[test]
    fn a_share_counts_each_connection_once() {
        assert_eq!(broken_share(0, 500), 0.0);
        assert_eq!(broken_share(1, 3), 25.0);
        assert_eq!(broken_share(0, 0), 0.0);
        assert_eq!(bound_of_none(30_000), 0.01);
    }
}
