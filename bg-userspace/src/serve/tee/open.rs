//! The connections and copies of a service that are open, so that they can be ended.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bg_common::Colour;
use tokio::task::AbortHandle;

/// All open connections and copies.
#[derive(Debug, Default)]
pub(super) struct Open {
    entries: Mutex<(u64, HashMap<u64, Entry>)>,
}

/// A connection or a copy.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// `None` until its task has been started.
    task: Option<AbortHandle>,
    /// `None` until it is connected.
    pub(super) backend: Option<SocketAddr>,
    /// The colour that it must leave as soon as that is live, because it is confined to the idle one.
    pub(super) confined_to: Option<Colour>,
}

/// The entry of a task, as the task has it. It goes with it.
pub(super) struct Task {
    open: Arc<Open>,
    number: u64,
}

impl Open {
    /// Starts a task with an entry.
    pub(super) fn spawn<F>(self: &Arc<Self>, work: impl FnOnce(Task) -> F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let number = {
            let (last, entries) = &mut *self.lock();
            *last += 1;
            entries.insert(*last, Entry::default());
            *last
        };
        let handle = tokio::spawn(work(Task { open: self.clone(), number })).abort_handle();
        // It may have ended already.
        if let Some(entry) = self.lock().1.get_mut(&number) {
            entry.task = Some(handle.clone());
        }
        handle
    }

    /// Ends those that `is_to_end`, by a reset.
    pub(super) fn end(&self, is_to_end: impl Fn(&Entry) -> bool) {
        self.lock()
            .1
            .values()
            .filter(|entry| is_to_end(entry))
            .filter_map(|entry| entry.task.as_ref())
            .for_each(AbortHandle::abort);
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().1.len()
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Entry>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// Notes the backend.
    pub(super) fn is_at(&self, backend: SocketAddr) {
        self.note(|entry| entry.backend = Some(backend));
    }

    /// Notes what is known of a connection.
    pub(super) fn note(&self, note: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.open.lock().1.get_mut(&self.number) {
            note(entry);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.open.lock().1.remove(&self.number);
    }
}
