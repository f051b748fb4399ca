//! What this machine can do, and how to mend what it cannot: each finding says what was looked at, how
//! it is, and what to do about it.

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

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not for everybody.
    Warn,
    /// It does not work until this is mended.
    Fail,
}

impl Level {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it belongs to: "host", an interface's name, or a service.
    pub subject: String,
    /// What was looked at.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// How it is.
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

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which a reader wants them: the host, its interfaces, the configuration.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of all levels.
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// Looks at the host, at the interfaces named (at all of them, if none is), and at a configuration.
///
/// # Errors
/// Only if there is nothing to look at: an interface that does not exist, or no rtnetlink.
pub fn examine(paths: &Paths, interfaces: &[String], config: Option<&Config>) -> Result<Report, NetError> {
    let all = net::interfaces()?;
    let named = if interfaces.is_empty() {
        all.clone()
    } else {
        interfaces.iter().map(|name| net::interface(name)).collect::<Result<_, _>>()?
    };
    // Without an instance, or without the right to look at it, no interface is ours.
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
