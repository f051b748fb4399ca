//! Checks of the host, its interfaces, the instance and a configuration. Each finding says what was checked, what was found, and what
//! to do about it.

mod configuration;
mod drivers;
mod finding;
mod firewall;
mod host;
mod instance;
mod interface;
mod kernel;
mod mounts;
mod network;
pub mod preconditions;
mod real_time;
mod sizes;

use serde::Serialize;

pub use finding::{Finding, Level};
pub use firewall::notrack;
use network::Network;

use crate::{
    Paths, attach,
    config::Config,
    net::{self, NetError},
};

/// The results of all checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings, in this order: the host, its interfaces, the configuration.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The highest of all levels.
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// Checks the host, the named interfaces (all of them if none is named), and a configuration.
///
/// # Errors
/// If a named interface does not exist, or rtnetlink does not work.
pub fn examine(paths: &Paths, interfaces: &[String], config: Option<&Config>) -> Result<Report, NetError> {
    let all = net::interfaces()?;
    let named = if interfaces.is_empty() {
        all.clone()
    } else {
        interfaces.iter().map(|name| net::interface(name)).collect::<Result<_, _>>()?
    };
    // Without an instance, or without the right to read its pins, no interface is attached.
    let attached = attach::attached_interfaces(paths).unwrap_or_default();
    let links = attach::pinned_links(paths).unwrap_or_default();
    let network = Network::new(all, &attached);

    let mut findings = host::examine(paths, config);
    findings.extend(firewall::examine(config));
    findings.extend(instance::examine(paths, &attached, &network, config));
    for interface in &named {
        let others = attach::others(paths, interface, &links).unwrap_or_default();
        findings.extend(interface::examine(interface, &links, &others));
    }
    if let Some(config) = config {
        findings.extend(configuration::examine(config, &network));
    }
    Ok(Report { findings })
}
