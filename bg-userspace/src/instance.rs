//! A pinned instance, opened.

use bg_common::{FlowHash, Meta};

use crate::{
    Error, Paths,
    apply::apply,
    config::Config,
    doctor::preconditions::capabilities,
    maps::{Tables, Words},
    pins::PinRoot,
    plan::{self, Plan},
    running::Running,
    time::TickLength,
};

/// How to apply a configuration.
#[derive(Clone, Debug, Default)]
pub struct ApplyRequest {
    /// Why, for the journal.
    pub reason: Option<String>,
}

/// An instance that `attach` has made. Opening it changes nothing, and dropping it neither; several
/// processes may have it open. It stays with the maps that it has opened: after
/// `detach --all`, open it anew.
#[derive(Debug)]
pub struct Instance {
    pub(crate) paths: Paths,
    pub(crate) words: Words,
    pub(crate) tick_length: TickLength,
    /// Keys by which the flow tables are ordered.
    pub(crate) flow_hash: FlowHash,
}

impl Instance {
    /// Opens what is pinned in `paths`.
    pub fn open(paths: &Paths) -> Result<Self, Error> {
        // Who lacks privileges is told so rather than which file he may not read.
        let pin_root = PinRoot::inspect(paths).or_else(|error| capabilities().map_err(Error::from).and(Err(error)))?;
        let meta: Meta = match pin_root {
            PinRoot::Instance { meta, .. } => meta,
            PinRoot::Empty | PinRoot::Unfinished => {
                return Err(Error::NoInstance { pin_root: paths.pin_root.clone() });
            }
        };
        let (words, tick_length) = (Words::open(paths)?, TickLength::new(meta));
        Ok(Self { paths: paths.clone(), words, tick_length, flow_hash: meta.flow_hash })
    }

    /// Where it lives.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// What [`apply`](Self::apply) would change.
    pub fn plan(&self, config: &Config) -> Result<Plan, Error> {
        let running = Running::read(&self.words, &Tables::open(&self.paths)?)?;
        Ok(plan::plan(config, &running, self.tick_length))
    }

    /// Makes the running state what `config` says, and returns what was changed. Flows that a change does
    /// not concern are not disturbed, and the live colour of a deployment that exists stays. A call that
    /// was killed is completed by the next.
    pub fn apply(&self, config: &Config) -> Result<Plan, Error> {
        self.apply_as(config, &ApplyRequest::default())
    }

    /// The same as [`apply`](Self::apply), with what else there is to say about it.
    pub fn apply_as(&self, config: &Config, request: &ApplyRequest) -> Result<Plan, Error> {
        apply(&self.paths, &self.words, self.tick_length, config, request)
    }
}
