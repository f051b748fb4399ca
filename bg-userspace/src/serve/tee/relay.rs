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

/// From the client to the backend and to the copy, which gets the bytes second, because its queue may have to wake a task.
async fn forward(client: &End, backend: &End, tap: &mut Tap, activity: &Activity, rules: &Rules<'_>) -> Stopped {
    loop {
        let taken = client.read(|bytes| {
            if !(rules.may_go_on)() {
                return None;
            }
            let rest = backend.write_now(bytes).map(<[u8]>::to_vec);
            tap.push(bytes);
            Some(rest)
        });
        match pass(taken.await, backend, activity, rules.may_go_on).await {
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
        if let Some(stopped) = pass(taken.await, client, activity, &|| true).await {
            return stopped;
        }
    }
}

/// What was read: nothing more, something that may not go on, or what the sink has not taken at once.
type Taken = io::Result<Option<Option<io::Result<Vec<u8>>>>>;

/// Writes the rest. Returns why the direction stops, if it does.
async fn pass(taken: Taken, sink: &End, activity: &Activity, may_go_on: &(dyn Fn() -> bool + Sync)) -> Option<Stopped> {
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
        // This may take long, and meanwhile the colour may go live.
        Ok(rest) => sink.write_while(&rest, may_go_on).await,
        Err(error) => Err(error),
    };
    activity.note();
    match written {
        Ok(true) => None,
        Ok(false) => Some(Stopped::Source(Ended::Forbidden)),
        Err(_) => Some(Stopped::Sink),
    }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(15);

    /// Both ends of a connection, the relay's first.
    async fn ends() -> (End, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (End::new(near.unwrap()), far.unwrap().0)
    }

    #[tokio::test]
    async fn what_waits_for_a_colour_is_not_written_once_that_is_live() {
        // More than two sockets hold.
        const LENGTH: usize = 64 << 20;
        let (sink, mut backend) = ends().await;
        let is_idle = AtomicBool::new(true);
        let (activity, may_go_on) = (Activity::new(), || is_idle.load(Ordering::SeqCst));
        let mut written = Box::pin(pass(Ok(Some(Some(Ok(vec![7; LENGTH])))), &sink, &activity, &may_go_on));
        assert!(timeout(Duration::from_millis(200), &mut written).await.is_err(), "nobody reads");
        is_idle.store(false, Ordering::SeqCst);
        let mut got = 0;
        let mut block = vec![0; 1 << 20];
        let stopped = loop {
            tokio::select! {
                stopped = &mut written => break stopped,
                read = backend.read(&mut block) => got += read.unwrap(),
            }
        };
        assert!(matches!(stopped, Some(Stopped::Source(Ended::Forbidden))));
        drop(written);
        sink.close();
        while let Ok(more @ 1..) = timeout(SOON, backend.read(&mut block)).await.unwrap() {
            got += more;
        }
        assert!(got < LENGTH, "{got}");
    }

    #[tokio::test]
    async fn a_client_whose_bytes_wait_for_a_colour_is_told_that_it_has_gone_live() {
        let ((client_end, client), (sink, _backend)) = (ends().await, ends().await);
        let full = vec![7; 1 << 20];
        while sink.write_now(&full).unwrap().is_empty() {}
        let more = tokio::spawn(async move {
            let mut client = client;
            while client.write_all(&full).await.is_ok() {}
        });
        // The bytes that are read may go on, and what is left of them may not.
        let asked = AtomicBool::new(false);
        let may_go_on = || !asked.swap(true, Ordering::SeqCst);
        let rules = Rules { idle_timeout: SOON, compare: false, may_go_on: &may_go_on };
        assert_eq!(relay(client_end, sink, Tap::none(), &rules).await, Ended::Forbidden);
        more.await.unwrap();
    }

    #[tokio::test]
    async fn the_last_words_of_a_backend_reach_a_client_whose_bytes_it_does_not_take() {
        let rules = Rules { idle_timeout: SOON, compare: false, may_go_on: &|| true };
        // Either direction may be the first to find out.
        for _ in 0..20 {
            let ((client_end, mut client), (backend_end, mut backend)) = (ends().await, ends().await);
            client.write_all(b"more of it").await.unwrap();
            backend_end.write(b"some").await.unwrap();
            backend.write_all(b"413 too large").await.unwrap();
            // It has not read what it was sent, so this is a reset.
            drop(backend);
            let mut words = [0; 13];
            let (ended, read) = tokio::join!(
                timeout(SOON, relay(client_end, backend_end, Tap::none(), &rules)),
                timeout(SOON, client.read_exact(&mut words))
            );
            read.unwrap().unwrap();
            assert_eq!((ended.unwrap(), &words), (Ended::Reset, b"413 too large"));
        }
    }
}
