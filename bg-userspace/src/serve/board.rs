//! What the health checks have found out, for all parts of the controller to read.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bg_common::Colour;
use tokio::sync::watch;

use crate::{
    BackendHealth, Health,
    config::{
        Config,
        model::{AllDown, HealthCheck},
    },
};

/// How late a check may begin.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BackendKey {
    pub(crate) deployment: String,
    pub(crate) service: String,
    pub(crate) colour: Colour,
    pub(crate) address: SocketAddr,
}

/// What is known of a backend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checked {
    /// The kind of its check.
    pub(crate) kind: &'static str,
    /// What happens to new flows if all are down.
    pub(crate) all_down: AllDown,
    pub(crate) health: Health,
    /// The part of its weight that it gets, from 0 to 1.
    pub(crate) share: f64,
    /// Whether this controller has seen enough to say so. Before, it repeats what the instance said.
    pub(crate) is_judged: bool,
    /// Since when it has been so, as far as this controller knows.
    pub(crate) since: jiff::Timestamp,
    /// Why the last check failed; `None` if it passed.
    pub(crate) why: Option<String>,
    /// How long the last check took; `None` before the first one.
    pub(crate) took: Option<Duration>,
    /// How many checks have passed and failed.
    pub(crate) counts: [u64; 2],
}

impl Checked {
    /// What the instance says of a backend that was not looked at yet.
    pub(crate) fn unjudged(check: &HealthCheck, health: Health, share: f64) -> Self {
        let (kind, all_down) = (check.kind.name(), check.all_down);
        let since = jiff::Timestamp::now();
        Self { kind, all_down, health, share, is_judged: false, since, why: None, took: None, counts: [0; 2] }
    }
}

/// The backends that are checked.
#[derive(Debug, Default)]
pub(crate) struct Board {
    entries: Mutex<BTreeMap<BackendKey, Entry>>,
    /// The configuration whose checks these are.
    config: Mutex<Option<Arc<Config>>>,
    changes: watch::Sender<u64>,
    /// The most that a check was behind its time since this was asked last.
    latest: Mutex<Duration>,
    /// Why checks could not be made, since this was asked last, and how many.
    no_verdicts: Mutex<Option<(String, u64)>>,
    /// How many checks were late, and how many could not be made, since the controller has started.
    late: AtomicU64,
    without_verdict: AtomicU64,
}

/// What this host, and not a backend, has done to checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Troubles {
    pub(crate) late: u64,
    pub(crate) without_verdict: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    checked: Checked,
    /// What the instance has to be told.
    is_due: bool,
}

impl Board {
    /// All backends that are checked, in the order of their names.
    pub(crate) fn snapshot(&self) -> BTreeMap<BackendKey, Checked> {
        self.entries().iter().map(|(key, entry)| (key.clone(), entry.checked.clone())).collect()
    }

    /// One backend, if it is checked.
    pub(crate) fn of(&self, key: &BackendKey) -> Option<Checked> {
        self.entries().get(key).map(|entry| entry.checked.clone())
    }

    /// Changes each time that a backend's health changes, or is judged for the first time.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Notes how late a check began.
    pub(super) fn note_delay(&self, late: Duration) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = late.max(*latest);
        if late > LATE {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The most that a check was behind its time since this was asked last.
    pub(crate) fn longest_delay(&self) -> Duration {
        std::mem::take(&mut self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that this host could not make a check.
    pub(super) fn note_no_verdict(&self, why: impl Display) {
        let mut noted = self.no_verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        noted.get_or_insert_with(|| (why.to_string(), 0)).1 += 1;
        self.without_verdict.fetch_add(1, Ordering::Relaxed);
    }

    /// How many checks were late, and how many this host could not make, since the controller has started.
    pub(crate) fn troubles(&self) -> Troubles {
        let [late, without_verdict] = [&self.late, &self.without_verdict].map(|count| count.load(Ordering::Relaxed));
        Troubles { late, without_verdict }
    }

    /// Why checks could not be made since this was asked last, and how many.
    pub(super) fn no_verdicts(&self) -> Option<(String, u64)> {
        self.no_verdicts.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The backend is checked from now on.
    pub(super) fn begin(&self, key: &BackendKey, checked: Checked) {
        self.entries().insert(key.clone(), Entry { checked, is_due: true });
        self.changes.send_modify(|number| *number += 1);
    }

    /// Notes what a check has found out. The last word of a check that has just been ended is not heard.
    pub(super) fn note(&self, key: &BackendKey, checked: Checked) {
        let mut entries = self.entries();
        let Some(before) = entries.get_mut(key) else { return };
        let told = |checked: &Checked| (checked.health, checked.share, checked.all_down);
        let is_news = told(&before.checked) != told(&checked);
        let changes = is_news || before.checked.is_judged != checked.is_judged;
        before.checked = checked;
        before.is_due |= is_news;
        drop(entries);
        if changes {
            self.changes.send_modify(|number| *number += 1);
        }
    }

    /// From now on, the entries are those of this configuration.
    pub(super) fn follow(&self, config: &Arc<Config>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config.clone());
        self.changes.send_modify(|number| *number += 1);
    }

    /// Whether the entries are those of this configuration. After a reload, they are those of the one before for a moment: verdicts of
    /// checks that are made in another way now.
    pub(crate) fn follows(&self, config: &Arc<Config>) -> bool {
        let own = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        own.as_ref().is_some_and(|own| Arc::ptr_eq(own, config))
    }

    /// The backend is checked no more.
    pub(super) fn forget(&self, key: &BackendKey) {
        if self.entries().remove(key).is_some() {
            self.changes.send_modify(|number| *number += 1);
        }
    }

    /// Compares with what the instance says of a backend. If it is something else, it has to be told.
    pub(super) fn compare(&self, key: &BackendKey, health: Health, share: f64) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else { return };
        let is_same = entry.checked.health == health && (entry.checked.share - share).abs() < 0.001;
        if !is_same && !entry.is_due {
            entry.is_due = true;
            drop(entries);
            self.changes.send_modify(|number| *number += 1);
        }
    }

    /// What the instance has to be told. The caller tells it, or gives it [back](Self::give_back).
    pub(super) fn take_due(&self) -> Vec<BackendHealth> {
        let mut entries = self.entries();
        let due =
            entries.iter_mut().filter_map(|(key, entry)| std::mem::take(&mut entry.is_due).then_some((key, entry)));
        due.map(|(key, entry)| key.told(&entry.checked)).collect()
    }

    /// The instance could not be told.
    pub(super) fn give_back(&self, due: &[BackendHealth]) {
        let mut entries = self.entries();
        for health in due {
            if let Some(entry) = entries.get_mut(&BackendKey::of(health)) {
                entry.is_due = true;
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<BackendKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackendKey {
    fn of(health: &BackendHealth) -> Self {
        let BackendHealth { deployment, service, colour, address, .. } = health;
        Self { deployment: deployment.clone(), service: service.clone(), colour: *colour, address: *address }
    }

    /// What to tell the instance of it.
    fn told(&self, checked: &Checked) -> BackendHealth {
        BackendHealth { share: checked.share, all_down: checked.all_down, ..self.with(checked.health) }
    }

    /// The same of one that is not checked.
    pub(super) fn with(&self, health: Health) -> BackendHealth {
        let Self { deployment, service, colour, address } = self.clone();
        BackendHealth { deployment, service, colour, address, health, share: 1.0, all_down: AllDown::Open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::CheckKind;

    fn key(port: u16) -> BackendKey {
        BackendKey {
            deployment: "shop".to_owned(),
            service: "web".to_owned(),
            colour: Colour::Green,
            address: ([10, 0, 0, 1], port).into(),
        }
    }

    #[test]
    fn the_instance_is_told_of_changes_until_it_knows_them() {
        let board = Board::default();
        let mut changes = board.changes();
        let up = Checked { is_judged: true, ..Checked::unjudged(&HealthCheck::new(CheckKind::Tcp), Health::Up, 1.0) };
        board.note(&key(1), up.clone());
        assert!(board.snapshot().is_empty(), "it is not checked");
        board.begin(&key(1), up.clone());
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(board.take_due(), [key(1).with(Health::Up)]);
        board.note(&key(1), Checked { took: Some(Duration::from_millis(1)), ..up.clone() });
        assert!(
            !changes.has_changed().unwrap() && board.take_due().is_empty(),
            "nothing that the instance has to know"
        );
        board.note(&key(1), Checked { health: Health::Down, ..up.clone() });
        let due = board.take_due();
        board.give_back(&due);
        board.note(&key(1), Checked { health: Health::Down, ..up.clone() });
        assert_eq!(board.take_due(), [key(1).with(Health::Down)], "it could not be told before");
        board.compare(&key(1), Health::Down, 1.0);
        assert!(board.take_due().is_empty());
        board.compare(&key(1), Health::Unknown, 1.0);
        assert_eq!(board.take_due(), [key(1).with(Health::Down)], "somebody has made it forget");
        board.compare(&key(2), Health::Unknown, 1.0);
        board.forget(&key(1));
        board.give_back(&due);
        assert!(board.take_due().is_empty() && board.snapshot().is_empty());
    }

    #[test]
    fn it_follows_one_configuration_and_says_when_that_is_another() {
        let (board, configs) = (Board::default(), [Arc::new(Config::default()), Arc::new(Config::default())]);
        let mut changes = board.changes();
        assert!(!board.follows(&configs[0]));
        board.follow(&configs[0]);
        assert!(changes.has_changed().unwrap(), "who has waited for it looks again");
        changes.mark_unchanged();
        assert!(board.follows(&configs[0]) && !board.follows(&configs[1]));
    }
}
