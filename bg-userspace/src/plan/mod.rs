//! The plan of an apply: the difference between a configuration and the running state.
//!
//! `plan` prints it, and `apply` executes it, service by service. If it is empty, there is nothing to do.

mod begin;
mod beginning;
mod change;
mod compare;
mod service;
mod settings;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use bg_common::ServiceKey;
use serde::Serialize;

pub use self::{
    beginning::{Because, Beginning, ColourChange},
    change::{Action, Change},
};
pub(crate) use self::{
    service::{OpenFlows, service_needs_work},
    settings::{deployment_needs_work, deployment_row, testers_change},
};
use crate::{
    config::{Config, protocol_name},
    history::Moment,
    running::{Running, RunningService, address_of, service_key},
    time::TickLength,
};

/// The changes that an apply would make, in the order of the configuration. Removals are last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// All changes.
    pub changes: Vec<Change>,
    /// Virtual addresses that would change their live colour because they move to another deployment. An apply with such changes is refused
    /// unless it is forced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub colour_changes: Vec<ColourChange>,
}

impl Plan {
    /// Whether the running state matches the configuration.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Notes that the work of a killed apply is to be completed, although nothing changes.
    pub(crate) fn finish(&mut self) {
        if self.is_empty() {
            self.changes.push(Change { deployment: "(all)".to_owned(), service: None, action: Action::Finish });
        }
    }

    /// Whether anything is removed that may have open flows.
    pub(crate) fn removes_backends(&self) -> bool {
        let removes =
            |change: &Change| matches!(change.action, Action::RemoveService { .. } | Action::RemoveBackend { .. });
        self.changes.iter().any(removes)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes.iter().try_for_each(|change| writeln!(f, "{change}"))?;
        self.colour_changes
            .iter()
            .try_for_each(|change| writeln!(f, "! {}: {change}; refused without --force", change.deployment))
    }
}

/// Compares everything. `last` returns the entry of a deployment in the state directory, `open` the numbers of flows that removals
/// end.
pub(crate) fn plan(
    config: &Config,
    running: &Running,
    length: TickLength,
    last: impl Fn(&str) -> Option<Moment>,
    open: &OpenFlows,
) -> Plan {
    let mut plan = Plan::default();
    for deployment in &config.deployments {
        let current = running.deployments.get(&deployment.name);
        let beginning = Beginning::of(deployment, running, |index| running.word(index), last(&deployment.name));
        let live = current.filter(|current| current.word.generation() != 0).map(|current| current.word.live());
        plan.colour_changes.extend(begin::colour_changes(deployment, running, live.unwrap_or(beginning.live)));
        plan.changes.extend(settings::deployment_changes(deployment, current, length, &beginning));
        for service in &deployment.services {
            let key = service_key(service.vip, service.protocol);
            let of_deployment =
                |running: &&RunningService| Some(running.deployment) == current.map(|current| current.index);
            let service_now = running.by_vip(&key).filter(of_deployment);
            plan.changes.extend(service::service_changes(deployment, service, current, service_now, open));
        }
    }
    plan.changes.extend(removals(config, running, open));
    if !running.left_over.is_empty() {
        plan.finish();
    }
    plan
}

fn removals(config: &Config, running: &Running, open: &OpenFlows) -> Vec<Change> {
    let wanted: HashMap<&str, HashSet<ServiceKey>> = config
        .deployments
        .iter()
        .map(|deployment| {
            let keys = deployment.services.iter().map(|service| service_key(service.vip, service.protocol));
            (deployment.name.as_str(), keys.collect())
        })
        .collect();
    let mut changes = Vec::new();
    let mut ended: HashMap<&str, u64> = HashMap::new();
    for service in &running.services {
        let deployment = running.name_of(service.deployment).unwrap_or("?");
        if wanted.get(deployment).is_some_and(|services| services.contains(&service.vip)) {
            continue;
        }
        let protocol = bg_common::Protocol::from_u8(service.vip.protocol).map_or("?", protocol_name);
        let slots = service.backends.iter().flatten().map(|backend| backend.slot);
        let open_flows = slots.filter_map(|slot| open.get(&slot)).sum();
        *ended.entry(deployment).or_default() += open_flows;
        changes.push(Change {
            deployment: deployment.to_owned(),
            service: Some(service.name.clone()),
            action: Action::RemoveService { vip: address_of(&service.vip), protocol, open_flows },
        });
    }
    let mut gone: Vec<&str> =
        running.deployments.keys().map(String::as_str).filter(|name| !wanted.contains_key(name)).collect();
    gone.sort_unstable();
    changes.extend(gone.into_iter().map(|deployment| Change {
        deployment: deployment.to_owned(),
        service: None,
        action: Action::RemoveDeployment { open_flows: ended.get(deployment).copied().unwrap_or(0) },
    }));
    changes
}
