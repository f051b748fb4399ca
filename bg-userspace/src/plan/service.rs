//! The changes of a service and its backends.

use std::{collections::HashMap, net::SocketAddr};

use bg_common::{Colour, ServiceKey, ServiceRow};

use super::change::{Action, Change};
use crate::{
    config::{BackendSpec, Deployment, Service, mode_name, protocol_name},
    running::{RunningBackend, RunningDeployment, RunningService, UNSETTLED, address_of},
};

/// The numbers of open flows, by the slot of their backend.
pub(crate) type OpenFlows = HashMap<u32, u64>;

/// Whether an apply has to do anything for a service. `current` is the running service of the same deployment and virtual address.
pub(crate) fn service_needs_work(
    deployment: &Deployment,
    wanted: &Service,
    running: Option<&RunningDeployment>,
    current: Option<&RunningService>,
) -> bool {
    let has_testers = u8::from(!deployment.testers.is_empty());
    // The first or the last tester changes the rows of each service. The plan lists the tester.
    let testers_change = current.is_some_and(|current| rows(current).any(|row| row.has_testers != has_testers));
    testers_change || !service_changes(deployment, wanted, running, current, &OpenFlows::new()).is_empty()
}

fn rows(service: &RunningService) -> impl Iterator<Item = ServiceRow> {
    std::iter::once(service.row).chain(service.preview.map(|(_, row)| row))
}

/// The changes of a service. `current` is the running service of the same deployment, `running`, and virtual address.
pub(super) fn service_changes(
    deployment: &Deployment,
    wanted: &Service,
    running: Option<&RunningDeployment>,
    current: Option<&RunningService>,
    open: &OpenFlows,
) -> Vec<Change> {
    let change = |action| Change { deployment: deployment.name.clone(), service: Some(wanted.name.clone()), action };
    let mut changes = Vec::new();
    match current {
        None => changes.push(change(Action::AddService {
            vip: wanted.vip,
            protocol: protocol_name(wanted.protocol),
            mode: mode_name(wanted.mode),
        })),
        Some(current) => {
            let mut set = |setting, from: String, to: String| {
                if from != to {
                    changes.push(change(Action::Set { setting, from, to }));
                }
            };
            let preview =
                |address: Option<SocketAddr>| address.map_or("none".to_owned(), |address| address.to_string());
            set("name", current.name.clone(), wanted.name.clone());
            set("mode", mode_name(current.mode).to_owned(), mode_name(wanted.mode).to_owned());
            set("preview", preview(current.preview.map(|(key, _)| address_of(&key))), preview(wanted.preview));
            // Compared with the running testers, because a killed apply may have changed only one of the two.
            let has_testers = u8::from(running.is_some_and(|running| !running.testers.is_empty()));
            let agree = |row: ServiceRow| row.has_testers == has_testers && row.tables == current.row.tables;
            // A preview address that has ended stays in its row until no flow refers to it.
            let is_left_over = current.preview.is_none() && current.preview_row != ServiceKey::default();
            if !rows(current).all(agree) || (is_left_over && wanted.preview.is_none()) {
                changes.push(change(Action::Finish));
            }
        }
    }
    for colour in Colour::ALL {
        let running = current.map_or(&[][..], |current| &current.backends[colour as usize]);
        changes.extend(backend_actions(wanted, colour, running, open).into_iter().map(change));
    }
    changes
}

fn backend_actions(wanted: &Service, colour: Colour, running: &[RunningBackend], open: &OpenFlows) -> Vec<Action> {
    let of_address: HashMap<SocketAddr, &RunningBackend> = running
        .iter()
        .filter(|backend| backend.mode == wanted.mode)
        .map(|backend| (backend.address, backend))
        .collect();
    let specs: HashMap<SocketAddr, &BackendSpec> =
        wanted.backends(colour).iter().map(|spec| (spec.address, spec)).collect();
    let mut actions = Vec::new();
    for spec in wanted.backends(colour) {
        let (address, weight) = (spec.address, spec.weight);
        match of_address.get(&address) {
            None => actions.push(Action::AddBackend { colour, address, weight }),
            Some(backend) if backend.weight != weight => {
                let from = (backend.weight != UNSETTLED).then_some(backend.weight);
                actions.push(Action::SetWeight { colour, address, from, to: weight });
            }
            Some(_) => {}
        }
    }
    let stays = |backend: &RunningBackend| backend.mode == wanted.mode && specs.contains_key(&backend.address);
    let gone = running.iter().filter(|backend| !stays(backend));
    actions.extend(gone.map(|backend| Action::RemoveBackend {
        colour,
        address: backend.address,
        open_flows: open.get(&backend.slot).copied().unwrap_or(0),
    }));
    actions
}
