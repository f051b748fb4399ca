//! Checks of the host, its interfaces, the instance and a configuration. Each finding says what was checked, what was found, and what
//! to do about it.

mod configuration;
mod drivers;
mod firewall;
mod host;
mod instance;
mod interface;
mod mounts;
mod network;
pub mod preconditions;
mod real_time;
mod sizes;

use serde::Serialize;

pub use firewall::notrack;
use network::Network;

use crate::{
    Paths, attach,
    config::Config,
    net::{self, NetError},
};

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Ok,
    /// It works, but not as well as possible, or not for everybody.
    Warn,
    /// It does not work until this is fixed.
    Fail,
}

impl Level {
    /// The level's name in the output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject: "host", an interface's name, or a service.
    pub subject: String,
    /// What was checked.
    pub check: &'static str,
    /// How severe it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it, unless all is well.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(subject: &str, check: &'static str, message: impl Into<String>) -> Self {
        Self { subject: subject.to_owned(), check, level: Level::Ok, message: message.into(), remedy: None }
    }

    fn warn(subject: &str, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, remedy: Some(remedy.into()), ..Self::ok(subject, check, message) }
    }

    fn fail(subject: &str, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(subject, check, message, remedy) }
    }
}

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
