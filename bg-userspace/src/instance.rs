//! A pinned instance, opened.

use bg_common::Meta;

use crate::{
    Error, Paths,
    apply::apply,
    config::Config,
    maps::{Tables, Words},
    pins::PinRoot,
    plan::{self, Plan},
    running::Running,
    time::TickLength,
};

/// An instance that `attach` has made. Opening it changes nothing, and dropping it neither; several
/// processes may have it open.
#[derive(Debug)]
pub struct Instance {
    pub(crate) paths: Paths,
    pub(crate) words: Words,
    pub(crate) tick_length: TickLength,
}

impl Instance {
    /// Opens what is pinned in `paths`.
    pub fn open(paths: &Paths) -> Result<Self, Error> {
        let meta: Meta = match PinRoot::inspect(paths)? {
            PinRoot::Instance { meta, .. } => meta,
            PinRoot::Empty | PinRoot::Unfinished => {
                return Err(Error::NoInstance { pin_root: paths.pin_root.clone() });
            }
        };
        Ok(Self { paths: paths.clone(), words: Words::open(paths)?, tick_length: TickLength::new(meta) })
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
        apply(&self.paths, &self.words, self.tick_length, config)
    }
}
