//! A client's connection to a backend: bytes in both directions, each closed on its own, and broken off together.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until};

use super::{
    copy::{Ending, Sum, Tap},
    stream::End,
};

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both ends have said all.
    Complete,
    /// One end has reset it.
    Reset,
    /// Nothing came for too long.
    Idle,
    /// It may no longer be where it is.
    Forbidden,
}

/// What a connection is to keep to.
pub(super) struct Rules<'a> {
    pub(super) idle_timeout: Duration,
    /// Whether the answers are summed up, to be compared.
    pub(super) compare: bool,
    /// Asked before bytes go to the backend.
    pub(super) may_go_on: &'a (dyn Fn() -> bool + Sync),
}

/// Why a direction has stopped.
enum Stopped {
    /// No more bytes.
    Finished,
    /// Its source is gone, or may not send.
    Source(Ended),
    /// Its sink takes no more.
    Sink,
}

/// Relays until both directions have ended or one is broken off.
pub(super) async fn relay(client: End, backend: End, mut tap: Tap, rules: &Rules<'_>) -> Ended {
    let activity = Activity::new();
    let mut sum = rules.compare.then(Sha256::new);
    let ended = both(&client, &backend, &mut tap, sum.as_mut(), &activity, rules).await;
    let is_complete = ended == Ended::Complete;
    let answers = sum.filter(|_| is_complete).map(|sum| Sum::from(sum.finalize()));
    tap.end(Ending { is_complete, heard: activity.heard(), answers });
    if is_complete {
        client.close();
        backend.close();
    }
    ended
}

async fn both(
    client: &End,
    backend: &End,
    tap: &mut Tap,
    sum: Option<&mut Sha256>,
    activity: &Activity,
    rules: &Rules<'_>,
) -> Ended {
    let forward = forward(client, backend, tap, activity, rules);
    let backward = backward(backend, client, sum, activity);
    let idle = activity.silence(rules.idle_timeout);
    tokio::pin!(forward, backward, idle);
    let (mut sends, mut answers, mut is_broken) = (true, true, false);
    while sends || answers {
        tokio::select! {
            stopped = &mut forward, if sends => match stopped {
                Stopped::Finished => sends = false,
                Stopped::Source(ended) => return ended,
                // The backend has closed: what it has said before still goes to the client.
                Stopped::Sink => (sends, is_broken) = (false, true),
            },
            stopped = &mut backward, if answers => match stopped {
                Stopped::Finished if !is_broken => answers = false,
                _ => return Ended::Reset,
            },
            () = &mut idle => return Ended::Idle,
        }
    }
    Ended::Complete
}

/// From the client to the backend and to the copy, which gets the bytes first, since it waits for nothing.
async fn forward(client: &End, backend: &End, tap: &mut Tap, activity: &Activity, rules: &Rules<'_>) -> Stopped {
    loop {
        let taken = client.read(|bytes| {
            if !(rules.may_go_on)() {
                return None;
            }
            tap.push(bytes);
            Some(backend.write_now(bytes).map(<[u8]>::to_vec))
        });
        match pass(taken.await, backend, activity).await {
            None => {}
            Some(stopped) => {
                if matches!(stopped, Stopped::Finished) {
                    tap.finish(activity.heard());
                }
                return stopped;
            }
        }
    }
}

async fn backward(backend: &End, client: &End, mut sum: Option<&mut Sha256>, activity: &Activity) -> Stopped {
    loop {
        let taken = backend.read(|bytes| {
            activity.hears(bytes.len());
            if let Some(sum) = &mut sum {
                sum.update(bytes);
            }
            Some(client.write_now(bytes).map(<[u8]>::to_vec))
        });
        if let Some(stopped) = pass(taken.await, client, activity).await {
            return stopped;
        }
    }
}

/// What was read: nothing more, something that may not go on, or what the sink has not taken at once.
type Taken = io::Result<Option<Option<io::Result<Vec<u8>>>>>;

/// Writes the rest. Returns why the direction stops, if it does.
async fn pass(taken: Taken, sink: &End, activity: &Activity) -> Option<Stopped> {
    activity.note();
    let rest = match taken {
        Err(_) => return Some(Stopped::Source(Ended::Reset)),
        Ok(None) => {
            sink.finish();
            return Some(Stopped::Finished);
        }
        Ok(Some(None)) => return Some(Stopped::Source(Ended::Forbidden)),
        Ok(Some(Some(rest))) => rest,
    };
    let written = match rest {
        Ok(rest) if rest.is_empty() => return None,
        Ok(rest) => sink.write(&rest).await,
        Err(error) => Err(error),
    };
    activity.note();
    written.err().map(|_| Stopped::Sink)
}

/// When something was last read or written, and how much the backend has said.
struct Activity {
    heard: AtomicU64,
    start: Instant,
    /// Milliseconds since the start.
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), heard: AtomicU64::new(0) }
    }

    fn hears(&self, bytes: usize) {
        self.heard.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn note(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns once nothing has been read or written for so long. Wakes up about once in this time.
    async fn silence(&self, longest: Duration) {
        loop {
            let end = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + longest;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}
