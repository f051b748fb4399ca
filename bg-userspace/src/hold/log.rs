//! The queues of frozen deployments and the log with their packets, in mapped memory. Whoever changes a queue holds [`Lock::hold`].
//!
//! [`Lock::hold`]: crate::lock::Lock::hold

use std::sync::atomic::{AtomicU64, Ordering};

use bg_common::{
    HELD_LOG_BYTES, HELD_LOG_START, HOLD_OPEN, HeldHeader, HeldState, Hold, LAST_HELD_RECORD, MAX_HELD_FRAME,
    held_record_bytes,
};

use crate::{Error, Paths, maps, sys::Mapped};

/// A packet in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) header: HeldHeader,
    pub(crate) frame: Vec<u8>,
    /// Byte in the log.
    at: usize,
}

/// The next packet of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It has arrived.
    Packet(Held),
    /// It is being written. That takes a moment.
    Soon,
    /// There was none, and the queue is closed now.
    Closed,
}

/// All queues.
#[derive(Debug)]
pub(crate) struct HeldLog {
    holds: Mapped<Hold>,
    log: Mapped<[u64; HELD_LOG_BYTES / 8]>,
}

impl HeldLog {
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        Ok(Self { holds: maps::holds(paths)?, log: maps::held(paths)? })
    }

    /// Whether the queue of a deployment is open.
    pub(crate) fn is_open(&self, deployment: u16) -> bool {
        self.claims(deployment).load(Ordering::SeqCst) & HOLD_OPEN != 0
    }

    /// How many packets have asked for a place in the queue of a deployment, if it is open.
    pub(crate) fn len(&self, deployment: u16) -> u64 {
        let claims = self.claims(deployment).load(Ordering::SeqCst);
        if claims & HOLD_OPEN == 0 { 0 } else { claims & !HOLD_OPEN }
    }

    /// Opens the queue of a deployment. If no other one is open, the log is emptied.
    pub(crate) fn begin(&self, deployment: u16, drops: bool) {
        if self.is_open(deployment) {
            self.holds.words(deployment.into())[3].store(drops.into(), Ordering::SeqCst);
            return;
        }
        if (0..self.holds.rows()).all(|row| !self.is_open(row as u16)) {
            self.clear();
        }
        // The first word, which opens the queue, is written last.
        self.holds.write(
            deployment.into(),
            &Hold { claims: HOLD_OPEN, lost: 0, start: self.used() as u64, drops: drops.into() },
        );
    }

    /// The queue of a deployment, from its beginning.
    pub(crate) fn queue(&self, deployment: u16) -> Queue<'_> {
        let start = self.holds.words(deployment.into())[2].load(Ordering::SeqCst);
        Queue { log: self, deployment, at: start as usize, done: 0 }
    }

    fn claims(&self, deployment: u16) -> &AtomicU64 {
        &self.holds.words(deployment.into())[0]
    }

    fn lost(&self, deployment: u16) -> u64 {
        self.holds.words(deployment.into())[1].load(Ordering::SeqCst)
    }

    /// Bytes of the log that are in use. Packets that found no room have counted beyond its end.
    fn used(&self) -> usize {
        (self.log.all()[0].load(Ordering::SeqCst) as usize).min(HELD_LOG_BYTES - HELD_LOG_START)
    }

    fn clear(&self) {
        let words = self.log.all();
        let records = HELD_LOG_START / 8..(HELD_LOG_START + self.used()) / 8;
        words[records].iter().for_each(|word| word.store(0, Ordering::Relaxed));
        words[0].store(0, Ordering::SeqCst);
    }

    /// The words from this byte on.
    fn record(&self, at: usize) -> &[AtomicU64] {
        &self.log.all()[(HELD_LOG_START + at) / 8..]
    }

    fn state(&self, at: usize) -> HeldState {
        HeldState(self.record(at)[0].load(Ordering::SeqCst))
    }

    fn read(&self, at: usize, state: HeldState) -> Held {
        let words = held_record_bytes(state.len()) / 8;
        let bytes: Vec<u8> =
            self.record(at)[..words].iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        let (header, frame) = bytes.split_at(size_of::<HeldHeader>());
        Held { header: bytemuck::pod_read_unaligned(header), frame: frame[..state.len()].to_vec(), at }
    }

    /// Notes that a packet has been played back. It is not played back again, even if this process is killed.
    pub(crate) fn done(&self, held: &Held) {
        self.record(held.at)[0].store(held.header.state.done().0, Ordering::SeqCst);
    }
}

/// The queue of a deployment that is being played back.
pub(crate) struct Queue<'a> {
    log: &'a HeldLog,
    deployment: u16,
    /// The next byte of the log to look at.
    at: usize,
    /// Packets of the queue before that byte.
    done: u64,
}

impl Queue<'_> {
    /// Goes on to the next packet that was not played back yet.
    pub(crate) fn next(&mut self) -> Next {
        let claims = self.log.claims(self.deployment).load(Ordering::SeqCst);
        if claims & HOLD_OPEN == 0 {
            return Next::Closed;
        }
        let lost = self.log.lost(self.deployment);
        while self.at < self.log.used() && HELD_LOG_START + self.at <= LAST_HELD_RECORD {
            let (at, state) = (self.at, self.log.state(self.at));
            if !state.is_complete() || state.len() > MAX_HELD_FRAME {
                return Next::Soon;
            }
            self.at += held_record_bytes(state.len());
            if state.deployment() == self.deployment {
                self.done += 1;
                if state.is_waiting() {
                    return Next::Packet(self.log.read(at, state));
                }
            }
        }
        if claims != HOLD_OPEN + lost + self.done {
            return Next::Soon;
        }
        // Fails if another packet has asked for a place meanwhile.
        let claim = self.log.claims(self.deployment);
        let closed = claim.compare_exchange(claims, 0, Ordering::SeqCst, Ordering::SeqCst);
        if closed.is_ok() { Next::Closed } else { Next::Soon }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> HeldLog {
        HeldLog { holds: Mapped::anonymous(4), log: Mapped::anonymous(1) }
    }

    /// What a program does.
    fn hold(log: &HeldLog, deployment: u16, frame: &[u8]) -> bool {
        if log.claims(deployment).fetch_add(1, Ordering::SeqCst) & HOLD_OPEN == 0 {
            return false;
        }
        let at = log.log.all()[0].fetch_add(held_record_bytes(frame.len()) as u64, Ordering::SeqCst) as usize;
        if HELD_LOG_START + at > LAST_HELD_RECORD {
            log.holds.words(deployment.into())[1].fetch_add(1, Ordering::SeqCst);
            return true;
        }
        let record = log.record(at);
        for (word, bytes) in record[3..].iter().zip(frame.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        record[0].store(HeldState::waiting(deployment, frame.len() as u32).0, Ordering::SeqCst);
        true
    }

    /// Plays a queue back to its end.
    fn play(log: &HeldLog, deployment: u16) -> Vec<Vec<u8>> {
        let (mut queue, mut played) = (log.queue(deployment), Vec::new());
        loop {
            match queue.next() {
                Next::Packet(held) => {
                    log.done(&held);
                    played.push(held.frame);
                }
                Next::Closed => return played,
                Next::Soon => panic!("a packet that never comes"),
            }
        }
    }

    #[test]
    fn packets_come_back_in_order_to_their_own_deployment() {
        let log = log();
        assert!(!hold(&log, 1, b"before the freeze"));
        log.begin(1, false);
        log.begin(2, false);
        for (deployment, frame) in [(1, "first of 1"), (2, "first of 2"), (1, "the second of 1"), (2, "2")] {
            assert!(hold(&log, deployment, frame.as_bytes()));
        }
        assert_eq!((log.len(0), log.len(1), log.len(2)), (0, 2, 2));
        assert_eq!(play(&log, 1), [b"first of 1".to_vec(), b"the second of 1".to_vec()]);
        assert!(!log.is_open(1) && log.is_open(2));
        assert!(!hold(&log, 1, b"after the thaw") && hold(&log, 2, b"2 again"));
        assert_eq!(play(&log, 2).len(), 3);
    }

    #[test]
    fn a_queue_is_closed_only_when_nobody_waits_in_it() {
        let log = log();
        log.begin(1, false);
        let mut queue = log.queue(1);
        hold(&log, 1, b"first");
        assert!(matches!(queue.next(), Next::Packet(_)));
        // It has asked for a place, and is not there yet.
        log.claims(1).fetch_add(1, Ordering::SeqCst);
        assert_eq!(queue.next(), Next::Soon);
        let at = log.log.all()[0].fetch_add(held_record_bytes(5) as u64, Ordering::SeqCst) as usize;
        assert_eq!(queue.next(), Next::Soon, "its record is being written");
        log.record(at)[0].store(HeldState::waiting(1, 5).0, Ordering::SeqCst);
        assert!(matches!(queue.next(), Next::Packet(_)));
        assert_eq!(queue.next(), Next::Closed);
    }

    #[test]
    fn what_was_played_back_is_not_played_back_again() {
        let log = log();
        log.begin(1, false);
        for frame in ["1", "2", "3"] {
            hold(&log, 1, frame.as_bytes());
        }
        let mut queue = log.queue(1);
        let Next::Packet(first) = queue.next() else { panic!("no packet") };
        log.done(&first);
        assert_eq!(play(&log, 1), [b"2".to_vec(), b"3".to_vec()]);
    }

    #[test]
    fn a_full_log_loses_packets_and_is_empty_at_the_next_freeze() {
        let log = log();
        for freeze in 0..2 {
            log.begin(1, false);
            let frame = [0; 1500];
            let room = (LAST_HELD_RECORD - HELD_LOG_START) / held_record_bytes(1500) + 1;
            for _ in 0..room + 10 {
                assert!(hold(&log, 1, &frame));
            }
            assert_eq!((log.len(1), log.lost(1)), (room as u64 + 10, 10), "{freeze}");
            assert_eq!(play(&log, 1).len(), room, "{freeze}");
        }
        log.begin(1, false);
        assert!(log.log.all().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_queue_begins_behind_what_an_earlier_deployment_of_its_number_has_left() {
        let log = log();
        log.begin(1, false);
        log.begin(2, false);
        hold(&log, 1, b"of a deployment that was removed");
        log.holds.write(1, &Hold::default());
        log.begin(1, false);
        hold(&log, 1, b"new");
        assert_eq!(play(&log, 1), [b"new".to_vec()]);
    }
}
