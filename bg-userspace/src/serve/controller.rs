//! What the parts of the controller share.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, Semaphore, broadcast, watch};

use super::{board::Board, event::Event, options::ServeOptions, tee::counts::Registry, view::View};
use crate::{
    Error, Instance, Paths, Refusal,
    config::{self, Config, ConfigError},
    history::Caller,
    lock::Lock,
    pins,
};

/// How many calls of the instance may run at a time. Most of them wait for a lock or a disk.
const CALLS: usize = 16;
/// How many calls that may last, since they wait for flows, commands or gates, may run at a time. They have places of their own, so that none of
/// them holds up a plain switch. A switch with gates keeps its place until it is confirmed.
const LONG_CHANGES: usize = 64;
/// The same for those that change nothing, so that one can still look while many changes last.
const LONG_LOOKS: usize = 8;
/// How many events a slow listener may be behind, before it has missed some.
const EVENTS: usize = 4096;

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    path: PathBuf,
    may_be_missing: bool,
}

impl Source {
    pub(super) fn new(options: &ServeOptions) -> Self {
        Self { path: options.config.clone(), may_be_missing: options.may_be_missing }
    }

    /// Reads it for the first time. Only then it is no error that the usual file does not exist: later, somebody may just be replacing it.
    pub(super) fn first(&self) -> Result<Config, ConfigError> {
        match self.load() {
            Err(ConfigError::Unreadable { source, .. })
                if self.may_be_missing && source.kind() == std::io::ErrorKind::NotFound =>
            {
                tracing::warn!("{} does not exist: nothing is checked", self.path.display());
                Ok(Config::default())
            }
            loaded => loaded,
        }
    }

    fn load(&self) -> Result<Config, ConfigError> {
        config::load(&self.path)
    }
}

/// What all parts share.
#[derive(Debug)]
pub(crate) struct Controller {
    paths: Paths,
    source: Source,
    config: watch::Sender<Arc<Config>>,
    reloads: watch::Sender<u64>,
    view: watch::Sender<Option<Arc<View>>>,
    health: Board,
    events: broadcast::Sender<Arc<Event>>,
    stopped: watch::Sender<bool>,
    look: Notify,
    reload: Notify,
    calls: Semaphore,
    long_changes: Semaphore,
    long_looks: Semaphore,
    watchers: AtomicUsize,
    open: Mutex<Option<Open>>,
    tees: Registry,
}

/// The open instance, with the lock that makes this controller its only one.
#[derive(Clone, Debug)]
struct Open {
    instance: Arc<Instance>,
    _lock: Arc<Lock>,
}

impl Controller {
    pub(super) fn new(paths: &Paths, source: Source, config: Config) -> Arc<Self> {
        Arc::new(Self {
            paths: paths.clone(),
            source,
            config: watch::Sender::new(Arc::new(config)),
            reloads: watch::Sender::new(0),
            view: watch::Sender::new(None),
            health: Board::default(),
            events: broadcast::Sender::new(EVENTS),
            stopped: watch::Sender::new(false),
            look: Notify::new(),
            reload: Notify::new(),
            calls: Semaphore::new(CALLS),
            long_changes: Semaphore::new(LONG_CHANGES),
            long_looks: Semaphore::new(LONG_LOOKS),
            watchers: AtomicUsize::new(0),
            open: Mutex::new(None),
            tees: Registry::default(),
        })
    }

    /// The directories of the instance.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The configuration: the last valid content of the file.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// The configuration and its changes.
    pub(crate) fn config_changes(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// Asks for the configuration to be read again.
    pub(crate) fn ask_to_reload(&self) {
        self.reload.notify_one();
    }

    /// Waits until somebody asks for that.
    pub(super) async fn asked_to_reload(&self) {
        self.reload.notified().await;
    }

    /// Changes each time that a valid configuration was read again, also if it is the same: the files that it names may be others.
    pub(crate) fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.subscribe()
    }

    /// Reads the configuration again. An invalid one changes nothing.
    pub(super) async fn reload(&self) {
        let source = self.source.clone();
        let loaded = tokio::task::spawn_blocking(move || source.load()).await;
        match loaded {
            Ok(Ok(config)) => {
                // Somebody else's apply has it read again too, so what comes in force with it may not be what anybody expects.
                let changed = config.sections_that_differ(&self.config()).join(", ");
                tracing::info!(changed, "the configuration was read again");
                if !changed.is_empty() {
                    self.config.send_replace(Arc::new(config));
                }
                self.reloads.send_modify(|count| *count += 1);
            }
            Ok(Err(error)) => {
                tracing::error!(
                    "the configuration was not taken, the one before stays in force: {:#}",
                    anyhow::Error::from(error)
                );
            }
            Err(error) => tracing::error!("the configuration could not be read: {error}"),
        }
    }

    /// What the observer saw last. `None` before its first look, and while there is no instance.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.view.borrow().clone()
    }

    /// What the observer sees.
    pub(crate) fn views(&self) -> watch::Receiver<Option<Arc<View>>> {
        self.view.subscribe()
    }

    /// Tells all listeners what is seen, if the state is not what it was before. `None` is that there is no instance.
    pub(super) fn seen(&self, view: Option<View>) {
        let view = view.map(Arc::new);
        let before = self.view.send_replace(view.clone());
        let same = match (&before, &view) {
            (Some(before), Some(view)) => before.is_same_state(view),
            (None, None) => true,
            _ => false,
        };
        if let Some(view) = view.filter(|_| !same) {
            self.publish(Event::State(view));
        }
    }

    /// What the health checks have found out.
    pub(crate) fn health(&self) -> &Board {
        &self.health
    }

    /// Events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Has the observer look each second, until the guard is dropped: for somebody who wants to see flows and counters move.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        self.look();
        Watch(self.clone())
    }

    /// Whether anybody watches.
    pub(super) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Tells all listeners.
    pub(crate) fn publish(&self, event: Event) {
        // Without a listener, nobody has missed it.
        let _ = self.events.send(Arc::new(event));
    }

    /// What the proxy of services in mode `tee` counts.
    pub(crate) fn tees(&self) -> &Registry {
        &self.tees
    }

    /// Asks the observer to look now.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    /// Waits until somebody asks for a look.
    pub(super) async fn asked_to_look(&self) {
        self.look.notified().await;
    }

    /// Ends all parts.
    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// Returns when the parts are to end.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as this.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Does what blocks with the instance, in a thread of its own. If `caller` is given, changes are recorded as its changes.
    ///
    /// # Errors
    /// Those of the work, and that there is no instance, or another controller of it.
    pub(crate) async fn on_instance<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Option<Caller>,
        work: impl FnOnce(&Instance) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _place = self.calls.acquire().await.expect("the semaphore is never closed");
        self.call(caller, work).await
    }

    /// The same for a change that may last. `None` if too many are being made.
    pub(crate) async fn on_instance_for_long<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Caller,
        work: impl FnOnce(&Instance) -> Result<T, Error> + Send + 'static,
    ) -> Option<Result<T, Error>> {
        let _place = self.long_changes.try_acquire().ok()?;
        Some(self.call(Some(caller), work).await)
    }

    /// The same for what may last and changes nothing.
    pub(crate) async fn look_for_long<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Instance) -> Result<T, Error> + Send + 'static,
    ) -> Option<Result<T, Error>> {
        let _place = self.long_looks.try_acquire().ok()?;
        Some(self.call(None, work).await)
    }

    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        caller: Option<Caller>,
        work: impl FnOnce(&Instance) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let controller = self.clone();
        let called = tokio::task::spawn_blocking(move || {
            let instance = controller.instance()?;
            let done = match caller {
                Some(caller) => caller.run(|| work(&instance)),
                None => work(&instance),
            };
            for warning in instance.warnings() {
                tracing::warn!("{warning}");
            }
            done
        });
        match called.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and so does whoever waits.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// The pinned instance. It is opened again after it was removed and created anew.
    pub(super) fn instance(&self) -> Result<Arc<Instance>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Open { instance, .. }) = open.as_ref().filter(|open| open.instance.is_current()) {
            return Ok(instance.clone());
        }
        // The lock of an instance that is gone says nothing of its successor.
        *open = None;
        let instance = Arc::new(Instance::open(&self.paths)?);
        // From another network namespace, checks would find other backends, or none.
        pins::check_own_namespace(&self.paths)?;
        let lock = Lock::controller(&self.paths).map_err(|error| match error {
            Error::Busy { holder, .. } => Refusal::SecondController { holder }.into(),
            error => error,
        })?;
        Ok(open.insert(Open { instance, _lock: Arc::new(lock) }).instance.clone())
    }
}

/// Somebody watches as long as this lives.
#[derive(Debug)]
pub(crate) struct Watch(Arc<Controller>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an instance that does not exist: calls fail, but not for want of a place.
    fn controller(dir: &std::path::Path) -> Arc<Controller> {
        let paths = Paths { pin_root: dir.join("pins"), state_dir: dir.join("state") };
        let source = Source { path: dir.join("bgctl.toml"), may_be_missing: true };
        Controller::new(&paths, source, Config::default())
    }

    #[tokio::test]
    async fn what_lasts_has_places_of_its_own_and_nobody_waits_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let controller = controller(dir.path());
        let caller = || Caller { who: crate::history::Who::elsewhere("ci"), command: String::new() };
        let change = || controller.on_instance_for_long(caller(), |_| Ok(()));
        let look = || controller.look_for_long(|_| Ok(()));
        let plain = || controller.on_instance(None, |_| Ok(()));
        assert!(change().await.is_some_and(|done| done.is_err()) && look().await.is_some());
        let changes = controller.long_changes.acquire_many(LONG_CHANGES as u32).await.unwrap();
        assert!(change().await.is_none(), "all places are taken, and there is no queue");
        assert!(look().await.is_some() && plain().await.is_err(), "others go on");
        let looks = controller.long_looks.acquire_many(LONG_LOOKS as u32).await.unwrap();
        assert!(look().await.is_none() && plain().await.is_err());
        drop((changes, looks));
        assert!(change().await.is_some() && look().await.is_some());
    }
}
