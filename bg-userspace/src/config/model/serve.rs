//! Where the controller listens, and whom it tells.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Where the controller listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The group whose members are operators; `None` leaves the socket to root.
    pub socket_group: Option<String>,
    /// The address for the same over TCP. One that other hosts can reach comes with [`Self::tls`].
    pub listen: Option<SocketAddr>,
    /// The certificates for [`Self::listen`].
    pub tls: Option<Tls>,
    /// The file of tokens and their roles.
    pub tokens: Option<PathBuf>,
}

impl Default for Serve {
    /// The usual socket only.
    fn default() -> Self {
        Self { socket: "/run/bgctl/api.sock".into(), socket_group: None, listen: None, tls: None, tokens: None }
    }
}

impl Serve {
    /// Makes all relative paths relative to a directory.
    pub(crate) fn below(&mut self, directory: &Path) {
        let tls = self
            .tls
            .iter_mut()
            .flat_map(|tls| [Some(&mut tls.certificate), Some(&mut tls.key), tls.client_ca.as_mut()]);
        for path in tls.chain([Some(&mut self.socket), self.tokens.as_mut()]).flatten() {
            // An absolute path stays as it is.
            *path = directory.join(&*path);
        }
    }
}

/// Certificates in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate, and those that lead to a root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The roots of clients' certificates; without it, clients need a token.
    pub client_ca: Option<PathBuf>,
}

/// A webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Where events are posted: `http` or `https`.
    pub url: String,
    /// Which ones, at least one.
    pub events: Vec<NotifyEvent>,
}

/// A kind of event of which others may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotifyEvent {
    /// A live colour or a share was changed by somebody.
    Switch,
    /// A switch was taken back: by the data path, by a gate or by a rollback.
    Revert,
    /// The controller has switched by itself.
    Failover,
    /// A backend is down.
    Unhealthy,
    /// A backend is up again.
    Healthy,
    /// A gate has passed or failed.
    Gate,
}

impl NotifyEvent {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 6] = [Self::Switch, Self::Revert, Self::Failover, Self::Unhealthy, Self::Healthy, Self::Gate];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Revert => "revert",
            Self::Failover => "failover",
            Self::Unhealthy => "unhealthy",
            Self::Healthy => "healthy",
            Self::Gate => "gate",
        }
    }
}
