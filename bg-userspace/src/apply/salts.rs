//! Salts of services; see [`bg_common::Vip::salt`].
//!
//! A service keeps its salt as long as it runs, because the salt determines where its open flows are. A new service gets the salt of a
//! service with which it shares a backend, so that a reply from this backend is found at once: of a running service if there is one, or else
//! of the first new one. The choice does not depend on the indexes of new services, which are not known before their rows are allocated.

use std::{collections::HashMap, net::SocketAddr};

use bg_common::{Colour, Mode};

use crate::{
    config::Service,
    running::{Running, RunningService},
};

/// The salt for new services that have a backend, by its address and protocol.
#[derive(Clone, Debug, Default)]
pub(super) struct Salts {
    chosen: HashMap<(SocketAddr, u8), Candidate>,
    new_services: usize,
}

/// The salt of a service. The least one is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Zero if the service runs, otherwise its place among the new ones.
    place: usize,
    salt: u16,
}

impl Salts {
    /// The salts of all running services.
    pub(super) fn new(running: &Running) -> Self {
        let mut salts = Self::default();
        for service in &running.services {
            let found = service.targets().filter(|backend| backend.mode != Mode::Tee);
            let addresses = found.map(|backend| backend.address);
            salts.note(addresses, service.vip.protocol, Candidate { place: 0, salt: service.salt });
        }
        salts
    }

    /// The salt of a service. A new service has this index. Services are given in the order of the configuration.
    pub(super) fn take(&mut self, service: &Service, current: Option<&RunningService>, index: u16) -> u16 {
        let protocol = service.protocol as u8;
        let targets = || Colour::ALL.into_iter().flat_map(|colour| service.targets(colour).into_owned());
        let addresses = || targets().map(|backend| backend.address);
        let candidate = match current {
            Some(current) => Candidate { place: 0, salt: current.salt },
            None => {
                self.new_services += 1;
                let own = Candidate { place: self.new_services, salt: index };
                addresses().filter_map(|address| self.chosen.get(&(address, protocol))).min().copied().unwrap_or(own)
            }
        };
        self.note(addresses(), protocol, candidate);
        candidate.salt
    }

    fn note(&mut self, addresses: impl Iterator<Item = SocketAddr>, protocol: u8, candidate: Candidate) {
        for address in addresses {
            let chosen = self.chosen.entry((address, protocol)).or_insert(candidate);
            *chosen = candidate.min(*chosen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The salts of new services with these backends, if the services have these indexes.
    fn salts(running: &Salts, backends: &[&[u8]], indexes: &[u16]) -> Vec<u16> {
        let mut salts = running.clone();
        let services = backends.iter().zip(indexes).map(|(backends, index)| {
            let list: Vec<String> = backends.iter().map(|host| format!("\"10.0.0.{host}:80\"")).collect();
            let list = list.join(", ");
            let text = format!(
                "[[deployments.shop.services]]\nvip = \"203.0.113.10:80\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
                 blue = [{list}]\ngreen = [{list}]\n"
            );
            let config = crate::config::parse(Path::new("x"), &text).unwrap();
            salts.take(&config.deployments[0].services[0], None, *index)
        });
        services.collect()
    }

    #[test]
    fn which_services_share_a_salt_does_not_depend_on_their_indexes() {
        let mut running = Salts::default();
        let address = |host: u8| SocketAddr::from(([10, 0, 0, host], 80));
        running.note([address(9)].into_iter(), 6, Candidate { place: 0, salt: 500 });
        // The third service could take the salt of any other one, the fourth that of the first two.
        let backends: &[&[u8]] = &[&[1], &[2], &[1, 2, 9], &[2, 1], &[3]];
        for indexes in [[600, 601, 602, 603, 604], [4, 3, 2, 1, 0], [40_000, 7, 501, 0, 9]] {
            let [first, second, _, _, alone] = indexes;
            assert_eq!(salts(&running, backends, &indexes), [first, second, 500, 500, alone], "{indexes:?}");
            assert_eq!(
                salts(&Salts::default(), backends, &indexes),
                [first, second, first, first, alone],
                "{indexes:?}"
            );
        }
    }
}
