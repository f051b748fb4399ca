//! What is known of the other end of a connection.

use std::net::SocketAddr;

use super::users::{User, user_of_connection};

/// How a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// Over the Unix socket, from a process that may open its file.
    Socket,
    /// Over TCP, from this host.
    Loopback,
    /// Over TCP, from elsewhere.
    Network,
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) over: Over,
    /// The user of this host, if it is one.
    pub(super) user: Option<User>,
    /// The common name of its certificate, which is valid.
    pub(super) certificate: Option<String>,
}

impl Peer {
    /// Of a connection over the Unix socket. May wait for a directory service.
    pub(super) fn of_socket(uid: u32, gid: u32) -> Self {
        Self { over: Over::Socket, user: Some(User::of(uid, Some(gid))), certificate: None }
    }

    /// Of a connection over TCP between these addresses. May wait for a directory service.
    pub(super) fn of_tcp(from: SocketAddr, to: SocketAddr, certificate: Option<String>) -> Self {
        if !from.ip().to_canonical().is_loopback() {
            return Self { over: Over::Network, user: None, certificate };
        }
        // The kernel knows whose socket it is, so not everybody who can reach a loopback address is an operator.
        let user = user_of_connection(from, to).map(|uid| User::of(uid, None));
        Self { over: Over::Loopback, user, certificate }
    }
}
