//! Taking the receipt of a switch.
//!
//! Packets that open a flow note when, in the map `receipts`, while the deployment's row tells them to. It does so from just before the store
//! of the word until after the fence, so that no other packet reads a clock. Nothing is waited for.
//!
//! What becomes of the flows that were open is counted in the flow table afterwards, when the switch is done.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use bg_common::{DeploymentRow, Event, SwitchTimes};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    Paths,
    maps::{Words, events, typed},
    running::deployment_rows,
};

/// The counters of a receipt. A switch that cannot take one is made nevertheless.
pub(super) struct Counters {
    paths: Paths,
    times: Option<PerCpuArray<MapData, SwitchTimes>>,
    /// The events before the store.
    before: Option<Vec<(Event, u64)>>,
}

/// What the data path has noted.
pub(super) struct Noted {
    /// From the store to the first new flow by the new word.
    pub(super) first_new: Option<Duration>,
    /// From the store to the last new flow by an older word.
    pub(super) last_old: Option<Duration>,
    /// Packets that were dropped meanwhile, by reason.
    pub(super) dropped: BTreeMap<String, u64>,
}

impl Counters {
    /// Opens the counters, so that nothing has to be opened just before the store.
    pub(super) fn open(paths: &Paths) -> Self {
        Self { paths: paths.clone(), times: typed(paths, "receipts").ok(), before: None }
    }

    /// Has packets note when they open a flow. The next store of a word makes this generation. The caller holds the switch lock.
    pub(super) fn begin(&mut self, words: &Words, deployment: u16, generation: u32) {
        let cpus = aya::util::nr_cpus().unwrap_or_default();
        let Ok(zeros) = PerCpuValues::try_from(vec![SwitchTimes::default(); cpus]) else { return };
        let Some(times) = &mut self.times else { return };
        if times.set(deployment.into(), zeros, 0).is_ok() {
            self.before = events(&self.paths).ok();
            let receipt = DeploymentRow::receipt_of(generation);
            words.deployments.update(deployment.into(), |row| row.receipt = receipt);
        }
    }

    /// Ends this, also for switches that were killed, and reads what has been noted since the store `at`. The caller holds the switch lock.
    pub(super) fn end(self, words: &Words, deployment: u16, at: Option<Instant>) -> Option<Noted> {
        let noted = at.and_then(|at| self.noted(deployment, at));
        end_all(words);
        noted
    }

    fn noted(&self, deployment: u16, at: Instant) -> Option<Noted> {
        let before = self.before.as_ref()?;
        let times = self.times.as_ref()?.get(&deployment.into(), 0).ok()?;
        // Not after the store.
        let stored = monotonic().saturating_sub(at.elapsed());
        let since = |time: u64| Duration::from_nanos(time).checked_sub(stored);
        let (first_new, last_old) = extremes(&times);
        let after = events(&self.paths).ok()?;
        Some(Noted {
            first_new: first_new.and_then(since),
            last_old: last_old.and_then(since),
            dropped: dropped(before, &after),
        })
    }
}

/// The first new flow by the new word and the last one by an older word, of what each CPU has noted.
fn extremes(cpus: &[SwitchTimes]) -> (Option<u64>, Option<u64>) {
    let noted = |of: fn(&SwitchTimes) -> u64| cpus.iter().map(of).filter(|time| *time != 0);
    (noted(|times| times.first_new).min(), noted(|times| times.last_old).max())
}

/// The packets that were dropped between two readings of the counters, by reason.
fn dropped(before: &[(Event, u64)], after: &[(Event, u64)]) -> BTreeMap<String, u64> {
    let more = std::iter::zip(before, after).filter(|((event, before), (_, after))| event.is_drop() && after > before);
    more.map(|((event, before), (_, after))| (event.name().to_owned(), after - before)).collect()
}

/// Whether packets of any deployment note when they open a flow.
pub(super) fn is_any_open(words: &Words) -> bool {
    deployment_rows(words).any(|(_, row)| row.receipt != 0)
}

/// Ends this. The caller holds the switch lock, so no switch is being made.
pub(super) fn end_all(words: &Words) {
    let open = deployment_rows(words).filter(|(_, row)| row.receipt != 0);
    open.for_each(|(index, _)| words.deployments.update(index.into(), |row| row.receipt = 0));
}

/// The clock by which packets note the time.
fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_new_flow_and_the_last_old_one_are_those_of_all_cpus() {
        let times = |first_new, last_old| SwitchTimes { first_new, last_old };
        assert_eq!(extremes(&[times(0, 50), times(70, 0), times(60, 65), times(0, 0)]), (Some(60), Some(65)));
        assert_eq!(extremes(&[times(0, 0), times(0, 0)]), (None, None));
    }

    #[test]
    fn only_drops_are_named_and_only_those_that_have_happened_since() {
        let counts = |malformed, ended, pushed| {
            [(Event::Malformed, malformed), (Event::EndedFlow, ended), (Event::PushedOut, pushed)]
        };
        let since = dropped(&counts(1, 5, 0), &counts(4, 5, 7));
        assert_eq!(since, [("malformed".to_owned(), 3)].into());
    }
}
