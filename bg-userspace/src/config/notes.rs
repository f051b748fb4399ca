//! Notes about a valid configuration that are worth knowing before it is applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use bg_common::Protocol;

use super::{Config, protocol_name};

/// A backend of more than one service whose replies pass this host. It cannot distinguish two connections that come from the same client address and
/// port, so while one of them is open, the other one is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedBackend {
    /// Its address.
    pub address: SocketAddr,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// The names of deployments and services, at least two.
    pub services: Vec<(String, String)>,
}

impl fmt::Display for SharedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let named = self.services.iter().take(SHOWN).map(|(deployment, service)| format!("{deployment}/{service}"));
        let mut named = named.collect::<Vec<_>>().join(", ");
        if let Some(more @ 1..) = self.services.len().checked_sub(SHOWN) {
            named += &format!(" and {more} more");
        }
        write!(
            f,
            "backend {}/{} is in {} services ({named}): while a client has a connection open to one of them, it cannot \
             open one to another from the same port (counted as reply_collision); a port or an address of its own for \
             each service avoids that",
            self.address,
            protocol_name(self.protocol),
            self.services.len(),
        )
    }
}

/// All backends that several services share, by address.
pub fn shared_backends(config: &Config) -> Vec<SharedBackend> {
    let mut services: BTreeMap<(SocketAddr, Protocol), BTreeSet<(&str, &str)>> = BTreeMap::new();
    for deployment in &config.deployments {
        // To a backend that replies directly, each virtual address is one of its own.
        for service in deployment.services.iter().filter(|service| !service.mode.is_direct()) {
            for backend in service.backends.iter().flatten() {
                let names = (deployment.name.as_str(), service.name.as_str());
                services.entry((backend.address, service.protocol)).or_default().insert(names);
            }
        }
    }
    let shared = services.into_iter().filter(|(_, services)| services.len() > 1);
    let owned = |(deployment, service): (&str, &str)| (deployment.to_owned(), service.to_owned());
    shared
        .map(|((address, protocol), services)| SharedBackend {
            address,
            protocol,
            services: services.into_iter().map(owned).collect(),
        })
        .collect()
}
