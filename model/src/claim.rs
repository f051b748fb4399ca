//! The right to write the terms and the timing that are not in force, and then to replace the word (`Claim` of user space).

use crate::{
    memory::duration,
    mutation::Mutation,
    reading::Reading,
    run::{Result, Run},
};

/// Units by which a deadline and the judgement of conditions are put off (`REPRIEVE`). A process must not be stopped for half of that while it
/// writes terms.
pub(crate) const REPRIEVE: u64 = 4;

/// What is put off.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    /// Until when the terms must be written; `u64::MAX` is never.
    pub(crate) until: u64,
    /// Until when it is put off.
    put_off: u64,
}

impl Claim {
    /// Of what no packet takes back.
    pub(crate) const ENDLESS: Self = Self { until: u64::MAX, put_off: 0 };

    fn has_end(self) -> bool {
        self.until != u64::MAX
    }
}

impl Result for Claim {
    const WORDS: usize = 2;

    fn words(&self) -> Vec<u64> {
        vec![self.until, self.put_off]
    }

    fn from_words(words: &[u64]) -> Self {
        Self { until: words[0], put_off: words[1] }
    }
}

/// Inner `None`: the state has changed meanwhile.
pub(crate) fn claim(run: &Run<'_>, reading: &Reading) -> Option<Option<Claim>> {
    run.once(|| {
        let claim = reprieve(run, reading)?;
        if !run.is(Mutation::NoFenceBefore) {
            fence(run)?;
        }
        let is_still = run.is(Mutation::NoSecondLook) || is_still(run, reading, claim)?;
        Some(is_still.then_some(claim))
    })
}

pub(crate) fn fence(run: &Run<'_>) -> Option<()> {
    run.does(|shared| shared.packets.iter_mut().flatten().for_each(|packet| packet.is_awaited = true))?;
    run.step(|shared| {
        let is_over = !shared.packets.iter().flatten().any(|packet| packet.is_awaited);
        is_over.then_some([0])
    })?;
    Some(())
}

fn reprieve(run: &Run<'_>, reading: &Reading) -> Option<Claim> {
    let deadline = reading.confirm_by();
    if deadline.is_none() && !reading.is_watched() {
        return Some(Claim::ENDLESS);
    }
    let now = run.clock()?;
    let (until, put_off) = (now + duration(REPRIEVE) / 2, now + duration(REPRIEVE));
    if run.is(Mutation::NoReprieve) {
        return Some(Claim { until, put_off: 0 });
    }
    let (slot, generation) = (reading.stored.terms_slot(), reading.stored.generation());
    if reading.is_watched() {
        run.does(|shared| {
            shared.memory.trips[slot].paused_until = put_off;
            shared.watch(generation).put_off(put_off);
        })?;
    }
    if deadline.is_some_and(|deadline| deadline < put_off) {
        run.does(|shared| {
            shared.memory.update(slot, |timing| timing.revert_at = put_off);
            let known = shared.known(generation);
            known.deadline = known.deadline.max(put_off);
        })?;
    }
    Some(Claim { until, put_off })
}

/// Takes back what a claim has put off, after a fence, for a caller that has left the generation as it is.
pub(crate) fn end_reprieve(run: &Run<'_>, before: &Reading, claim: Claim) -> Option<()> {
    let (slot, generation) = (before.stored.terms_slot(), before.stored.generation());
    if before.is_watched() {
        run.does(|shared| {
            let paused_until = &mut shared.memory.trips[slot].paused_until;
            if *paused_until == claim.put_off || run.is(Mutation::LostPause) {
                *paused_until = 0;
                let now = shared.clock();
                let watch = shared.watch(generation);
                watch.judged_from = watch.judged_from.min(now);
            }
        })?;
    }
    if let Some(deadline) = before.confirm_by() {
        run.does(|shared| {
            shared.memory.update(slot, |timing| timing.revert_at = deadline);
            shared.known(generation).deadline = deadline;
        })?;
    }
    Some(())
}

/// Whether a state is the same after the fence, and still put off.
fn is_still(run: &Run<'_>, reading: &Reading, claim: Claim) -> Option<bool> {
    let (stored, slot) = (reading.stored, reading.stored.terms_slot());
    let [is_still] = run.step(|shared| {
        let memory = &shared.memory;
        let is_there = memory.live() == stored;
        let is_deadline_off = reading.confirm_by().is_none() || memory.timing(slot).revert_at >= claim.put_off;
        let is_judgement_off = !reading.is_watched() || memory.trips[slot].paused_until >= claim.put_off;
        let is_off = is_deadline_off && is_judgement_off;
        let is_still = is_there && is_off && shared.clock() <= claim.until;
        if is_still && claim.has_end() {
            shared.urgent_since = Some(shared.now);
        }
        Some([u64::from(is_still)])
    })?;
    Some(is_still != 0)
}

/// Whether it is not too late to replace the word. From now on, this process must not be stopped for long.
pub(crate) fn is_in_time(run: &Run<'_>, until: u64) -> Option<bool> {
    let [is_in_time] = run.step(|shared| {
        let is_in_time = shared.clock() <= until;
        shared.urgent_since = is_in_time.then_some(shared.now);
        Some([u64::from(is_in_time)])
    })?;
    Some(is_in_time != 0)
}
