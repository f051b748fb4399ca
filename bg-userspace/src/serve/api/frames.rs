//! The frames that are sent to all clients that listen.
//!
//! The last ones are kept until all have taken them, but not more than a fixed number of bytes: a client that is further behind has missed some.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::body::Bytes;
use tokio::sync::watch;

/// How many bytes are kept for those who are behind. The last frame is kept however long it is.
const MOST_BYTES: usize = 8 << 20;
/// How many frames.
const MOST: usize = 256;

/// An event as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// If it is the whole status: of when.
    pub(super) state: Option<jiff::Timestamp>,
    pub(super) bytes: Bytes,
}

/// The last frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    kept: Mutex<Kept>,
    /// How many there have been.
    count: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    frames: VecDeque<Frame>,
    /// The number of the first one that is kept.
    first: u64,
    bytes: usize,
}

/// How far a client is.
#[derive(Debug)]
pub(super) struct Reader {
    next: u64,
    count: watch::Receiver<u64>,
}

/// What a client is to do.
#[derive(Clone, Debug)]
pub(super) enum Next {
    Take(Frame),
    /// It was too slow. It goes on with what comes next.
    Missed,
}

impl Frames {
    /// All frames from now on.
    pub(super) fn subscribe(&self) -> Reader {
        let kept = self.kept();
        Reader { next: kept.end(), count: self.count.subscribe() }
    }

    /// Whether anybody takes them.
    pub(super) fn is_listened_to(&self) -> bool {
        self.count.receiver_count() > 0
    }

    pub(super) fn push(&self, frame: Frame) {
        let mut kept = self.kept();
        kept.bytes += frame.bytes.len();
        kept.frames.push_back(frame);
        while kept.frames.len() > 1 && (kept.frames.len() > MOST || kept.bytes > MOST_BYTES) {
            kept.forget_first();
        }
        let end = kept.end();
        drop(kept);
        self.count.send_replace(end);
    }

    /// Keeps none, since nobody listens.
    pub(super) fn clear(&self) {
        let mut kept = self.kept();
        while !kept.frames.is_empty() {
            kept.forget_first();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    fn forget_first(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.bytes.len();
            self.first += 1;
        }
    }
}

impl Reader {
    /// The next frame, when it is there. Nothing is lost if nobody waits for the end of this.
    pub(super) async fn next(&mut self, frames: &Frames) -> Next {
        loop {
            if let Some(next) = self.take(frames) {
                return next;
            }
            if self.count.changed().await.is_err() {
                // There is nobody who could send one.
                std::future::pending::<()>().await;
            }
        }
    }

    fn take(&mut self, frames: &Frames) -> Option<Next> {
        let kept = frames.kept();
        self.count.mark_unchanged();
        let Some(nth) = self.next.checked_sub(kept.first) else {
            self.next = kept.end();
            return Some(Next::Missed);
        };
        let frame = kept.frames.get(usize::try_from(nth).ok()?)?.clone();
        self.next += 1;
        Some(Next::Take(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(size: usize) -> Frame {
        Frame { state: None, bytes: vec![0; size].into() }
    }

    /// How many frames a client has taken, and whether it has missed any.
    fn take_all(reader: &mut Reader, frames: &Frames) -> (usize, bool) {
        let (mut taken, mut has_missed) = (0, false);
        while let Some(next) = reader.take(frames) {
            match next {
                Next::Take(_) => taken += 1,
                Next::Missed => has_missed = true,
            }
        }
        (taken, has_missed)
    }

    #[test]
    fn what_is_kept_for_slow_clients_is_bounded_in_bytes() {
        let frames = Frames::default();
        let (mut quick, mut slow) = (frames.subscribe(), frames.subscribe());
        for _ in 0..100 {
            frames.push(frame(MOST_BYTES / 10));
            assert_eq!(take_all(&mut quick, &frames), (1, false));
            assert!(frames.kept().bytes <= MOST_BYTES);
        }
        assert_eq!(take_all(&mut slow, &frames), (0, true), "what is left is not the whole of it");
        frames.push(frame(2 * MOST_BYTES));
        assert_eq!(take_all(&mut slow, &frames), (1, false), "one is always there");
        (0..2 * MOST).for_each(|_| frames.push(frame(1)));
        assert_eq!(frames.kept().frames.len(), MOST);
        assert_eq!(take_all(&mut slow, &frames), (0, true));
        frames.clear();
        assert_eq!(frames.kept().bytes, 0);
        frames.push(frame(1));
        assert_eq!(take_all(&mut slow, &frames), (1, false), "nothing was missed by clearing");
        drop((quick, slow));
        assert!(!frames.is_listened_to());
    }

    #[tokio::test]
    async fn a_client_is_woken_by_the_next_frame() {
        let frames = std::sync::Arc::new(Frames::default());
        let mut reader = frames.subscribe();
        let sent = frames.clone();
        let sends = tokio::spawn(async move { sent.push(frame(7)) });
        let next = reader.next(&frames).await;
        assert!(matches!(next, Next::Take(frame) if frame.bytes.len() == 7));
        sends.await.unwrap();
    }
}
