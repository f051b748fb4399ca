//! Making the running state match a configuration.
//!
//! The [difference](crate::plan) is computed once, before anything is changed. Its actions decide what is written:
//!
//! - A deployment with an action gets its row from the configuration, and each tester is added or removed by its own action. A new
//!   deployment also gets its live word.
//! - A service with an action gets its rows from the configuration. Each backend is written, gets its weight or ends by its own action, and a
//!   colour with such an action gets a new Maglev table.
//! - A service or deployment that is removed ends with everything that belongs to it.
//!
//! The rest is derived and not listed in a plan: the rows of all services of a deployment that gets its first tester or loses its last
//! one, the lists of the indexes (from the rows), the salts of new services, the records for the journal, and the neighbours, which are
//! checked even if there is no action.
//!
//! Once nothing else is in the way, the apply writes its record into the pins, and then keeps the gates of the configuration in the state directory. If
//! they cannot be kept, nothing is applied or recorded.
//!
//! The order ensures that no packet sees a half-written row, and that calling a killed apply again completes it:
//!
//! 1. Rows that a killed call has left, and services that are no longer configured, are removed from the index, then from the
//!    `services` map. After a fence, what they used is ended.
//! 2. The rows and testers of deployments are written, and the live words of new deployments, before any service refers to them.
//! 3. For each service that changes, backends and tables are written where nothing refers to them, and the backends are
//!    linked in their index. Then its rows are replaced, each at once, and its virtual addresses are linked in theirs. Then
//!    weights are settled.
//! 4. After a fence, backends, tables and deployments to which nothing refers are ended, and so are open flows
//!    of sources that have become testers or have ceased to be testers.
//!
//! The TCP connections of backends that are removed are reset before they are ended, while the data path still knows both ends.
//! Ended backends are free only after a second fence, because a program that has just found one alive
//! may still use its slot and the rows of its service. A row of `vips` is free when no flow refers to it.
//!
//! A backend that stays keeps its slot and epoch, and with them its flows, whatever happens to its weight
//! or to other backends. The live word of an existing deployment is never changed.

mod alloc;
mod check;
mod deployments;
mod endings;
mod fill;
mod job;
mod links;
mod request;
mod rows;
mod salts;
mod services;
mod sweep;
mod work;

use bg_common::{Colour, Mode};

pub use self::request::ApplyRequest;
use self::work::Work;
use crate::{
    Error, Instance, Paths, Refusal,
    config::Config,
    kept_gates, kept_listeners,
    lock::{Lock, Recording},
    maps::{Heads, Tables, Words},
    net, pins,
    plan::{self, Plan},
    running::Running,
    sizes::Sizes,
    state::{Change, Pending, State},
    tunnels,
};

impl Instance {
    /// Makes the running state match `config`, and returns what was changed.
    ///
    /// Flows that no change concerns are not disturbed. The live colour of an existing deployment does not change, and neither does that
    /// of a virtual address that another deployment takes over. If the call is killed, calling it again completes it.
    pub fn apply(&self, config: &Config) -> Result<Plan, Error> {
        self.apply_as(config, &ApplyRequest::default())
    }

    /// Like [`apply`](Self::apply), with more options.
    pub fn apply_as(&self, config: &Config, request: &ApplyRequest) -> Result<Plan, Error> {
        let state = self.state.given();
        let applied = apply(self, &state, config, request);
        if applied.is_ok() {
            // What cannot be ended now is ended by the next call.
            let _ = self.end_drains_without_flows();
            let _ = self.release_overdue();
            let _ = self.end_confined();
        }
        let warnings = state.take_warnings();
        self.state.warn(warnings.clone());
        applied.map(|plan| Plan { warnings, ..plan })
    }
}

/// Applies `config`, and returns what was changed.
fn apply(instance: &Instance, state: &State, config: &Config, request: &ApplyRequest) -> Result<Plan, Error> {
    let Instance { paths, words, tick_length, .. } = instance;
    check::check(config, &Sizes::read(paths)?)?;
    // The routes and neighbours are those of the caller's namespace.
    pins::check_own_namespace(paths)?;
    // Before others have to wait for this call.
    plan::wait_for_ports(config, state.home(), || Running::read(words, &Tables::open(paths).ok()?).ok());
    let lock = Lock::apply(paths)?;
    let recalled = state.recall()?;
    let tables = Tables::open(paths)?;
    let running = Running::read(words, &tables)?;
    let given = config;
    let with = plan::with_listeners(config, &running, state.home())?;
    state.warn(with.warnings);
    let config = &*with.config;
    let chosen = plan::chosen_listeners(given, config);
    if request.keep_commands {
        kept_gates::check_commands(paths, config)?;
    }
    let mut diff = instance.diff(config, &tables, &running, &recalled)?;
    let recording = Recording::begin(paths);
    let mut changes = deployments::planned(&diff, &running, request);
    let pending = if diff.is_empty() {
        let pending = Pending::begin(paths, &lock, &changes);
        keep_gates(paths, state, config, &pending)?;
        pending
    } else {
        let mut deployments = config.deployments.iter();
        let interrupted = deployments.find_map(|to| Some((plan::interrupted(to, &running)?, &to.name)));
        if let Some((deployment, to)) = interrupted.filter(|_| !request.force) {
            return Err(Refusal::SwitchWaits { deployment: deployment.to_owned(), to: to.clone() }.into());
        }
        // After that, since what waits for a confirmation does not get another name.
        if !diff.colour_changes.is_empty() && !request.force {
            return Err(Refusal::ColourChanges { changes: diff.colour_changes }.into());
        }
        let heads = Heads::open(paths)?;
        links::check(&diff, &running, &heads, &tables)?;
        let mut work = Work::new(paths, words, tables, heads, &running, config)?;
        let pending = Pending::begin(paths, &lock, &changes);
        keep_gates(paths, state, config, &pending)?;
        // If something fails from here on, part of it may be done. The next command records it.
        work.retire_left_over()?;
        let taken_over = work.remove_services(&diff)?;
        let indexes = deployments::begin(&mut work, &mut diff, *tick_length, &recalled, &mut changes)?;
        work.publish_services(&diff, &indexes)?;
        work.withdraw_services(&taken_over)?;
        work.release()?;
        deployments::end(&mut work, &diff, &mut changes)?;
        pending
    };
    let plan = diff.into_plan();
    // Also if there are none: those of services that are gone must not stay.
    if let Err(error) = kept_listeners::keep(state.home(), &chosen)
        && !chosen.is_empty()
    {
        let error = anyhow::Error::from(error);
        state.warn([format!(
            "the listeners that were chosen for services in mode \"tee\" are not kept, so an apply at boot, before the network is there, will fail: name them (`listen`): {error:#}"
        )]);
    }
    keep_neighbours(paths, config);
    tunnels::learn(paths, &lock)?;
    state.warn(tunnels::warnings(paths));
    remember(state, words, recording, &deployments::made(words, &recalled, changes), &pending)?;
    Ok(plan)
}

/// Keeps the gates, which is the first thing that an apply changes. If it cannot, it has changed nothing, and there is nothing to record.
fn keep_gates(paths: &Paths, state: &State, config: &Config, pending: &Pending) -> Result<(), Error> {
    kept_gates::keep(paths, state.home(), config).inspect_err(|_| pending.cancel())
}

/// Updates the state directory, after everything else is done.
fn remember(
    state: &State,
    words: &Words,
    recording: Option<Recording>,
    changes: &[Change],
    pending: &Pending,
) -> Result<(), Error> {
    state.move_in();
    state.record_pending(Some(words), recording, changes, pending).map_err(|source| {
        let done = if changes.is_empty() { "there was nothing to apply" } else { "the apply is done" };
        Error::DoneNotRecorded { done: done.to_owned(), source: Box::new(source) }
    })
}

/// Has the kernel keep the next hops to all backends resolved.
fn keep_neighbours(paths: &Paths, config: &Config) {
    let services = config.deployments.iter().flat_map(|deployment| &deployment.services);
    let elsewhere = services.filter(|service| service.mode == Mode::Nat || service.mode.is_direct());
    let backends = elsewhere.flat_map(|service| Colour::ALL.into_iter().flat_map(|colour| service.backends(colour)));
    net::keep_neighbours(paths, backends.map(|backend| backend.address.ip()));
}
