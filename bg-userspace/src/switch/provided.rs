//! A switch whose reason is looked at again at the last moment.

use super::{
    decision::{Kind, goal_of},
    request::{SwitchRequest, Switched},
};
use crate::{Error, Instance, Refusal, history::Action, live::Reading, maps::Tables, running::ServiceInMaps};

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
        may: impl Fn(&[ServiceInMaps]) -> Result<(), String>,
    ) -> Result<Switched, Error> {
        let (index, _) = self.deployment(deployment)?;
        // Before others wait for this call.
        let tables = Tables::open(&self.paths)?;
        let goal = goal_of(Kind::Switch, request);
        let still = |name: &str, reading: &Reading| {
            let is_due = match self.frozen_until(index) {
                Some(_) => Err("it is frozen".to_owned()),
                None => may(&ServiceInMaps::of(&tables, index)),
            };
            is_due.map_err(|why| Refusal::NotDue { deployment: name.to_owned(), why })?;
            goal(name, reading)
        };
        self.change(deployment, request, Action::Switch, still)
    }
}
