//! A switch whose reason is looked at again at the last moment.

use super::{
    decision::{Kind, goal_of},
    request::{SwitchRequest, Switched},
};
use crate::{
    Error, Instance, Refusal,
    history::Action,
    live::Reading,
    maps::Tables,
    running::{Running, RunningService},
};

impl Instance {
    /// Makes a colour live if `may` still says so under the lock. It is given what the maps say then of the services, which is what packets go by. Whoever
    /// wants this switch has decided by what was seen before, and has waited for the lock since.
    ///
    /// # Errors
    /// [`Refusal::NotDue`] if the deployment is frozen, or with what `may` says.
    pub(crate) fn switch_provided(
        &self,
        deployment: &str,
        request: &SwitchRequest,
        may: impl Fn(&[&RunningService]) -> Result<(), String>,
    ) -> Result<Switched, Error> {
        let (index, _) = self.deployment(deployment)?;
        let goal = goal_of(Kind::Switch, request);
        let still = |name: &str, reading: &Reading| {
            let is_due = match self.frozen_until(index) {
                Some(_) => Err("it is frozen".to_owned()),
                None => self.services_in_maps(index, &may),
            };
            is_due.map_err(|why| Refusal::NotDue { deployment: name.to_owned(), why })?;
            goal(name, reading)
        };
        self.change(deployment, request, Action::Switch, still)
    }

    fn services_in_maps(
        &self,
        deployment: u16,
        may: impl Fn(&[&RunningService]) -> Result<(), String>,
    ) -> Result<(), String> {
        let read = Tables::open(&self.paths).and_then(|tables| Running::read(&self.words, &tables));
        let running = read.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        may(&running.services_of(deployment).collect::<Vec<_>>())
    }
}
