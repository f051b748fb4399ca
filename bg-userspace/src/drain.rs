//! Ending a drain. When it waits for no more flows, or its deadline has passed, the flag DRAINING of the live word is
//! cleared, and packets need not read the terms any more. The first packet or command that notices ends it.

use std::time::Duration;

use bg_common::{Backend, LiveFlags, LiveWord, MAX_DEPLOYMENTS, SwitchTerms};
use bg_ebpf::policy::lifetime::{after_drain, is_past};

use crate::{
    Error, Instance,
    fence::Fence,
    flows::{OpenFlow, Scan},
    live::{Reading, exchange},
    lock::Lock,
    maps::{backends, clock},
    running::deployment_rows,
    sys::Mapped,
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

    /// Calls `each` with every open flow, like [`fold_open_flows`](Self::fold_open_flows), and ends the drains that have no flow left.
    pub(crate) fn fold_and_end_drains<A: Send>(
        &self,
        backends: &Mapped<Backend>,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, &OpenFlow<'_>) + Sync,
    ) -> Result<Vec<A>, Error> {
        let scan = Scan::new(self, backends)?;
        let sums = scan.fold(
            &self.paths,
            || (empty(), FlowsLeft::new()),
            |(sum, left), open| {
                if let Some(open) = open {
                    left.add(open);
                    each(sum, open);
                }
            },
        )?;
        self.end_drains(
            scan.now,
            |index, word| scan.has_word(index, word) && !sums.iter().any(|(_, left)| left.has(index)),
            || self.drains_left(backends),
        );
        Ok(sums.into_iter().map(|(sum, _)| sum).collect())
    }

    /// Deployments whose drain still waits for a flow, or may do so. The caller has waited for a grace period since it read the live words, so no
    /// program opens a flow by an older one any more. If a word changes meanwhile, the caller finds that out before it ends the drain.
    fn drains_left(&self, backends: &Mapped<Backend>) -> Result<FlowsLeft, Error> {
        let all = Scan::new(self, backends)?.fold(&self.paths, FlowsLeft::new, |left, open| match open {
            Some(open) => left.add(open),
            None => left.is_uncertain = true,
        })?;
        Ok(all.into_iter().reduce(FlowsLeft::union).unwrap_or_else(FlowsLeft::new))
    }

    /// Ends the drains whose deadline has passed.
    pub(crate) fn end_overdue_drains(&self) -> Result<(), Error> {
        if self.drains().any(|index| self.words.reading(index, 0).terms.drain_deadline != 0) {
            self.end_drains(tick(clock(&self.paths)?), |_, _| false, || Ok(FlowsLeft::new()));
        }
        Ok(())
    }

    /// The deployments with a drain.
    fn drains(&self) -> impl Iterator<Item = u16> {
        let is_draining = |index: &u16| self.words.live.read((*index).into()).flags().has(LiveFlags::DRAINING);
        deployment_rows(&self.words).map(|(index, _)| index).filter(is_draining)
    }

    /// Ends the drains whose deadline has passed at tick `now`, and those that have no flow left. What cannot be ended now is ended by
    /// the next call.
    ///
    /// `seems_done` gets a deployment's index and word, and says whether no flow was found. A flow may have been missed: a
    /// program that still held the word before the switch may have opened it where the search had already been, or another program may
    /// have claimed its row for a moment. So `search` searches again after a grace period.
    fn end_drains(
        &self,
        now: u32,
        seems_done: impl Fn(u16, LiveWord) -> bool,
        search: impl FnOnce() -> Result<FlowsLeft, Error>,
    ) {
        let ending = |index: u16| {
            let Reading { word, terms, .. } = self.words.reading(index, now);
            let ending = if is_past(terms.drain_deadline, now) {
                Ending::Overdue
            } else if self.has_lasted(&terms, now) && seems_done(index, word) {
                Ending::Done
            } else {
                return None;
            };
            word.flags().has(LiveFlags::DRAINING).then_some((word, terms, ending))
        };
        let over: Vec<_> = self.drains().filter_map(|index| Some((index, ending(index)?))).collect();
        if over.is_empty() {
            return;
        }
        let is_any_done = over.iter().any(|(_, (.., ending))| *ending == Ending::Done);
        let left = is_any_done.then(|| Fence::prepare(&self.paths)?.wait().and_then(|()| search()));
        // Otherwise this would overwrite the terms of a switch. Taken only now, so that no switch waits for a search.
        let Ok(_lock) = Lock::switch_if_free(&self.paths) else { return };
        for (index, (word, terms, ending)) in over {
            let is_over = ending == Ending::Overdue || matches!(&left, Some(Ok(left)) if !left.has(index));
            // Somebody may have switched before the lock was taken, or without it. Generations only grow, so if the word is the same, it
            // has been so all the time.
            if !is_over || self.words.live.read(index.into()) != word {
                continue;
            }
            self.end_drain(index, word, &terms);
        }
    }

    /// Ends a drain: the flows that are left are ended. The caller holds the switch lock.
    pub(crate) fn end_drain(&self, index: u16, word: LiveWord, terms: &SwitchTerms) {
        let (settled, ended_before) = after_drain(word, terms);
        self.words.terms.update(index.into(), |slots| slots[word.terms_slot()].ended_before = ended_before);
        // A packet may have been first.
        let _ = exchange(&self.words, index, word, settled);
    }

    /// Whether a drain has lasted so long that it can end before its deadline. An instance that has seen none of the idle colour's
    /// connections, such as a standby, has no flow of theirs when they arrive.
    fn has_lasted(&self, terms: &SwitchTerms, now: u32) -> bool {
        const LEAST: Duration = Duration::from_secs(60);
        terms.drain_began != 0 && is_past(terms.drain_began.wrapping_add(self.tick_length.ticks(LEAST)).max(1), now)
    }
}

/// The drains that wait for a flow.
struct FlowsLeft {
    /// By index of deployments.
    deployments: Vec<bool>,
    /// Whether a row was being written, which may hold any flow.
    is_uncertain: bool,
}

impl FlowsLeft {
    fn new() -> Self {
        Self { deployments: vec![false; MAX_DEPLOYMENTS as usize], is_uncertain: false }
    }

    fn add(&mut self, open: &OpenFlow<'_>) {
        self.deployments[usize::from(open.target.deployment)] |= open.is_left();
    }

    fn union(mut self, other: Self) -> Self {
        std::iter::zip(&mut self.deployments, other.deployments).for_each(|(left, other)| *left |= other);
        self.is_uncertain |= other.is_uncertain;
        self
    }

    /// Whether the drain of a deployment waits for a flow, or may do so.
    fn has(&self, deployment: u16) -> bool {
        self.is_uncertain || self.deployments[usize::from(deployment)]
    }
}

/// Why a drain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Its deadline has passed.
    Overdue,
    /// It waits for no flow any more.
    Done,
}
