//! One change of a plan, and its text.

use std::{fmt, net::SocketAddr};

use bg_common::Colour;
use serde::{Serialize, Serializer};

use super::beginning::Beginning;
use crate::{config::Prefix, json};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Name of the deployment that it concerns.
    pub deployment: String,
    /// Name of the service, unless the change concerns the deployment as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The kind of change.
    #[serde(flatten)]
    pub action: Action,
}

/// A kind of change to a deployment or a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Action {
    /// The deployment is added.
    AddDeployment(Beginning),
    /// The deployment is removed.
    RemoveDeployment {
        /// The number of open flows of its services, which end.
        open_flows: u64,
    },
    /// The service is added.
    AddService {
        /// Its virtual address.
        vip: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// `nat`, `local`, `tee`, `l2dsr`, `ipip` or `gue`.
        mode: &'static str,
    },
    /// The service is removed.
    RemoveService {
        /// Its virtual address.
        vip: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// The number of its open flows, which end.
        open_flows: u64,
    },
    /// A setting changes.
    Set {
        /// Its key in the configuration.
        setting: &'static str,
        /// Its present value.
        from: String,
        /// Its new value.
        to: String,
    },
    /// A source becomes a tester.
    AddTester {
        /// The source.
        #[serde(serialize_with = "prefix_text")]
        prefix: Prefix,
    },
    /// A source ceases to be a tester.
    RemoveTester {
        /// The source.
        #[serde(serialize_with = "prefix_text")]
        prefix: Prefix,
    },
    /// The backend is added.
    AddBackend {
        /// Its colour.
        #[serde(serialize_with = "json::colour")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
        /// Its weight.
        weight: u32,
    },
    /// `bgctl serve` is to listen here for the connections of a service in mode `tee` that go to this colour.
    AddListener {
        /// Its colour.
        #[serde(serialize_with = "json::colour")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
    },
    /// It is no longer to listen here.
    RemoveListener {
        /// Its colour.
        #[serde(serialize_with = "json::colour")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
        /// Its place in the maps.
        #[serde(skip)]
        slot: Slot,
        /// The number of its open flows, which end.
        open_flows: u64,
    },
    /// The backend is removed.
    RemoveBackend {
        /// Its colour.
        #[serde(serialize_with = "json::colour")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
        /// Its place in the maps.
        #[serde(skip)]
        slot: Slot,
        /// The number of its open flows, which end.
        open_flows: u64,
    },
    /// The backend's weight changes. Its flows stay.
    SetWeight {
        /// Its colour.
        #[serde(serialize_with = "json::colour")]
        colour: Colour,
        /// Its address.
        address: SocketAddr,
        /// Its place in the maps.
        #[serde(skip)]
        slot: Slot,
        /// Its present weight; `None` if an apply was killed while it changed.
        from: Option<u32>,
        /// Its new weight.
        to: u32,
    },
    /// The work of a killed apply is completed.
    Finish,
}

/// Where the maps of an instance keep a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub(crate) u32);

impl Action {
    /// The colour whose backends it changes.
    pub(crate) const fn colour(&self) -> Option<Colour> {
        match self {
            Self::AddBackend { colour, .. }
            | Self::RemoveBackend { colour, .. }
            | Self::SetWeight { colour, .. }
            | Self::AddListener { colour, .. }
            | Self::RemoveListener { colour, .. } => Some(*colour),
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::AddDeployment(_)
            | Action::AddService { .. }
            | Action::AddTester { .. }
            | Action::AddBackend { .. }
            | Action::AddListener { .. } => '+',
            Action::RemoveDeployment { .. }
            | Action::RemoveService { .. }
            | Action::RemoveTester { .. }
            | Action::RemoveBackend { .. }
            | Action::RemoveListener { .. } => '-',
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
            Action::RemoveBackend { colour, address, open_flows, .. } => {
                write!(f, ": {} {address}{}", colour.name(), Ends(*open_flows))
            }
            Action::AddListener { colour, address } => write!(f, ": {} listens at {address}", colour.name()),
            Action::RemoveListener { colour, address, open_flows, .. } => {
                write!(f, ": {} listens no longer at {address}{}", colour.name(), Ends(*open_flows))
            }
            Action::SetWeight { colour, address, from, to, .. } => {
                let from = from.map_or("unfinished".to_owned(), |weight| weight.to_string());
                write!(f, ": {} {address} weight {from} -> {to}", colour.name())
            }
            Action::Finish => write!(f, ": complete what a killed apply has left"),
        }
    }
}

/// The number of open flows that a removal ends, if any.
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

fn prefix_text<S: Serializer>(prefix: &Prefix, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(prefix)
}
