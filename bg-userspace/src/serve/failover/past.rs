//! The last failovers, according to the history: a controller that is restarted must hold off too.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    DeploymentStatus,
    history::{Action, Moment, Record},
};

/// What the reasons of failovers begin with in the history.
pub(super) const REASON: &str = "failover: ";

/// When each deployment failed over last.
///
/// A controller that was killed, or could not write, has left no record. Then the next command finds a change that nobody has recorded, or
/// the live colour is another one than the last record says, or it may be so again after two changes. Such a change may have been a failover,
/// so it counts as one.
pub(super) fn last_failovers(
    records: &[Record],
    deployments: &[DeploymentStatus],
    (clock, now): (Instant, jiff::Timestamp),
) -> HashMap<String, Instant> {
    let mut last = HashMap::new();
    for record in records.iter().filter(|record| may_be_failover(record)) {
        let ago = Duration::try_from(now.duration_since(record.time)).unwrap_or_default();
        if let Some(at) = clock.checked_sub(ago) {
            last.insert(record.deployment.clone(), at);
        }
    }
    for status in deployments {
        let mut of_it = records.iter().rev().filter(|record| record.deployment == status.name);
        let recorded = of_it.find_map(|record| record.to);
        if recorded.is_some_and(|moment| may_have_failed_over(moment, status.generation, status.live)) {
            last.insert(status.name.clone(), clock);
        }
    }
    last
}

/// Whether the live colour may have changed since the last record.
fn may_have_failed_over(recorded: Moment, generation: u32, live: &str) -> bool {
    match generation.saturating_sub(recorded.generation) {
        0 => false,
        1 => recorded.live.name() != live,
        _ => true,
    }
}

fn may_be_failover(record: &Record) -> bool {
    match record.action {
        Action::Switch => record.reason.as_deref().is_some_and(|reason| reason.starts_with(REASON)),
        Action::Recovered => {
            let live = [record.before(), record.to].map(|moment| moment.map(|moment| moment.live));
            live[0].is_some() && live[0] != live[1]
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;

    #[test]
    fn a_change_that_nobody_has_recorded_may_have_been_a_failover() {
        let (clock, now) = (Instant::now() + Duration::from_secs(1000), jiff::Timestamp::now());
        let blue = Moment { generation: 1, live: Colour::Blue };
        let green = Moment { generation: 2, live: Colour::Green };
        let record = |action, from, to, reason: Option<&str>| Record {
            deployment: "shop".to_owned(),
            action,
            time: now - jiff::SignedDuration::from_secs(10),
            from: Some(from),
            to: Some(to),
            reason: reason.map(str::to_owned),
            ..Record::of_this_process()
        };
        let ago = |record: Record| {
            let last = last_failovers(&[record], &[], (clock, now));
            last.get("shop").map(|at| (clock - *at).as_secs())
        };
        assert_eq!(ago(record(Action::Switch, blue, green, Some("failover: blue is dead"))), Some(10));
        assert_eq!(ago(record(Action::Switch, blue, green, Some("a release"))), None);
        assert_eq!(ago(record(Action::Rollback, green, blue, None)), None);
        assert_eq!(ago(record(Action::Recovered, blue, green, Some("not recorded"))), Some(10));
        let same = Moment { generation: 2, live: Colour::Blue };
        assert_eq!(ago(record(Action::Recovered, blue, same, Some("not recorded"))), None, "the colour stayed");
    }

    #[test]
    fn several_changes_that_nobody_has_recorded_may_end_at_the_same_colour() {
        let recorded = Moment { generation: 5, live: Colour::Green };
        assert!(!may_have_failed_over(recorded, 5, "green"), "nothing has changed");
        assert!(!may_have_failed_over(recorded, 6, "green"), "a share, or the end of a ramp");
        assert!(may_have_failed_over(recorded, 6, "blue"));
        assert!(may_have_failed_over(recorded, 7, "green"), "an expiry, and the failover after it");
    }
}
