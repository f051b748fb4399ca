//! Comparing a configuration with an instance.

use std::collections::HashMap;

use super::{Action, Change, Diff, Plan, listeners::with_listeners};
use crate::{
    Error, Instance,
    config::Config,
    index, kept_gates,
    maps::{Heads, Tables},
    running::Running,
    state::Recalled,
};

impl Instance {
    /// The changes that [`apply`](Self::apply) would make. If a controller still listens for an instance that is gone, an apply waits for its ports, and this does not.
    pub fn plan(&self, config: &Config) -> Result<Plan, Error> {
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let is_new = |name| running.deployments.get(name).is_none_or(|running| running.word.generation() == 0);
        let recalled = if config.deployments.iter().any(|deployment| is_new(&deployment.name)) {
            self.state.given().recall()?
        } else {
            Recalled::default()
        };
        let with = with_listeners(config, &running, self.state.given().home())?;
        self.state.warn(with.warnings.clone());
        let plan = self.diff(&with.config, &tables, &running, &recalled)?.into_plan();
        Ok(Plan { warnings: with.warnings, ..plan })
    }

    /// The difference to the running state. Counts flows only if something is removed that may have flows.
    pub(crate) fn diff<'a>(
        &self,
        config: &'a Config,
        tables: &Tables,
        running: &'a Running,
        recalled: &Recalled,
    ) -> Result<Diff<'a>, Error> {
        let mut diff = Diff::new(config, running, self.tick_length, |name| recalled.moment(name));
        let gates = kept_gates::changes(&self.paths, config).into_iter();
        diff.gates = gates
            .map(|change| {
                let action = Action::Set { setting: "gates", from: change.from, to: change.to };
                Change { deployment: change.deployment, service: None, action }
            })
            .collect();
        diff.is_unfinished |= !index::is_settled(&Heads::open(&self.paths)?, tables, &running.published);
        if diff.removes_backends() {
            let counts = self.fold_open_flows(&tables.backends, HashMap::<u32, u64>::new, |counts, open| {
                *counts.entry(open.flow.backend.slot()).or_default() += 1;
            })?;
            let mut open = HashMap::new();
            for (slot, flows) in counts.into_iter().flatten() {
                *open.entry(slot).or_default() += flows;
            }
            diff.note_open_flows(&open);
        }
        Ok(diff)
    }
}
