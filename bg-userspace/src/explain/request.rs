//! The packet to explain.

use std::net::SocketAddr;

use bg_common::Protocol;

use super::flags::TcpFlags;

/// A packet to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainRequest {
    /// Its source.
    pub from: SocketAddr,
    /// Its destination, of the same family.
    pub to: SocketAddr,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Flags of a TCP segment. `None`: SYN to a virtual address, ACK otherwise.
    pub flags: Option<TcpFlags>,
    /// The interface that it comes in by; for a packet of this host itself, the one that it leaves by. `None`: the one that the
    /// host's routes name.
    pub interface: Option<String>,
}
