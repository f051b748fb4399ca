//! What the proxy counts, for metrics, logs and tests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

/// What is counted of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// Connections of clients that were accepted.
    Accepted,
    /// Of those, the ones that were refused: no flow of the data path leads here.
    Foreign,
    /// Refused, because there were too many at once.
    TooMany,
    /// Refused, because no backend of the colour has accepted a connection.
    NoBackend,
    /// Ended, because nothing was sent for too long.
    Idle,
    /// Of testers or to the preview address, and so not copied.
    Confined,
    /// Copies that were begun.
    Copied,
    /// Copies that the idle colour has got to the last byte.
    CopiedWhole,
    /// Copies not begun, because there were too many at once.
    CopyTooMany,
    /// Copies ended, because no backend of the other colour has accepted a connection.
    CopyNoBackend,
    /// Copies ended, because the backend was too slow.
    CopySlow,
    /// Copies ended, because the backend has closed or reset the connection.
    CopyReset,
    /// Connections with the same answers of both colours.
    Same,
    /// Connections with different answers.
    Different,
}

impl Count {
    /// All of them.
    pub(crate) const ALL: [Self; 14] = [
        Self::Accepted,
        Self::Foreign,
        Self::TooMany,
        Self::NoBackend,
        Self::Idle,
        Self::Confined,
        Self::Copied,
        Self::CopiedWhole,
        Self::CopyTooMany,
        Self::CopyNoBackend,
        Self::CopySlow,
        Self::CopyReset,
        Self::Same,
        Self::Different,
    ];

    /// Its name in JSON and in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Foreign => "foreign",
            Self::TooMany => "too_many",
            Self::NoBackend => "no_backend",
            Self::Idle => "idle",
            Self::Confined => "confined",
            Self::Copied => "copied",
            Self::CopiedWhole => "copied_whole",
            Self::CopyTooMany => "copy_too_many",
            Self::CopyNoBackend => "copy_no_backend",
            Self::CopySlow => "copy_slow",
            Self::CopyReset => "copy_reset",
            Self::Same => "answers_same",
            Self::Different => "answers_different",
        }
    }
}

/// The counts of one service.
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicU64; Count::ALL.len()]);

impl Counts {
    pub(crate) fn add(&self, count: Count) {
        self.0[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }
}

/// The counts of a service at a moment, with its names.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TeeStatus {
    pub(crate) deployment: String,
    pub(crate) service: String,
    #[serde(flatten)]
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// The counts of all services that were ever in mode `tee` since the controller has started.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<BTreeMap<(String, String), Arc<Counts>>>);

impl Registry {
    /// The counts of the service of this name.
    pub(crate) fn of(&self, deployment: &str, service: &str) -> Arc<Counts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((deployment.to_owned(), service.to_owned())).or_default().clone()
    }

    /// Tells the present name of a service. If it had another one, its counts go on.
    pub(super) fn name(&self, counts: &Arc<Counts>, deployment: &str, service: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (deployment.to_owned(), service.to_owned());
        if !all.get(&name).is_some_and(|present| Arc::ptr_eq(present, counts)) {
            all.retain(|_, others| !Arc::ptr_eq(others, counts));
            all.insert(name, counts.clone());
        }
    }

    /// All of them now.
    pub(crate) fn now(&self) -> Vec<TeeStatus> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |((deployment, service), counts): (&(String, String), &Arc<Counts>)| TeeStatus {
            deployment: deployment.clone(),
            service: service.clone(),
            counts: Count::ALL.into_iter().map(|count| (count.name(), counts.of(count))).collect(),
        };
        all.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_has_its_place_and_name() {
        let registry = Registry::default();
        for (times, count) in (1..).zip(Count::ALL) {
            (0..times).for_each(|_| registry.of("shop", "web").add(count));
        }
        registry.of("shop", "api").add(Count::Copied);
        let [api, web] = &registry.now()[..] else { panic!("two services") };
        assert_eq!((api.service.as_str(), api.counts["copied"], api.counts["accepted"]), ("api", 1, 0));
        let counts: Vec<u64> = Count::ALL.into_iter().map(|count| web.counts[count.name()]).collect();
        assert_eq!(counts, (1..=Count::ALL.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_service_with_another_name_goes_on_with_its_counts() {
        let registry = Registry::default();
        let [web, api] = ["web", "api"].map(|name| registry.of("shop", name));
        web.add(Count::Accepted);
        // They exchange their names.
        registry.name(&web, "shop", "api");
        registry.name(&api, "shop", "web");
        let named: Vec<_> = registry.now().into_iter().map(|of| (of.service, of.counts["accepted"])).collect();
        assert_eq!(named, [("api".to_owned(), 1), ("web".to_owned(), 0)]);
        registry.name(&web, "shop", "front");
        let named: Vec<_> = registry.now().into_iter().map(|of| (of.service, of.counts["accepted"])).collect();
        assert_eq!(named, [("front".to_owned(), 1), ("web".to_owned(), 0)]);
    }
}
