//! How a deployment starts, and the virtual addresses that change their live colour with it.

use std::{fmt, net::SocketAddr};

use bg_common::Colour;
use serde::Serialize;

use crate::json;

/// The live state with which a new deployment starts, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Beginning {
    /// The live colour.
    #[serde(serialize_with = "json::colour")]
    pub live: Colour,
    /// The generation.
    pub generation: u32,
    /// The reason for this colour.
    #[serde(flatten)]
    pub because: Because,
    /// The colour that a rollback makes live.
    #[serde(skip)]
    pub(super) previous: Colour,
}

/// The reason for the colour with which a deployment starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Because {
    /// It is `initial` in the configuration, and nothing else is known.
    Initial,
    /// It is the last live colour in the state directory.
    LastLive,
    /// It is live in the deployments from which virtual addresses are taken over.
    TakenOver {
        /// Their names.
        from: Vec<String>,
    },
}

/// A virtual address that would change its live colour with its deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColourChange {
    /// Name of the deployment to which it would move.
    pub deployment: String,
    /// The name that the service would have.
    pub service: String,
    /// The virtual address.
    pub vip: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Name of its present deployment.
    pub from: String,
    /// The present live colour.
    #[serde(serialize_with = "json::colour")]
    pub live: Colour,
    /// The live colour after the move.
    #[serde(serialize_with = "json::colour")]
    pub becomes: Colour,
}

impl fmt::Display for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.live.name();
        match &self.because {
            Because::Initial => write!(f, "starts with {live} live, its initial colour"),
            Because::LastLive => {
                write!(
                    f,
                    "starts with {live} live, as recorded in the state directory (generation {})",
                    self.generation
                )
            }
            Because::TakenOver { from } => {
                let from = from.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
                write!(f, "starts with {live} live, taken over with its virtual addresses from {from}")
            }
        }
    }
}

impl fmt::Display for ColourChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deployment, vip, protocol, from, live, becomes, .. } = self;
        let (live, becomes) = (live.name(), becomes.name());
        write!(f, "{vip}/{protocol} has {live} live in \"{from}\" and would have {becomes} live in \"{deployment}\"")
    }
}
