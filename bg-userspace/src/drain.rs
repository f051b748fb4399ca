//! Ending a drain. When it waits for no more flows, or its deadline has passed, the flag DRAINING of the live word is
//! cleared, and packets need not read the terms any more. The first packet or command that notices ends it.

use std::sync::atomic::Ordering;

use bg_common::{LiveFlags, LiveWord};
use bg_ebpf::policy::lifetime::{after_drain, is_past};

use crate::{
    Error, Instance,
    lock::Lock,
    maps::{backends, clock},
    running::deployment_rows,
    time::tick,
};

impl Instance {
    /// Ends the drains that are complete. Counts flows only if there is a drain.
    pub(crate) fn end_drains_without_flows(&self) -> Result<(), Error> {
        if self.drains().next().is_some() {
            self.fold_and_end_drains(&backends(&self.paths)?, || (), |(), _| ())?;
        }
        Ok(())
    }

    /// Ends the drains whose deadline has passed.
    pub(crate) fn end_overdue_drains(&self) -> Result<(), Error> {
        if self.drains().any(|index| self.words.reading(index).1.drain_deadline != 0) {
            self.end_drains(tick(clock(&self.paths)?), |_, _| false);
        }
        Ok(())
    }

    /// The deployments with a drain.
    fn drains(&self) -> impl Iterator<Item = u16> {
        let is_draining = |index: &u16| self.words.live.read((*index).into()).flags().has(LiveFlags::DRAINING);
        deployment_rows(&self.words).map(|(index, _)| index).filter(is_draining)
    }

    /// Ends the drains whose deadline has passed at tick `now`, and those for which `is_done` returns true. `is_done` gets the deployment's
    /// index and the word, and says whether no flow is left. What cannot be ended now is ended by the next call.
    pub(crate) fn end_drains(&self, now: u32, is_done: impl Fn(u16, LiveWord) -> bool) {
        let is_over = |index: u16| {
            let (word, terms) = self.words.reading(index);
            let is_over =
                word.flags().has(LiveFlags::DRAINING) && (is_past(terms.drain_deadline, now) || is_done(index, word));
            is_over.then_some((word, terms))
        };
        let over: Vec<u16> = self.drains().filter(|index| is_over(*index).is_some()).collect();
        if over.is_empty() {
            return;
        }
        // Otherwise this would overwrite the terms of a switch in between.
        let Ok(_lock) = Lock::switch_if_free(&self.paths) else { return };
        for index in over {
            let Some((word, terms)) = is_over(index) else { continue };
            let (settled, ended_before) = after_drain(word, &terms);
            self.words.terms.update(index.into(), |slots| slots[word.terms_slot()].ended_before = ended_before);
            let live = &self.words.live.words(index.into())[0];
            // A packet may have been first.
            let _ = live.compare_exchange(word.0, settled.0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
}
