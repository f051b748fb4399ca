//! The counts of a load.

use bg_common::Colour;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// The counts of a load so far. The load's clients write them.
#[derive(Debug, Default)]
pub struct Tally {
    answers: [AtomicU64; 2],
    failures: AtomicU64,
    resets: AtomicU64,
    cut: AtomicU64,
    strayed: AtomicU64,
    connections: [AtomicU64; 2],
    may_be_cut: AtomicBool,
    first_failures: Mutex<Vec<String>>,
}

/// A [`Tally`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of answered requests, by colour.
    pub answers: [u64; 2],
    /// The number of requests without a correct answer, including resets.
    pub failures: u64,
    /// The number of connections that were reset.
    pub resets: u64,
    /// The number of connections that ended early while a cut was expected to end them.
    pub cut: u64,
    /// The number of answers from another colour than the first one of their connection.
    pub strayed: u64,
    /// The number of open connections, by their first colour.
    pub connections: [u64; 2],
    /// Descriptions of the first failures.
    pub first_failures: Vec<String>,
}

impl Tally {
    const NAMED_FAILURES: usize = 10;

    /// The present counts.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            answers: self.answers.each_ref().map(read),
            failures: read(&self.failures),
            resets: read(&self.resets),
            cut: read(&self.cut),
            strayed: read(&self.strayed),
            connections: self.connections.each_ref().map(read),
            first_failures: self.first_failures.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Sets whether an open connection that ends early was cut on purpose, and so is not a failure.
    pub fn expect_cut(&self, expected: bool) {
        self.may_be_cut.store(expected, Ordering::SeqCst);
    }

    pub(super) fn answered(&self, colour: Colour) {
        self.answers[colour as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn strayed(&self) {
        self.strayed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connected(&self, colour: Colour) {
        self.connections[colour as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn disconnected(&self, colour: Colour) {
        self.connections[colour as usize].fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: &anyhow::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if is_reset(error) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
        let mut first = self.first_failures.lock().unwrap_or_else(PoisonError::into_inner);
        if first.len() < Self::NAMED_FAILURES {
            first.push(format!("{error:#}"));
        }
    }

    /// Counts a connection that ended early.
    pub(super) fn broke(&self, error: &anyhow::Error) {
        if self.may_be_cut.load(Ordering::SeqCst) {
            self.cut.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failed(error);
        }
    }
}

impl Counts {
    /// The number of all answers.
    pub fn total(&self) -> u64 {
        self.answers.iter().sum()
    }
}

fn is_reset(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, UnexpectedEof};
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|error| {
        matches!(error.kind(), ConnectionReset | BrokenPipe | ConnectionAborted | ConnectionRefused | UnexpectedEof)
    })
}
