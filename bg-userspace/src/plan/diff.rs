//! The tree of actions.

use std::collections::{BTreeSet, HashMap, HashSet};

use bg_common::{Colour, Protocol};

use super::{
    Plan, begin,
    beginning::{Beginning, ColourChange},
    change::{Action, Change},
    service::service_actions,
    settings::deployment_actions,
};
use crate::{
    config::{Config, Deployment, Service, protocol_name},
    history::Moment,
    running::{Running, RunningDeployment, RunningService, address_of, service_key},
    time::TickLength,
};

/// The difference between a configuration and the running state.
pub(crate) struct Diff<'a> {
    /// The deployments of the configuration, in its order.
    pub(crate) deployments: Vec<DeploymentDiff<'a>>,
    /// The running services that are not in the configuration.
    pub(crate) removed_services: Vec<Removed<'a, RunningService>>,
    /// The running deployments that are not in the configuration.
    pub(crate) removed_deployments: Vec<Removed<'a, RunningDeployment>>,
    /// Virtual addresses that change their live colour.
    pub(crate) colour_changes: Vec<ColourChange>,
    /// Whether a killed apply has left something that belongs to no deployment of the configuration.
    pub(crate) is_unfinished: bool,
    /// The gates that change. They are not in the maps.
    pub(crate) gates: Vec<Change>,
}

/// A deployment of the configuration.
pub(crate) struct DeploymentDiff<'a> {
    pub(crate) wanted: &'a Deployment,
    pub(crate) current: Option<&'a RunningDeployment>,
    /// What changes of the deployment itself.
    pub(crate) actions: Vec<Action>,
    /// Its services, in the order of the configuration.
    pub(crate) services: Vec<ServiceDiff<'a>>,
}

/// A service of the configuration.
pub(crate) struct ServiceDiff<'a> {
    pub(crate) wanted: &'a Service,
    /// The running service of the same deployment and virtual address.
    pub(crate) current: Option<&'a RunningService>,
    /// What changes of the service and its backends.
    pub(crate) actions: Vec<Action>,
}

/// A service or deployment that is removed.
pub(crate) struct Removed<'a, T> {
    pub(crate) current: &'a T,
    change: Change,
}

impl<'a> Diff<'a> {
    /// Compares everything. `last` returns the entry of a deployment in the state directory. No open flows are counted yet.
    pub(crate) fn new(
        config: &'a Config,
        running: &'a Running,
        length: TickLength,
        last: impl Fn(&str) -> Option<Moment>,
    ) -> Self {
        let mut colour_changes = Vec::new();
        let deployment = |wanted: &'a Deployment| {
            let current = running.deployments.get(&wanted.name);
            let beginning = Beginning::of(wanted, running, |index| running.reading(index), last(&wanted.name));
            let live = current.filter(|current| current.word.generation() != 0).map(|current| current.word.live());
            colour_changes.extend(begin::colour_changes(wanted, running, live.unwrap_or(beginning.live)));
            let actions = deployment_actions(wanted, current, length, beginning);
            let services = wanted.services.iter().map(|service| ServiceDiff::new(service, current, running)).collect();
            DeploymentDiff { wanted, current, actions, services }
        };
        let deployments: Vec<_> = config.deployments.iter().map(deployment).collect();

        let stay = deployments.iter().flat_map(|deployment| &deployment.services);
        let stay: HashSet<u16> = stay.filter_map(|service| Some(service.current?.index)).collect();
        let gone = running.services.iter().filter(|service| !stay.contains(&service.index));
        let removed_services =
            gone.map(|current| Removed { current, change: remove_service(current, running) }).collect();

        let stay: HashSet<&str> = config.deployments.iter().map(|deployment| deployment.name.as_str()).collect();
        let mut gone: Vec<_> = running.deployments.iter().filter(|(name, _)| !stay.contains(name.as_str())).collect();
        gone.sort_unstable_by_key(|(name, _)| *name);
        let removed = gone.into_iter().map(|(name, current)| {
            let action = Action::RemoveDeployment { open_flows: 0 };
            Removed { current, change: Change { deployment: name.clone(), service: None, action } }
        });
        let removed_deployments = removed.collect();

        let is_unfinished = !running.left_over.is_empty();
        let gates = Vec::new();
        Self { deployments, removed_services, removed_deployments, colour_changes, is_unfinished, gates }
    }

    /// Whether there is nothing to do in the maps.
    pub(crate) fn is_empty(&self) -> bool {
        let is_same = |deployment: &DeploymentDiff<'_>| {
            deployment.actions.is_empty() && deployment.services.iter().all(|service| service.actions.is_empty())
        };
        let removes = !self.removed_services.is_empty() || !self.removed_deployments.is_empty();
        !self.is_unfinished && !removes && self.deployments.iter().all(is_same)
    }

    /// The names of the deployments that change.
    pub(crate) fn changed_deployments(&self) -> BTreeSet<&str> {
        let changes = |deployment: &&DeploymentDiff<'_>| {
            !deployment.actions.is_empty() || deployment.services.iter().any(|service| !service.actions.is_empty())
        };
        let changed = self.deployments.iter().filter(changes).map(|deployment| deployment.wanted.name.as_str());
        let services = self.removed_services.iter().map(|removed| removed.change.deployment.as_str());
        let deployments = self.removed_deployments.iter().map(|removed| removed.change.deployment.as_str());
        let gates = self.gates.iter().map(|change| change.deployment.as_str());
        changed.chain(services).chain(deployments).chain(gates).collect()
    }

    /// Whether anything is removed that may have open flows.
    pub(crate) fn removes_backends(&self) -> bool {
        let mut services = self.deployments.iter().flat_map(|deployment| &deployment.services);
        let removes = |action: &Action| matches!(action, Action::RemoveBackend { .. } | Action::RemoveListener { .. });
        !self.removed_services.is_empty() || services.any(|service| service.actions.iter().any(removes))
    }

    /// Notes how many open flows each removal ends: the flows of each backend are in `open`, by its slot.
    pub(crate) fn note_open_flows(&mut self, open: &HashMap<u32, u64>) {
        let flows_of = |slot: u32| open.get(&slot).copied().unwrap_or(0);
        let services = self.deployments.iter_mut().flat_map(|deployment| &mut deployment.services);
        for action in services.flat_map(|service| &mut service.actions) {
            if let Action::RemoveBackend { slot, open_flows, .. } | Action::RemoveListener { slot, open_flows, .. } =
                action
            {
                *open_flows = flows_of(slot.0);
            }
        }
        let mut of_deployment: HashMap<u16, u64> = HashMap::new();
        for Removed { current, change } in &mut self.removed_services {
            let flows = current.slots().map(flows_of).sum();
            *of_deployment.entry(current.deployment).or_default() += flows;
            if let Action::RemoveService { open_flows, .. } = &mut change.action {
                *open_flows = flows;
            }
        }
        for Removed { current, change } in &mut self.removed_deployments {
            if let Action::RemoveDeployment { open_flows } = &mut change.action {
                *open_flows = of_deployment.get(&current.index).copied().unwrap_or(0);
            }
        }
    }

    /// All actions as a list.
    pub(crate) fn into_plan(self) -> Plan {
        let (mut changes, mut gates) = (Vec::new(), self.gates);
        for DeploymentDiff { wanted, actions, services, .. } in self.deployments {
            let mut add = |service: Option<&Service>, actions: Vec<Action>| {
                let service = service.map(|service| &service.name);
                let change = |action| Change { deployment: wanted.name.clone(), service: service.cloned(), action };
                changes.extend(actions.into_iter().map(change));
            };
            add(None, actions);
            add(
                None,
                gates.extract_if(.., |change| change.deployment == wanted.name).map(|change| change.action).collect(),
            );
            services.into_iter().for_each(|service| add(Some(service.wanted), service.actions));
        }
        changes.extend(self.removed_services.into_iter().map(|removed| removed.change));
        changes.extend(self.removed_deployments.into_iter().map(|removed| removed.change));
        if self.is_unfinished && changes.is_empty() {
            changes.push(Change { deployment: "(all)".to_owned(), service: None, action: Action::Finish });
        }
        Plan { changes, colour_changes: self.colour_changes, warnings: Vec::new() }
    }
}

impl<'a> DeploymentDiff<'a> {
    /// Whether it has no live word yet.
    pub(crate) fn begins(&self) -> bool {
        self.current.is_none_or(|current| current.word.generation() == 0)
    }

    /// The state with which it is to start, if it is new.
    pub(crate) fn beginning(&self) -> Option<Moment> {
        self.actions.iter().find_map(|action| match action {
            Action::AddDeployment(beginning) => Some(beginning.moment()),
            _ => None,
        })
    }

    /// Whether open flows have to be checked, because testers change or a killed apply has changed some.
    pub(crate) fn changes_testers(&self) -> bool {
        let is_tester = |action: &Action| matches!(action, Action::AddTester { .. } | Action::RemoveTester { .. });
        self.current.is_some_and(|current| current.is_unsettled || self.actions.iter().any(is_tester))
    }

    /// The services whose rows change: because of their own actions, or because the deployment gets its first tester or loses its last one,
    /// which every row of its services tells.
    pub(crate) fn changed_services(&self) -> impl Iterator<Item = &ServiceDiff<'a>> {
        let has_testers = u8::from(!self.wanted.testers.is_empty());
        self.services.iter().filter(move |service| {
            let mut rows = service.current.into_iter().flat_map(RunningService::rows);
            !service.actions.is_empty() || rows.any(|row| row.has_testers != has_testers)
        })
    }
}

impl<'a> ServiceDiff<'a> {
    fn new(wanted: &'a Service, deployment: Option<&RunningDeployment>, running: &'a Running) -> Self {
        let of_deployment = |service: &&RunningService| deployment.is_some_and(|of| of.index == service.deployment);
        let current = running.by_vip(&service_key(wanted.vip, wanted.protocol)).filter(of_deployment);
        Self { wanted, current, actions: service_actions(wanted, deployment, current) }
    }

    /// The actions for the backends of a colour. If there are any, the colour gets a new table.
    pub(crate) fn backend_actions(&self, colour: Colour) -> impl Iterator<Item = &Action> {
        self.actions.iter().filter(move |action| action.colour() == Some(colour))
    }
}

fn remove_service(current: &RunningService, running: &Running) -> Change {
    let protocol = Protocol::from_u8(current.vip.protocol).map_or("?", protocol_name);
    Change {
        deployment: running.name_of(current.deployment).unwrap_or("?").to_owned(),
        service: Some(current.name.clone()),
        action: Action::RemoveService { vip: address_of(&current.vip), protocol, open_flows: 0 },
    }
}
