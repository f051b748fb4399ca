//! What is checked, and what may be in the way.

use std::net::IpAddr;

use bg_common::Mode;

use crate::config::model::Encap;

/// What a check connects to, if that is not the backend's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The virtual address.
    pub(crate) vip: IpAddr,
    pub(crate) mode: Mode,
    pub(crate) encap: Encap,
}

/// Why there is no connection.
pub(crate) enum Trouble {
    /// This host cannot check in this way, or not now. That says nothing of the backend.
    Unable(String),
    /// There is no way to the backend, for the packets of clients either.
    NoWay(String),
    /// The device is gone, or somebody has taken from it what it needs.
    Gone(String),
}
