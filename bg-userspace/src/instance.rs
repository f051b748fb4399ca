//! An open instance.

use bg_common::Meta;

use crate::{
    Error, Paths,
    apply::apply,
    config::Config,
    doctor::preconditions::{capabilities, hidden_mounts},
    fence, index,
    maps::{Heads, Tables, Words},
    pins::PinRoot,
    plan::{self, OpenFlows, Plan},
    running::Running,
    state::{Recalled, State},
    time::TickLength,
};

/// How to apply a configuration.
#[derive(Clone, Debug, Default)]
pub struct ApplyRequest {
    /// The reason, for the journal.
    pub reason: Option<String>,
    /// Apply even if virtual addresses change their live colour because they move to another deployment.
    pub force: bool,
}

/// An instance that `attach` has created.
///
/// Neither opening nor dropping it changes anything, and several processes may have it open. It keeps the maps that it has opened, so
/// open it again after `detach --all`.
#[derive(Debug)]
pub struct Instance {
    pub(crate) paths: Paths,
    pub(crate) words: Words,
    pub(crate) state: State,
    pub(crate) tick_length: TickLength,
}

impl Instance {
    /// Opens what is pinned in `paths`.
    pub fn open(paths: &Paths) -> Result<Self, Error> {
        fence::repair(paths);
        // A missing privilege is reported as such, not as a failure to read a file.
        let pin_root = PinRoot::inspect(paths).or_else(|error| capabilities().map_err(Error::from).and(Err(error)))?;
        let meta: Meta = match pin_root {
            PinRoot::Instance { meta, .. } => meta,
            PinRoot::Empty | PinRoot::Unfinished => {
                let hint = hidden_mounts(&paths.pin_root).unwrap_or_default();
                return Err(Error::NoInstance { pin_root: paths.pin_root.clone(), hint });
            }
        };
        let (words, tick_length) = (Words::open(paths)?, TickLength::new(meta));
        let state = State::of(paths, &meta);
        Ok(Self { paths: paths.clone(), words, state, tick_length })
    }

    /// The directories of its pins and its state.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Whether it is still the pinned instance. After `detach --all` and a new attach, another instance is pinned there.
    pub fn is_current(&self) -> bool {
        self.state.is_pinned()
    }

    /// Warnings about the state directory from successful calls that have changed something. Each is a sentence, and is
    /// returned only once.
    pub fn warnings(&self) -> Vec<String> {
        self.state.take_warnings()
    }

    /// The present problems with the state directory, one sentence each: it belongs to another instance, the instance keeps its
    /// state elsewhere, part of it cannot be parsed, it cannot be read or does not respond. Changes nothing.
    pub fn check_state(&self) -> Vec<String> {
        self.state.check(&self.words)
    }

    /// The changes that [`apply`](Self::apply) would make.
    pub fn plan(&self, config: &Config) -> Result<Plan, Error> {
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let is_new = |name| running.deployments.get(name).is_none_or(|running| running.word.generation() == 0);
        let recalled = if config.deployments.iter().any(|deployment| is_new(&deployment.name)) {
            self.state.given().recall()?
        } else {
            Recalled::default()
        };
        self.compare(config, &tables, &running, &recalled)
    }

    /// The changes to the running state. Counts flows only if something is removed that may have flows.
    pub(crate) fn compare(
        &self,
        config: &Config,
        tables: &Tables,
        running: &Running,
        recalled: &Recalled,
    ) -> Result<Plan, Error> {
        let is_indexed = index::is_settled(&Heads::open(&self.paths)?, tables, &running.published);
        let plan = |open: &OpenFlows| {
            let last = |name: &str| recalled.moment(name);
            let mut plan = plan::plan(config, running, self.tick_length, last, open);
            if !is_indexed {
                plan.finish();
            }
            plan
        };
        let without_flows = plan(&OpenFlows::new());
        if !without_flows.removes_backends() {
            return Ok(without_flows);
        }
        let counts = self.fold_open_flows(&tables.backends, OpenFlows::new, |counts, open| {
            *counts.entry(open.flow.backend.slot()).or_default() += 1;
        })?;
        let mut open = OpenFlows::new();
        for (slot, flows) in counts.into_iter().flatten() {
            *open.entry(slot).or_default() += flows;
        }
        Ok(plan(&open))
    }

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
        }
        self.state.warn(state.take_warnings());
        applied
    }
}
