//! The actions for a service and its backends.

use std::{collections::HashMap, net::SocketAddr};

use bg_common::{Colour, Mode, ServiceKey, ServiceRow};

use super::change::{Action, Slot};
use crate::{
    config::{BackendSpec, Encap, Service, mode_name, protocol_name},
    running::{RunningBackend, RunningDeployment, RunningService, UNSETTLED, address_of},
};

/// The actions for a service and its backends. `current` is the running service of the same deployment, `running`, and virtual address.
pub(super) fn service_actions(
    wanted: &Service,
    running: Option<&RunningDeployment>,
    current: Option<&RunningService>,
) -> Vec<Action> {
    let mut actions = match current {
        None => vec![Action::AddService {
            vip: wanted.vip,
            protocol: protocol_name(wanted.protocol),
            mode: mode_name(wanted.mode),
        }],
        Some(current) => settings_actions(wanted, running, current),
    };
    for colour in Colour::ALL {
        let of_colour = |of: fn(&RunningService) -> &[Vec<RunningBackend>; 2]| {
            current.map_or(&[][..], |current| &of(current)[colour as usize])
        };
        let (backends, listeners) = (of_colour(|of| &of.backends), of_colour(|of| &of.listeners));
        actions.extend(backend_actions(wanted, colour, backends, listeners));
    }
    actions
}

fn settings_actions(wanted: &Service, running: Option<&RunningDeployment>, current: &RunningService) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut set = |setting, from: String, to: String| {
        if from != to {
            actions.push(Action::Set { setting, from, to });
        }
    };
    let preview = |address: Option<SocketAddr>| address.map_or("none".to_owned(), |address| address.to_string());
    set("name", current.name.clone(), wanted.name.clone());
    set("mode", mode_name(current.mode).to_owned(), mode_name(wanted.mode).to_owned());
    set("preview", preview(current.preview.map(|(key, _)| address_of(&key))), preview(wanted.preview));
    let mirror = |is_mirrored| if is_mirrored { "idle" } else { "none" }.to_owned();
    set("mirror", mirror(current.is_mirrored), mirror(wanted.is_mirrored));
    // What another mode has left of these makes no difference.
    let of_tee = |mode, is_so: bool| mode == Mode::Tee && is_so;
    let header = |has_header| if has_header { "v2" } else { "none" }.to_owned();
    let (now, then) = (&current.tee, &wanted.tee);
    set(
        "proxy_protocol",
        header(of_tee(current.mode, now.proxy_protocol)),
        header(of_tee(wanted.mode, then.proxy_protocol)),
    );
    let (now, then) = (of_tee(current.mode, now.compare), of_tee(wanted.mode, then.compare));
    set("compare", now.to_string(), then.to_string());
    let encap = |mode, encap| if mode == Mode::Gue || mode == Mode::Ipip { encap } else { Encap::default() };
    let (now, then) = (encap(current.mode, current.encap), encap(wanted.mode, wanted.encap));
    set("gue_port", now.gue_port.to_string(), then.gue_port.to_string());
    let prefixes = |encap: Encap| match encap.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>() {
        none if none.is_empty() => "none".to_owned(),
        some => some.join(", "),
    };
    set("outer_source", prefixes(now), prefixes(then));
    // Compared with the running testers, because a killed apply may have changed only one of the two.
    let has_testers = u8::from(running.is_some_and(|running| !running.testers.is_empty()));
    let agree = |row: ServiceRow| row.has_testers == has_testers && row.tables == current.row.tables;
    // A preview address that has ended stays in its row until no flow refers to it.
    let is_left_over = current.preview.is_none() && current.preview_row != ServiceKey::default();
    if !current.rows().all(agree) || (is_left_over && wanted.preview.is_none()) {
        actions.push(Action::Finish);
    }
    actions
}

fn backend_actions(
    wanted: &Service,
    colour: Colour,
    backends: &[RunningBackend],
    listeners: &[RunningBackend],
) -> Vec<Action> {
    let running = || backends.iter().chain(listeners);
    let of_address: HashMap<SocketAddr, &RunningBackend> =
        running().filter(|backend| backend.mode == wanted.mode).map(|backend| (backend.address, backend)).collect();
    let specs: HashMap<SocketAddr, &BackendSpec> =
        wanted.backends(colour).iter().map(|spec| (spec.address, spec)).collect();
    let mut actions = Vec::new();
    for spec in wanted.backends(colour) {
        let (address, weight) = (spec.address, spec.weight);
        match of_address.get(&address) {
            None => actions.push(Action::AddBackend { colour, address, weight }),
            Some(backend) if backend.weight != weight => {
                let from = (backend.weight != UNSETTLED).then_some(backend.weight);
                actions.push(Action::SetWeight { colour, address, slot: Slot(backend.slot), from, to: weight });
            }
            Some(_) => {}
        }
    }
    // In mode `tee` a row of mode `local` is that of a listener.
    let listener = wanted.tee.listen.filter(|_| wanted.mode == Mode::Tee).map(|listen| listen[colour as usize]);
    let is_listener = |backend: &RunningBackend| backend.mode == Mode::Local && Some(backend.address) == listener;
    if let Some(address) = listener {
        match running().find(|backend| is_listener(backend)) {
            None => actions.push(Action::AddListener { colour, address }),
            Some(backend) if backend.weight == UNSETTLED => {
                actions.push(Action::SetWeight { colour, address, slot: Slot(backend.slot), from: None, to: 1 });
            }
            Some(_) => {}
        }
    }
    let stays = |backend: &RunningBackend| {
        is_listener(backend) || (backend.mode == wanted.mode && specs.contains_key(&backend.address))
    };
    actions.extend(running().filter(|backend| !stays(backend)).map(|backend| {
        let (address, slot) = (backend.address, Slot(backend.slot));
        if listeners.contains(backend) {
            Action::RemoveListener { colour, address, slot, open_flows: 0 }
        } else {
            Action::RemoveBackend { colour, address, slot, open_flows: 0 }
        }
    }));
    actions
}
