//! One change of a plan, and how it is told.

use std::{fmt, net::SocketAddr};

use bg_common::Colour;
use serde::{Serialize, Serializer};

use super::begin::Beginning;

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
    AddDeployment(Beginning),
    /// The deployment ends.
    RemoveDeployment {
        /// Open flows of its services, which end.
        open_flows: u64,
    },
    /// The service begins.
    AddService {
        /// Its virtual address.
        vip: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// `nat` or `local`.
        mode: &'static str,
    },
    /// The service ends.
    RemoveService {
        /// Its virtual address.
        vip: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// Its open flows, which end.
        open_flows: u64,
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
    /// The backend gets nothing more.
    RemoveBackend {
        /// Its colour.
        #[serde(serialize_with = "colour_name")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
        /// Its open flows, which end.
        open_flows: u64,
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
            Action::AddDeployment(_)
            | Action::AddService { .. }
            | Action::AddTester { .. }
            | Action::AddBackend { .. } => '+',
            Action::RemoveDeployment { .. }
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
            Action::AddDeployment(beginning) => write!(f, ": {beginning}"),
            Action::RemoveDeployment { open_flows } => write!(f, "{}", Ends(*open_flows)),
            Action::AddService { vip, protocol, mode } => write!(f, ": {vip}/{protocol}, {mode}"),
            Action::RemoveService { vip, protocol, open_flows } => {
                write!(f, ": {vip}/{protocol}{}", Ends(*open_flows))
            }
            Action::Set { setting, from, to } => write!(f, ": {setting} {from} -> {to}"),
            Action::AddTester { prefix } | Action::RemoveTester { prefix } => write!(f, ": tester {prefix}"),
            Action::AddBackend { colour, address, weight } => {
                write!(f, ": {} {address} weight {weight}", colour.name())
            }
            Action::RemoveBackend { colour, address, open_flows } => {
                write!(f, ": {} {address}{}", colour.name(), Ends(*open_flows))
            }
            Action::SetWeight { colour, address, from, to } => {
                let from = from.map_or("unfinished".to_owned(), |weight| weight.to_string());
                write!(f, ": {} {address} weight {from} -> {to}", colour.name())
            }
            Action::Finish => write!(f, ": finish what a killed apply has left"),
        }
    }
}

/// How many open flows a removal ends, if any.
struct Ends(u64);

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => write!(f, "; ends 1 open flow"),
            flows => write!(f, "; ends {flows} open flows"),
        }
    }
}

pub(super) fn colour_name<S: Serializer>(colour: &Colour, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(colour.name())
}
