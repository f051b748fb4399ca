//! Comparing a configuration with an instance.

use super::{Plan, plan, service::OpenFlows};
use crate::{
    Error, Instance,
    config::Config,
    index,
    maps::{Heads, Tables},
    running::Running,
    state::Recalled,
};

impl Instance {
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
            let mut plan = plan(config, running, self.tick_length, last, open);
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
}
