//! Salts of services; see [`bg_common::Vip::salt`].
//!
//! A service keeps its salt as long as it runs, because the salt determines where its open flows are. A new service gets the salt of a
//! service with which it shares a backend, so that a reply from this backend is found at once.

use std::{collections::HashMap, net::SocketAddr};

use crate::{
    config::Service,
    running::{Running, RunningService},
};

/// The lowest salt of the services that have a backend, by its address and protocol.
#[derive(Clone, Debug, Default)]
pub(super) struct Salts(HashMap<(SocketAddr, u8), u16>);

impl Salts {
    /// The salts of all running services.
    pub(super) fn new(running: &Running) -> Self {
        let mut salts = Self::default();
        for service in &running.services {
            let addresses = service.backends.iter().flatten().map(|backend| backend.address);
            salts.note(addresses, service.vip.protocol, service.salt);
        }
        salts
    }

    /// The salt of a service. A new service has this index.
    pub(super) fn take(&mut self, service: &Service, current: Option<&RunningService>, index: u16) -> u16 {
        let addresses = || service.backends.iter().flatten().map(|backend| backend.address);
        let shared = addresses().filter_map(|address| self.0.get(&(address, service.protocol as u8))).min().copied();
        let salt = current.map_or(shared.unwrap_or(index), |current| current.salt);
        self.note(addresses(), service.protocol as u8, salt);
        salt
    }

    fn note(&mut self, addresses: impl Iterator<Item = SocketAddr>, protocol: u8, salt: u16) {
        for address in addresses {
            let lowest = self.0.entry((address, protocol)).or_insert(salt);
            *lowest = salt.min(*lowest);
        }
    }
}
