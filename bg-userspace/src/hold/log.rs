//! The queues of frozen deployments and the log with their packets, in mapped memory. Whoever changes a queue holds [`Lock::hold`].
//!
//! [`Lock::hold`]: crate::lock::Lock::hold

use std::sync::atomic::{AtomicU64, Ordering};

use bg_common::{
    ClockId, HELD_LOG_BYTES, HELD_LOG_START, HOLD_OPEN, HeldHeader, HeldState, Hold, LAST_HELD_RECORD, MAX_DEPLOYMENTS,
    held_record_bytes,
};

use crate::{Error, Paths, live::now, maps, sys::Mapped};

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

    /// Bytes that are left for packets. If no queue is open, the next freeze empties the log.
    pub(crate) fn room(&self) -> u64 {
        let used = if self.is_any_open() { self.used() } else { 0 };
        (HELD_LOG_BYTES - HELD_LOG_START - used) as u64
    }

    fn is_any_open(&self) -> bool {
        (0..self.holds.rows()).any(|row| self.is_open(row as u16))
    }

    /// Opens the queue of a deployment. If no other one is open, the log is emptied.
    pub(crate) fn begin(&self, deployment: u16, drops: bool) {
        let drops = drops.into();
        if self.is_open(deployment) {
            self.holds.update(deployment.into(), |hold| hold.drops = drops);
            return;
        }
        if !self.is_any_open() {
            self.clear();
        }
        // The first word, which opens the queue, is written last.
        self.holds
            .write(deployment.into(), &Hold { claims: HOLD_OPEN, lost: 0, start: self.used() as u64, drops, mark: 0 });
    }

    /// Says how packets of the queue are marked that are played back from now on.
    pub(crate) fn set_mark(&self, deployment: u16, mark: u16) {
        self.holds.update(deployment.into(), |hold| hold.mark = mark.into());
    }

    /// The queue of a deployment, from its beginning.
    pub(crate) fn queue(&self, deployment: u16) -> Queue<'_> {
        let start = self.holds.words(deployment.into())[2].load(Ordering::SeqCst);
        Queue { log: self, deployment, at: start as usize & !7, done: 0, damage: None }
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

    /// Empties the whole log. What its first word says of it may be damaged.
    fn clear(&self) {
        let [used, rest @ ..] = self.log.all() else { return };
        rest.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        used.store(0, Ordering::SeqCst);
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
///
/// A record's length says where the next one begins. If one is damaged, the records behind it are found by [`search`](Self::search).
pub(crate) struct Queue<'a> {
    log: &'a HeldLog,
    deployment: u16,
    /// The next byte of the log to look at.
    at: usize,
    /// Packets of the queue before that byte.
    done: u64,
    damage: Option<Damage>,
}

/// A log that was found to be damaged.
#[derive(Clone, Copy, Debug)]
struct Damage {
    /// Whether the present search has found a packet.
    has_found: bool,
}

impl Queue<'_> {
    /// Goes on to the next packet that was not played back yet.
    pub(crate) fn next(&mut self) -> Next {
        let claims = self.log.claims(self.deployment).load(Ordering::SeqCst);
        if claims & HOLD_OPEN == 0 {
            return Next::Closed;
        }
        if self.damage.is_some() {
            return self.find();
        }
        let lost = self.log.lost(self.deployment);
        while self.at < self.log.used() && HELD_LOG_START + self.at <= LAST_HELD_RECORD {
            let (at, state) = (self.at, self.log.state(self.at));
            if !state.is_complete() {
                return Next::Soon;
            }
            if !state.is_sound() || u32::from(state.deployment()) >= MAX_DEPLOYMENTS {
                self.search();
                return self.find();
            }
            self.at += held_record_bytes(state.len());
            if state.deployment() == self.deployment {
                self.done += 1;
                if state.is_waiting() {
                    return Next::Packet(self.log.read(at, state));
                }
            }
        }
        if claims != HOLD_OPEN.wrapping_add(lost).wrapping_add(self.done) {
            return Next::Soon;
        }
        // Fails if another packet has asked for a place meanwhile.
        let claim = self.log.claims(self.deployment);
        let closed = claim.compare_exchange(claims, 0, Ordering::SeqCst, Ordering::SeqCst);
        if closed.is_ok() { Next::Closed } else { Next::Soon }
    }

    /// Has the packets that wait be looked for in the whole log, whatever lies between them. For a log in which the next one does not come.
    pub(crate) fn search(&mut self) {
        (self.at, self.damage) = (0, Some(Damage { has_found: false }));
    }

    /// Whether packets may be lost: the log was damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damage.is_some()
    }

    /// The next packet that the search finds. When it has found none any more, the queue is closed, whatever its numbers say.
    fn find(&mut self) -> Next {
        while HELD_LOG_START + self.at <= LAST_HELD_RECORD {
            let at = self.at;
            self.at += 8;
            let state = self.log.state(at);
            if state.is_sound() && state.is_waiting() && state.deployment() == self.deployment {
                let held = self.log.read(at, state);
                if held.header.ifindex != 0 && held.header.time <= now(ClockId::Boot) {
                    self.damage = Some(Damage { has_found: true });
                    return Next::Packet(held);
                }
            }
        }
        if self.damage.is_some_and(|damage| damage.has_found) {
            // Others may have come meanwhile.
            self.search();
            return Next::Soon;
        }
        self.log.claims(self.deployment).store(0, Ordering::SeqCst);
        Next::Closed
    }
}

#[cfg(test)]
mod tests;
