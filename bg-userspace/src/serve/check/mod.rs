//! Health checks.
//!
//! Each backend of each service with a check has a task: it checks at its times ([`schedule`]), judges ([`judge`]), and writes on the
//! [board](super::board) what it has found out. This module starts and ends these tasks as the configuration says, and tells the
//! instance of changes, many at a time. When it starts, each backend is what the instance says it is: the
//! controller before has judged it. Nothing else is known until a check has looked.

mod by_vip;
mod judge;
mod probe;
mod schedule;
mod target;
mod task;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    task::{AbortHandle, JoinError, JoinSet},
    time::{interval, sleep},
};

use self::{by_vip::Opener, target::Wanted};
use super::{
    board::{BackendKey, Checked, LATE},
    controller::Controller,
    error::ServeError,
};
use crate::{BackendHealth, Health, config::Config, net, runner::FILES_OF_COMMANDS};

/// The least time from one write to the next. What happens meanwhile is written together.
const BETWEEN_WRITES: Duration = Duration::from_millis(50);
/// The time after which a write is tried again that has failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked at whether checks begin in time.
const REPORT: Duration = Duration::from_secs(10);

/// The tasks of the backends.
struct Checks {
    controller: Arc<Controller>,
    tasks: JoinSet<()>,
    opener: Arc<Opener>,
    running: HashMap<BackendKey, (Wanted, AbortHandle)>,
    /// What the instance said last.
    told: BTreeMap<BackendKey, (Health, f64)>,
    /// Backends that are no longer checked, of which the instance still says something.
    orphans: Vec<BackendHealth>,
    problem: String,
}

/// Checks backends until the controller ends.
pub(super) async fn run(controller: Arc<Controller>) -> Result<(), ServeError> {
    raise_file_limit();
    let (mut configs, mut views) = (controller.config_changes(), controller.views());
    let mut changes = controller.health().changes();
    let first = tokio::select! {
        view = views.wait_for(Option::is_some) => view.is_ok(),
        () = controller.stopped() => false,
    };
    if !first {
        return Ok(());
    }
    let mut checks = Checks {
        controller: controller.clone(),
        tasks: JoinSet::new(),
        opener: Arc::default(),
        running: HashMap::new(),
        told: BTreeMap::new(),
        orphans: Vec::new(),
        problem: String::new(),
    };
    let mut is_news = true;
    let mut report = interval(REPORT);
    loop {
        if std::mem::take(&mut is_news) {
            let view = views.borrow_and_update().clone();
            if let Some(view) = &view {
                let names = view.status.interfaces.iter().map(|interface| interface.name.as_str());
                checks.opener.hear_on(names.filter_map(net::index_of).collect());
            }
            checks.told = view.map(|view| target::told(&view.status.deployments)).unwrap_or_default();
            let config = configs.borrow_and_update().clone();
            checks.begin_and_end(&config).await;
            controller.health().follow(&config);
            checks.compare(&config);
        }
        checks.write().await;
        tokio::select! {
            () = sleep(if checks.problem.is_empty() { BETWEEN_WRITES } else { AGAIN }) => {}
            () = controller.stopped() => return Ok(()),
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = views.changed() => is_news = true,
            _ = configs.changed() => is_news = true,
            _ = report.tick() => {
                if let Some((why, count)) = controller.health().no_verdicts() {
                    tracing::warn!("{count} health checks could not be made, which says nothing of the backends: {why}");
                }
                let late = controller.health().longest_delay();
                tracing::debug!("checks were at most {late:.1?} late");
                if late > LATE {
                    tracing::warn!("health checks were up to {late:.1?} late: there are too many for this host");
                }
            }
            () = std::future::ready(()), if !checks.problem.is_empty() => {}
            Some(ended) = checks.tasks.join_next() => {
                // Also those that a reload has ended, all at once.
                let others = std::iter::from_fn(|| checks.tasks.try_join_next());
                let mut ended = std::iter::once(ended).chain(others);
                if let Some(error) = ended.find_map(|ended| ended.err().filter(JoinError::is_panic)) {
                    return Err(ServeError::Part { why: format!("a health check failed: {error}") });
                }
            }
            () = controller.stopped() => return Ok(()),
        }
    }
}

impl Checks {
    /// Begins checks that are new, or done in another way than before, and ends others. Those that are the same go on.
    async fn begin_and_end(&mut self, config: &Config) {
        let wanted = target::wanted(config);
        if wanted.values().any(|wanted| wanted.by_vip.is_some()) {
            self.opener.begin().await;
        }
        let board = self.controller.health();
        self.running.retain(|key, (way, task)| {
            let stays = wanted.get(key) == Some(way);
            if !stays {
                task.abort();
            }
            if !wanted.contains_key(key) {
                board.forget(key);
            }
            stays
        });
        for (key, way) in wanted {
            if self.running.contains_key(&key) {
                continue;
            }
            let check = &way.check;
            let begin = match board.of(&key) {
                // It was checked in another way until now.
                Some(checked) => Checked {
                    kind: check.kind.name(),
                    all_down: check.all_down,
                    is_judged: false,
                    why: None,
                    took: None,
                    ..checked
                },
                None => {
                    let (health, share) = self.told.get(&key).copied().unwrap_or((Health::Unknown, 1.0));
                    Checked::unjudged(check, health, share)
                }
            };
            board.begin(&key, begin.clone());
            let (controller, opener) = (self.controller.clone(), self.opener.clone());
            let task = self.tasks.spawn(task::run(controller, opener, key.clone(), way.clone(), begin, seed()));
            self.running.insert(key, (way, task));
        }
    }

    /// Compares what the instance says with what the checks have found out.
    fn compare(&mut self, config: &Config) {
        self.orphans.clear();
        for (key, (health, share)) in &self.told {
            if self.running.contains_key(key) {
                self.controller.health().compare(key, *health, *share);
            } else if *health != Health::Unknown && target::has_service(config, &key.deployment, &key.service) {
                // Nobody would ever find out that it is back. Services that are not in the configuration may be
                // checked by another program.
                self.orphans.push(key.with(Health::Unknown));
            }
        }
    }

    /// Tells the instance what it does not know.
    async fn write(&mut self) {
        let mut due = self.controller.health().take_due();
        due.append(&mut self.orphans);
        if due.is_empty() {
            return;
        }
        let written = due.clone();
        match self.controller.on_instance(None, move |instance| instance.set_health(&due)).await {
            Ok(set) => {
                self.problem.clear();
                tracing::debug!(
                    "health written: {} changed, {} not there, {} unfinished",
                    set.changed,
                    set.missing,
                    set.unsettled
                );
                if set.changed > 0 {
                    self.controller.look();
                }
            }
            Err(error) => {
                self.controller.health().give_back(&written);
                let error = format!("{:#}", anyhow::Error::from(error));
                if self.problem != error {
                    tracing::warn!("the health of backends could not be written, which is tried again: {error}");
                    self.problem = error;
                }
            }
        }
    }
}

/// A random number, so that several hosts do not check at the same times.
fn seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Lets this process have as many connections as the system allows: each check under way needs one.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let _ = FILES_OF_COMMANDS.set(limit);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files could not be raised: {error}");
    }
}
