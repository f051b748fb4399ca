//! The copy of a connection for the other colour: what the client sends, and nothing that anybody waits for.
//!
//! The connection puts what it reads into a queue. A task of its own connects to a backend, empties the queue, and reads and drops the answers. If the queue is full, no
//! backend accepts, or the backend ends the connection, the copy ends and is counted. A copy never begins in the middle.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{
    counts::{Count, Counts},
    open::{Open, Task},
    pool::Pool,
    room::Place,
    stream::End,
};

/// How many bytes may wait for the backend of a copy.
pub(super) const QUEUE: usize = 4 << 20;
/// How many bytes may wait in all copies together.
pub(super) const QUEUES: usize = 256 << 20;
/// How long a backend may take to accept.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a backend may take for the rest, and to end the connection, once the client's connection has ended.
const LINGER: Duration = Duration::from_secs(10);

/// How long a backend may be silent while the client's last word waits for its answers.
const QUIET: Duration = Duration::from_secs(1);

/// What all bytes of one direction come to.
pub(super) type Sum = [u8; 32];

enum Item {
    Bytes(Arc<[u8]>),
    /// The client sends no more. It has heard so many bytes before.
    Fin {
        heard: u64,
    },
    /// The client's connection has ended.
    End(Ending),
}

/// How a client's connection has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    /// Both ends have said all.
    pub(super) is_complete: bool,
    /// How many bytes the client has heard.
    pub(super) heard: u64,
    /// The sum of these, if they are all and answers are compared.
    pub(super) answers: Option<Sum>,
}

/// The connection's end of its copy.
#[derive(Debug)]
pub(super) struct Tap(Option<Queue>);

#[derive(Debug)]
struct Queue {
    sender: mpsc::UnboundedSender<Item>,
    waiting: Arc<Waiting>,
    task: AbortHandle,
    counts: Arc<Counts>,
}

/// What a copy needs.
pub(super) struct Plan {
    pub(super) pool: Arc<Pool>,
    /// What is sent before the client's bytes.
    pub(super) header: Vec<u8>,
    pub(super) compare: bool,
    pub(super) counts: Arc<Counts>,
    pub(super) place: Place,
    /// The bytes that wait in all copies.
    pub(super) in_all: Arc<AtomicUsize>,
}

/// Bytes that wait for a backend.
#[derive(Debug)]
struct Waiting {
    here: AtomicUsize,
    in_all: Arc<AtomicUsize>,
}

impl Waiting {
    /// `false`: there is no room for so many more.
    fn add(&self, bytes: usize) -> bool {
        let here = self.here.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let in_all = self.in_all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        here <= QUEUE && in_all <= QUEUES
    }

    fn remove(&self, bytes: usize) {
        self.here.fetch_sub(bytes, Ordering::Relaxed);
        self.in_all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.in_all.fetch_sub(*self.here.get_mut(), Ordering::Relaxed);
    }
}

impl Tap {
    /// No copy.
    pub(super) const fn none() -> Self {
        Self(None)
    }

    /// Begins a copy.
    pub(super) fn begin(plan: Plan, open: &Arc<Open>) -> Self {
        let (sender, items) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting { here: AtomicUsize::new(0), in_all: plan.in_all.clone() });
        let counts = plan.counts.clone();
        counts.add(Count::Copied);
        let task = open.spawn({
            let waiting = waiting.clone();
            async move |task| copy(plan, task, items, &waiting).await
        });
        Self(Some(Queue { sender, waiting, task, counts }))
    }

    /// Copies bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let Some(queue) = &self.0 else { return };
        if !queue.waiting.add(bytes.len()) {
            // The copy may be waiting for the backend. It is reset at once.
            queue.task.abort();
            queue.counts.add(Count::CopySlow);
            self.0 = None;
        } else if queue.sender.send(Item::Bytes(bytes.into())).is_err() {
            // It has ended, and said why.
            self.0 = None;
        }
    }

    /// The client sends no more.
    pub(super) fn finish(&self, heard: u64) {
        self.send(Item::Fin { heard });
    }

    /// The client's connection has ended.
    pub(super) fn end(self, ending: Ending) {
        self.send(Item::End(ending));
    }

    fn send(&self, item: Item) {
        if let Some(queue) = &self.0 {
            // If the copy has ended, it has said why.
            let _ = queue.sender.send(item);
        }
    }
}

/// Why a copy ends early.
enum Broken {
    Slow,
    Reset,
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Reset
    }
}

async fn copy(plan: Plan, task: Task, items: mpsc::UnboundedReceiver<Item>, waiting: &Waiting) {
    let Plan { pool, header, compare, counts, place: _place, in_all: _ } = plan;
    let Some((stream, address)) = pool.connect(CONNECT).await else { return counts.add(Count::CopyNoBackend) };
    task.is_at(address);
    let end = End::new(stream);
    match feed(&end, &header, compare, items, waiting).await {
        Ok(fed) => {
            counts.add(Count::CopiedWhole);
            if let Some((live, idle)) = fed.answers {
                counts.add(if live == idle { Count::Same } else { Count::Different });
            }
            if fed.is_complete {
                end.close();
            }
        }
        Err(Broken::Slow) => counts.add(Count::CopySlow),
        Err(Broken::Reset) => counts.add(Count::CopyReset),
    }
}

/// What has become of a copy that was sent to the last byte.
struct Fed {
    /// The client's connection was complete. If it was broken off, so is the copy, with a reset.
    is_complete: bool,
    /// The sums of both colours' answers, live first, if they are to be compared.
    answers: Option<(Sum, Sum)>,
}

/// Sends everything.
async fn feed(
    end: &End,
    header: &[u8],
    compare: bool,
    mut items: mpsc::UnboundedReceiver<Item>,
    waiting: &Waiting,
) -> Result<Fed, Broken> {
    let mut sum = Sha256::new();
    let progress = Progress::default();
    // Until the backend says no more.
    let answers = async {
        let mut add = |bytes: &[u8]| {
            if compare {
                sum.update(bytes);
            }
            progress.add(bytes.len());
        };
        while end.read(&mut add).await?.is_some() {}
        progress.is_over();
        Ok::<_, Broken>(sum.finalize().into())
    };
    let sending = async {
        end.write(header).await?;
        loop {
            match items.recv().await {
                Some(Item::Bytes(bytes)) => {
                    end.write(&bytes).await?;
                    waiting.remove(bytes.len());
                }
                Some(Item::Fin { heard }) => {
                    progress.reaches(heard).await;
                    end.finish();
                }
                Some(Item::End(ending)) => {
                    progress.reaches(ending.heard).await;
                    return Ok::<_, Broken>(Some(ending));
                }
                None => return Ok(None),
            }
        }
    };
    tokio::pin!(answers, sending);
    let mut answered: Option<Sum> = None;
    let ending = loop {
        tokio::select! {
            sent = &mut sending => break sent?,
            read = &mut answers, if answered.is_none() => answered = Some(read?),
        }
    };
    let Some(Ending { is_complete: true, answers: live, .. }) = ending else {
        return Ok(Fed { is_complete: false, answers: None });
    };
    end.finish();
    if answered.is_none() {
        let read = timeout_at(Instant::now() + LINGER, &mut answers).await.map_err(|_| Broken::Slow)?;
        answered = Some(read?);
    }
    Ok(Fed { is_complete: true, answers: live.zip(answered).filter(|_| compare) })
}

/// How much a backend has answered.
///
/// A client ends its connection when it has heard what it wants. To a backend that is slower than the live one, its end would look like that of a client that has lost
/// patience, and many servers drop what they are doing then. So the end of a copy waits until this backend has said as much, or is silent.
#[derive(Default)]
struct Progress {
    /// `u64::MAX`: it says no more.
    bytes: AtomicU64,
    more: Notify,
}

impl Progress {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.more.notify_one();
    }

    fn is_over(&self) {
        self.bytes.store(u64::MAX, Ordering::Relaxed);
        self.more.notify_one();
    }

    async fn reaches(&self, bytes: u64) {
        let end = Instant::now() + LINGER;
        while self.bytes.load(Ordering::Relaxed) < bytes {
            let quiet = (Instant::now() + QUIET).min(end);
            if timeout_at(quiet, self.more.notified()).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_within_two_limits_and_those_of_a_copy_that_has_ended_do_not_count() {
        let in_all = Arc::new(AtomicUsize::new(0));
        let waiting = || Waiting { here: AtomicUsize::new(0), in_all: in_all.clone() };
        let one = waiting();
        assert!(one.add(QUEUE) && !one.add(1), "the limit of each");
        drop(one);
        assert_eq!(in_all.load(Ordering::Relaxed), 0);
        let mut all: Vec<_> = (0..QUEUES / QUEUE).map(|_| waiting()).collect();
        assert!(all.iter().all(|each| each.add(QUEUE)));
        assert!(!waiting().add(1), "the limit of all");
        all[0].remove(QUEUE);
        assert!(waiting().add(QUEUE), "and what was added in vain is not counted");
        all.clear();
        assert_eq!(in_all.load(Ordering::Relaxed), 0);
    }
}
