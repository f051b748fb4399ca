//! The right to replace a word that packets may take back.

use std::{
    mem::offset_of,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bg_common::{ClockId, Trips};

use crate::{
    Error, Instance,
    fence::Fence,
    live::{Reading, now},
};

/// How far ahead the deadline of a switch must be for a command to replace its word. Packets that find it passed write
/// the terms of the next generation, and so does the command.
const REPRIEVE: Duration = Duration::from_secs(2);

/// The right to write the terms and the timing that are not in force, and then to replace the word.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    /// Afterwards a deadline may come, and packets write them. `None` is never.
    until: Option<Instant>,
    /// Until when the deadline and the judgement of conditions are put off, in nanoseconds of [`ClockId::Boot`].
    put_off: u64,
}

impl Claim {
    pub(crate) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() > until)
    }
}

impl Instance {
    /// Waits until no packet reads, or is about to write, the terms and the timing that are not in force, and sees to it that none begins
    /// to for a while. `None`: the state has changed meanwhile. The caller holds the lock.
    pub(crate) fn claim(&self, index: u16, reading: &Reading, fence: &mut Fence) -> Result<Option<Claim>, Error> {
        let claim = self.reprieve(index, reading);
        fence.wait()?;
        Ok((self.is_still(index, reading, &claim) && !claim.is_over()).then_some(claim))
    }

    /// Puts off a deadline that is about to pass, and the judgement of conditions.
    fn reprieve(&self, index: u16, reading: &Reading) -> Claim {
        let slot = reading.stored.terms_slot();
        let put_off = now(ClockId::Boot) + REPRIEVE.as_nanos() as u64;
        if reading.is_watched() {
            self.words.trips.update(index.into(), |slots| slots[slot].paused_until = put_off);
        }
        if reading.confirm_by().is_some_and(|deadline| deadline < put_off) {
            self.words.timing.update(index.into(), |slots| slots[slot].revert_at = put_off);
        }
        let has_end = reading.is_watched() || reading.confirm_by().is_some();
        Claim { until: has_end.then(|| Instant::now() + REPRIEVE / 2), put_off }
    }

    /// Whether a state is the same after the fence, and still put off. Until then, a packet that had found the deadline passed could take the
    /// switch back, and its terms are those that this command is about to write. One that made a switch take effect could store the deadline
    /// of that, and a shorter pause of its conditions.
    fn is_still(&self, index: u16, reading: &Reading, claim: &Claim) -> bool {
        let slot = reading.stored.terms_slot();
        let is_deadline_off =
            || reading.confirm_by().is_none() || self.words.timing.read(index.into())[slot].revert_at >= claim.put_off;
        let is_judgement_off =
            || !reading.is_watched() || self.words.trips.read(index.into())[slot].paused_until >= claim.put_off;
        self.words.live.read(index.into()) == reading.stored && is_deadline_off() && is_judgement_off()
    }

    /// Takes back what [`claim`](Self::claim) has put off, after a fence, for a caller that has left the generation as it is.
    pub(crate) fn end_reprieve(&self, index: u16, before: &Reading, claim: &Claim) {
        let slot = before.stored.terms_slot();
        if before.is_watched() {
            const PAUSED_UNTIL: usize = offset_of!(Trips, paused_until) / 8;
            let paused_until = &self.words.trips.words(index.into())[slot * size_of::<Trips>() / 8 + PAUSED_UNTIL];
            // A packet that has made the switch take effect meanwhile has set a pause of its own.
            let _ = paused_until.compare_exchange(claim.put_off, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
        if let Some(deadline) = before.confirm_by() {
            self.words.timing.update(index.into(), |slots| slots[slot].revert_at = deadline);
        }
    }

    /// Has no flow that is opened or answered from now on count for conditions of the past. One of the two rows is about to be used again.
    pub(super) fn end_counts(&self, index: u16, reading: &Reading) {
        let is_over = |trips: &Trips| !reading.is_watched() || trips.generation != reading.stored.generation();
        self.words.trips.update(index.into(), |slots| {
            slots.iter_mut().filter(|trips| is_over(trips)).for_each(|trips| trips.generation = 0);
        });
    }
}
