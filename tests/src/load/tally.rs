//! The account of a load.

use bg_common::Colour;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// What a load has met so far; it is written by the load's clients.
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
    /// Answered requests, by colour.
    pub answers: [u64; 2],
    /// Requests without a right answer, resets among them.
    pub failures: u64,
    /// Connections that were reset.
    pub resets: u64,
    /// Connections that ended early while a cut was expected to end them.
    pub cut: u64,
    /// Answers of another colour than the one their connection began with.
    pub strayed: u64,
    /// Connections open now, by the colour that they began with.
    pub connections: [u64; 2],
    /// What the first failures were.
    pub first_failures: Vec<String>,
}

impl Tally {
    const NAMED_FAILURES: usize = 10;

    /// The account as it stands.
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

    /// From now on, or no longer: an open connection that ends early was cut on purpose and is no failure.
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

    /// A connection that may have worked before ended early.
    pub(super) fn broke(&self, error: &anyhow::Error) {
        if self.may_be_cut.load(Ordering::SeqCst) {
            self.cut.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failed(error);
        }
    }
}

impl Counts {
    /// All answers.
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
