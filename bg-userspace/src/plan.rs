//! What an apply would change: the difference between a configuration and the running state.
//!
//! `plan` shows it and `apply` acts on it, service by service; an empty one means that nothing is done.

use std::{collections::HashMap, fmt, net::SocketAddr, time::Duration};

use bg_common::{Colour, DeploymentRow, ServiceKey};
use serde::{Serialize, Serializer};

use crate::{
    config::{BackendSpec, Config, Deployment, OnSwitch, Prefix, Service, mode_name, protocol_name},
    running::{Running, RunningBackend, RunningDeployment, RunningService, UNSETTLED, address_of, padded, service_key},
    time::TickLength,
};

/// What an apply would change, in the order of the configuration; removals come last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// All changes.
    pub changes: Vec<Change>,
}

impl Plan {
    /// Whether the running state is what the configuration asks for.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Name of the deployment that it concerns.
    pub deployment: String,
    /// Name of the service, unless it concerns the deployment as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
}

/// What is done to a deployment or a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Action {
    /// The deployment begins.
    AddDeployment,
    /// The deployment ends; its flows are no longer switched.
    RemoveDeployment,
    /// The service begins.
    AddService {
        /// Its virtual address.
        vip: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// `nat` or `local`.
        mode: &'static str,
    },
    /// The service ends; its flows are no longer switched.
    RemoveService {
        /// Its virtual address.
        vip: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
    },
    /// A setting becomes another one.
    Set {
        /// Its key in the configuration.
        setting: &'static str,
        /// What it is.
        from: String,
        /// What it becomes.
        to: String,
    },
    /// A source reaches the idle colour from now on.
    AddTester {
        /// The source.
        prefix: String,
    },
    /// A source is treated as all others.
    RemoveTester {
        /// The source.
        prefix: String,
    },
    /// New flows may go to the backend.
    AddBackend {
        /// Its colour.
        #[serde(serialize_with = "colour_name")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
        /// Its weight.
        weight: u32,
    },
    /// The backend gets nothing more; its flows end.
    RemoveBackend {
        /// Its colour.
        #[serde(serialize_with = "colour_name")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
    },
    /// The backend's share of new flows changes; its flows stay.
    SetWeight {
        /// Its colour.
        #[serde(serialize_with = "colour_name")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
        /// What it was; `None` if an apply was killed while it changed.
        from: Option<u32>,
        /// What it becomes.
        to: u32,
    },
    /// What an apply that was killed has left unfinished is finished.
    Finish,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::AddDeployment
            | Action::AddService { .. }
            | Action::AddTester { .. }
            | Action::AddBackend { .. } => '+',
            Action::RemoveDeployment
            | Action::RemoveService { .. }
            | Action::RemoveTester { .. }
            | Action::RemoveBackend { .. } => '-',
            Action::Set { .. } | Action::SetWeight { .. } | Action::Finish => '~',
        };
        write!(f, "{sign} {}", self.deployment)?;
        if let Some(service) = &self.service {
            write!(f, " {service}")?;
        }
        match &self.action {
            Action::AddDeployment | Action::RemoveDeployment => Ok(()),
            Action::AddService { vip, protocol, mode } => write!(f, ": {vip}/{protocol}, {mode}"),
            Action::RemoveService { vip, protocol } => write!(f, ": {vip}/{protocol}"),
            Action::Set { setting, from, to } => write!(f, ": {setting} {from} -> {to}"),
            Action::AddTester { prefix } | Action::RemoveTester { prefix } => write!(f, ": tester {prefix}"),
            Action::AddBackend { colour, address, weight } => {
                write!(f, ": {} {address} weight {weight}", colour.name())
            }
            Action::RemoveBackend { colour, address } => write!(f, ": {} {address}", colour.name()),
            Action::SetWeight { colour, address, from, to } => {
                let from = from.map_or("unfinished".to_owned(), |weight| weight.to_string());
                write!(f, ": {} {address} weight {from} -> {to}", colour.name())
            }
            Action::Finish => write!(f, ": finish what a killed apply has left"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes.iter().try_for_each(|change| writeln!(f, "{change}"))
    }
}

/// Compares everything.
pub(crate) fn plan(config: &Config, running: &Running, length: TickLength) -> Plan {
    let by_vip: HashMap<ServiceKey, &RunningService> =
        running.services.iter().map(|service| (service.vip, service)).collect();
    let mut plan = Plan::default();
    for deployment in &config.deployments {
        let current = running.deployments.get(&deployment.name);
        plan.changes.extend(deployment_changes(deployment, current, length));
        for service in &deployment.services {
            let key = service_key(service.vip, service.protocol);
            let current = by_vip
                .get(&key)
                .copied()
                .filter(|running| Some(running.deployment) == current.map(|current| current.index));
            plan.changes.extend(service_changes(deployment, service, current));
        }
    }
    plan.changes.extend(removals(config, running));
    let is_unfinished = !running.left_over.is_empty();
    if is_unfinished && plan.is_empty() {
        plan.changes.push(Change { deployment: "(all)".to_owned(), service: None, action: Action::Finish });
    }
    plan
}

/// What has to change of a deployment's settings.
pub(crate) fn deployment_changes(
    wanted: &Deployment,
    current: Option<&RunningDeployment>,
    length: TickLength,
) -> Vec<Change> {
    let change = |action| Change { deployment: wanted.name.clone(), service: None, action };
    let tester = |prefix: &Prefix| prefix.to_string();
    let Some(current) = current else {
        let testers = wanted.testers.iter().map(|prefix| change(Action::AddTester { prefix: tester(prefix) }));
        return std::iter::once(change(Action::AddDeployment)).chain(testers).collect();
    };
    let mut changes: Vec<Change> = settings_changes(wanted, &current.row, length).into_iter().map(change).collect();
    if current.word.generation() == 0 || current.is_unsettled {
        changes.push(change(Action::Finish));
    }
    let added = wanted.testers.iter().filter(|prefix| !current.testers.contains(prefix));
    changes.extend(added.map(|prefix| change(Action::AddTester { prefix: tester(prefix) })));
    let removed = current.testers.iter().filter(|prefix| !wanted.testers.contains(prefix));
    changes.extend(removed.map(|prefix| change(Action::RemoveTester { prefix: tester(prefix) })));
    changes
}

/// Whether other sources are testers than before, or an apply was killed while it changed them.
pub(crate) fn testers_change(wanted: &Deployment, current: &RunningDeployment) -> bool {
    let same = |a: &[Prefix], b: &[Prefix]| a.iter().all(|prefix| b.contains(prefix));
    current.is_unsettled || !same(&wanted.testers, &current.testers) || !same(&current.testers, &wanted.testers)
}

fn settings_changes(wanted: &Deployment, row: &DeploymentRow, length: TickLength) -> Vec<Action> {
    let new = deployment_row(wanted, length);
    let on_switch = |row: &DeploymentRow| if row.on_switch == 0 { OnSwitch::Drain } else { OnSwitch::Cut };
    let idle = |ms| humantime::format_duration(Duration::from_millis(ms)).to_string();
    let drain = |ms| if ms == 0 { "never".to_owned() } else { idle(ms) };
    let mut actions = Vec::new();
    let mut set = |setting, from: String, to: String| {
        if from != to {
            actions.push(Action::Set { setting, from, to });
        }
    };
    set("on_switch", on_switch(row).name().to_owned(), on_switch(&new).name().to_owned());
    set("drain_timeout", drain(row.drain_timeout_ms), drain(new.drain_timeout_ms));
    set("tcp_idle_timeout", idle(row.tcp_idle_ms), idle(new.tcp_idle_ms));
    set("udp_idle_timeout", idle(row.udp_idle_ms), idle(new.udp_idle_ms));
    if actions.is_empty() && new != *row {
        // Times are the same, and other ticks stand for them.
        actions.push(Action::Finish);
    }
    actions
}

/// What has to change of a service; `current` is the one of the same deployment and virtual address.
pub(crate) fn service_changes(
    deployment: &Deployment,
    wanted: &Service,
    current: Option<&RunningService>,
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
            let has_testers = u8::from(!deployment.testers.is_empty());
            let rows = std::iter::once(current.row).chain(current.preview.map(|(_, row)| row));
            let agree = |row: bg_common::ServiceRow| row.has_testers == has_testers && row.tables == current.row.tables;
            if !rows.into_iter().all(agree) {
                changes.push(change(Action::Finish));
            }
        }
    }
    for colour in Colour::ALL {
        let running = current.map_or(&[][..], |current| &current.backends[colour as usize]);
        changes.extend(backend_actions(wanted, colour, running).into_iter().map(change));
    }
    changes
}

fn backend_actions(wanted: &Service, colour: Colour, running: &[RunningBackend]) -> Vec<Action> {
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
    actions.extend(
        running
            .iter()
            .filter(|backend| !stays(backend))
            .map(|backend| Action::RemoveBackend { colour, address: backend.address }),
    );
    actions
}

fn removals(config: &Config, running: &Running) -> Vec<Change> {
    let name_of: HashMap<u16, &str> =
        running.deployments.iter().map(|(name, deployment)| (deployment.index, name.as_str())).collect();
    let mut changes = Vec::new();
    for service in &running.services {
        let deployment = name_of.get(&service.deployment).copied().unwrap_or("?");
        let wanted = config.deployments.iter().find(|wanted| wanted.name == deployment);
        let stays = wanted.is_some_and(|wanted| {
            wanted.services.iter().any(|wanted| service_key(wanted.vip, wanted.protocol) == service.vip)
        });
        if !stays {
            let protocol = bg_common::Protocol::from_u8(service.vip.protocol).map_or("?", protocol_name);
            changes.push(Change {
                deployment: deployment.to_owned(),
                service: Some(service.name.clone()),
                action: Action::RemoveService { vip: address_of(&service.vip), protocol },
            });
        }
    }
    let mut gone: Vec<_> = running
        .deployments
        .keys()
        .filter(|name| !config.deployments.iter().any(|wanted| wanted.name == **name))
        .cloned()
        .collect();
    gone.sort();
    changes.extend(gone.into_iter().map(|deployment| Change {
        deployment,
        service: None,
        action: Action::RemoveDeployment,
    }));
    changes
}

/// The row of a deployment as the configuration wants it.
pub(crate) fn deployment_row(wanted: &Deployment, length: TickLength) -> DeploymentRow {
    /// How long a handshake may take: as long as Linux sends a SYN again by default.
    const TCP_OPENING: Duration = Duration::from_secs(127);
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    DeploymentRow {
        name: padded(&wanted.name),
        tcp_idle: length.ticks(wanted.tcp_idle_timeout),
        tcp_opening: length.ticks(TCP_OPENING.min(wanted.tcp_idle_timeout)),
        udp_idle: length.ticks(wanted.udp_idle_timeout),
        in_use: 1,
        on_switch: wanted.on_switch as u8,
        reserved: 0,
        drain_timeout_ms: wanted.drain_timeout.map_or(0, millis),
        tcp_idle_ms: millis(wanted.tcp_idle_timeout),
        udp_idle_ms: millis(wanted.udp_idle_timeout),
    }
}

fn colour_name<S: Serializer>(colour: &Colour, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(colour.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(tcp_idle: &str, drain: Option<&str>) -> Deployment {
        let time = |text: &str| humantime::parse_duration(text).unwrap();
        Deployment {
            name: "shop".into(),
            initial: Colour::Blue,
            on_switch: OnSwitch::Drain,
            drain_timeout: drain.map(time),
            tcp_idle_timeout: time(tcp_idle),
            udp_idle_timeout: time("90s"),
            testers: Vec::new(),
            services: Vec::new(),
        }
    }

    #[test]
    fn times_are_told_as_they_were_configured_and_an_apply_settles_them() {
        for hz in [100, 250, 300, 1000] {
            let length = TickLength::new(bg_common::Meta { hz, ..bytemuck::Zeroable::zeroed() });
            let told = |from: &Deployment, to: &Deployment| {
                let actions = settings_changes(to, &deployment_row(from, length), length);
                let change = |action| Change { deployment: "shop".into(), service: None, action };
                actions.into_iter().map(|action| change(action).to_string()).collect::<Vec<_>>()
            };
            let (before, after) = (deployment("2h", None), deployment("1500ms", Some("10m")));
            let expected =
                ["~ shop: drain_timeout never -> 10m", "~ shop: tcp_idle_timeout 2h -> 1s 500ms"].map(str::to_owned);
            assert_eq!(told(&before, &after), expected, "{hz}");
            assert_eq!(told(&after, &after), [""; 0]);
        }
    }
}
