//! Checks of the instance: where it is attached, which interfaces it has lost, and which side of the configuration it does not face.

use std::fs;

use super::{Finding, interface::sysctl, network::Network, sizes};
use crate::{
    Error, Paths,
    attach::{AttachedInterface, PortChange, changed_ports},
    config::Config,
    pins::{self, PinRoot},
    tunnels::{self, SourceProblem},
};

const INSTANCE: &str = "instance";

/// Without the right to read the pins, there are no findings.
pub(super) fn examine(
    paths: &Paths,
    attached: &[AttachedInterface],
    network: &Network,
    config: Option<&Config>,
) -> Vec<Finding> {
    let sizes = match PinRoot::inspect(paths) {
        Ok(PinRoot::Instance { meta, sizes }) => {
            if let Err(error) = pins::check_namespace(paths, &meta) {
                let remedy = match &error {
                    Error::OtherNamespace { prefix, .. } if !prefix.is_empty() => format!("`{prefix}bgctl doctor`"),
                    _ => "run bgctl in that namespace".to_owned(),
                };
                return vec![Finding::fail(INSTANCE, "namespace", error.to_string(), remedy)];
            }
            sizes
        }
        Ok(PinRoot::Empty | PinRoot::Unfinished) => return sizes::of_new_instance(INSTANCE, config),
        Err(error @ (Error::Damaged { .. } | Error::OtherAbi { .. } | Error::ForeignMap { .. })) => {
            return vec![Finding::fail(
                INSTANCE,
                "pins",
                error.to_string(),
                "`bgctl detach --all`, then attach and apply",
            )];
        }
        _ => return Vec::new(),
    };
    let mut findings = vec![interfaces(attached)];
    findings.extend(sizes::of_instance(INSTANCE, &sizes, config));
    findings.extend(attached.iter().filter_map(|interface| {
        Some(Finding::fail(INSTANCE, "interface", interface.problem()?, interface.remedy.clone()?))
    }));
    findings.extend(bridge_ports(paths, network));
    findings.extend(outer_sources(paths));
    if let Some(config) = config.filter(|_| !network.attached().is_empty()) {
        let backends = network.towards_backends(config);
        findings.extend(backends_side(network, &backends));
        findings.extend(clients_side(network, &backends, config));
        findings.extend(one_armed(network, &backends, config));
    }
    findings
}

fn interfaces(attached: &[AttachedInterface]) -> Finding {
    let works = attached.iter().filter(|interface| interface.problem().is_none());
    let names: Vec<_> = works.map(|interface| format!("{} ({})", interface.name, interface.mode.name())).collect();
    if names.is_empty() {
        let message = "not attached to any interface, so no packet is switched";
        return Finding::fail(INSTANCE, "attached", message, "`bgctl attach IFACE`");
    }
    Finding::ok(INSTANCE, "attached", format!("to {}", names.join(", ")))
}

/// The source addresses of outer headers that are in use now. Nothing but an apply, a switch, an attach and the controller learns them.
fn outer_sources(paths: &Paths) -> Vec<Finding> {
    let finding = |problem| {
        let (message, remedy) = (tunnels::told(&problem), tunnels::REMEDY);
        match problem.1 {
            SourceProblem::Unknown | SourceProblem::NotOurs(_) => {
                Finding::fail(INSTANCE, "outer source", message, remedy)
            }
            SourceProblem::Other { .. } => Finding::warn(INSTANCE, "outer source", message, remedy),
        }
    };
    tunnels::problems(paths).unwrap_or_default().into_iter().map(finding).collect()
}

/// A port of a bridge accepts frames to the bridge's own address, any other interface only those to its own. The programs
/// learn at attach whether an interface is a port.
fn bridge_ports(paths: &Paths, network: &Network) -> Vec<Finding> {
    let changed = changed_ports(paths, network.attached_interfaces(), network.interfaces()).unwrap_or_default();
    let finding = |PortChange { interface, is_port }| {
        let remedy = format!("`bgctl attach {interface}`");
        if is_port {
            let message = "became a port of a bridge after it was attached, so frames to the bridge's own MAC address are not switched";
            Finding::fail(&interface, "bridge", message, remedy)
        } else {
            let message =
                "is no longer a port of a bridge, but frames to the MAC addresses of other hosts are still switched";
            Finding::warn(&interface, "bridge", message, remedy)
        }
    };
    changed.into_iter().map(finding).collect()
}

/// Replies are restored where they arrive, or else on their way out to the client at an attached interface.
fn backends_side(network: &Network, backends: &[u32]) -> Option<Finding> {
    let missing: Vec<u32> = backends.iter().copied().filter(|index| !network.is_attached(*index)).collect();
    if missing.is_empty() {
        return None;
    }
    let names = network.names(&missing);
    let none = if missing.len() == backends.len() {
        "no attached interface faces the backends"
    } else {
        "not all interfaces towards backends are attached"
    };
    let message = format!("{none}: they are reached by {names}, and their replies go by the host's stack");
    Some(Finding::warn(INSTANCE, "backends' side", message, format!("`bgctl attach {}`", names.replace(',', ""))))
}

/// The location of the clients is a guess, so there is no finding as long as an attached interface may face them.
fn clients_side(network: &Network, backends: &[u32], config: &Config) -> Option<Finding> {
    let mut clients = network.towards_clients(config);
    if clients.is_empty() {
        clients = network.others(&[backends, network.attached()].concat());
    }
    let is_for_backends =
        |index: &u32| backends.iter().any(|backend| backend == index || network.is_port_of(*index, *backend));
    let may_face_clients = clients.iter().any(|index| network.is_attached(*index))
        || network.attached().iter().any(|index| !is_for_backends(index));
    if may_face_clients || clients.is_empty() {
        return None;
    }
    let names = network.names(&clients);
    let message = format!(
        "no attached interface faces the clients: by the routes, their packets arrive at {names} and are not switched"
    );
    Some(Finding::warn(INSTANCE, "clients' side", message, format!("`bgctl attach {}`", names.replace(',', ""))))
}

/// If clients and backends are behind one interface, a packet that the host's stack forwards there makes it tell the
/// sender of a shorter path, which bypasses the switch.
fn one_armed(network: &Network, backends: &[u32], config: &Config) -> Vec<Finding> {
    let clients = network.towards_clients(config);
    let is_both = |index: &&u32| clients.contains(index) || network.attached() == [**index];
    let one_armed = backends.iter().filter(is_both).map(|index| network.name(*index));
    one_armed.filter_map(|name| send_redirects(&name)).collect()
}

fn send_redirects(name: &str) -> Option<Finding> {
    let is_on = |name: &str| {
        let setting = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/send_redirects"));
        setting.is_ok_and(|value| value.trim() != "0")
    };
    // The kernel sends them if either is on.
    (is_on("all") || is_on(name)).then(|| {
        Finding::warn(
            name,
            "send_redirects",
            "on, and clients and backends are both behind this interface: if the host's stack forwards a reply, it sends the \
             backend an ICMP redirect. Then the backend's replies to that client bypass the switch, and its connections \
             break",
            format!("sysctl -w {}=0 {}=0", sysctl("all", "send_redirects"), sysctl(name, "send_redirects")),
        )
    })
}
