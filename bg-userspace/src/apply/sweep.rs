//! Entries of open flows that a change of testers or previews has made wrong.
//!
//! A flow remembers whether it is confined to the idle colour, and the data path believes it. So when a source
//! becomes a tester, its open flows on the live colour end, TCP's as well as UDP's: that testers never meet the
//! live colour goes before that open flows stay. When it ceases to be one, its flows on the idle colour end. And
//! the flows of a preview address that is gone have no address that their replies could bear.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use bg_common::{Backend, Family, FlowHash, FlowKey4, FlowKey6, FlowState};

use crate::{
    Error, Paths,
    config::Prefix,
    flow_table::{FlowKey, FlowTable, Which},
    maps::{flows4, flows6},
    sys::Mapped,
};

/// What has changed.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Testers, as they are now, of deployments whose testers have changed; by the deployment's index.
    pub(super) testers: HashMap<u16, Vec<Prefix>>,
    /// Services whose preview address is gone.
    pub(super) previews: HashSet<u16>,
}

impl Sweep {
    /// Removes wrong entries, of both directions. All that has changed holds for every packet already; `wait` is
    /// the fence.
    pub(super) fn run(
        &self,
        paths: &Paths,
        backends: &Mapped<Backend>,
        mut wait: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.testers.is_empty() && self.previews.is_empty() {
            return Ok(());
        }
        let (v4, v6) = (flows4(paths)?, flows6(paths)?);
        // Nothing is looked up by its hash here.
        let hash = FlowHash::PUBLIC;
        let (v4, v6) = (FlowTable::<FlowKey4>::new(v4.all(), &hash), FlowTable::<FlowKey6>::new(v6.all(), &hash));
        while self.remove(&v4, backends) + self.remove(&v6, backends) > 0 {
            // A packet that had found one direction before it went may just have restored the other one from it.
            wait()?;
        }
        Ok(())
    }

    /// Removes what is wrong; returns how many entries that were.
    fn remove<K: FlowKey + Sync>(&self, table: &FlowTable<'_, K>, backends: &Mapped<Backend>) -> usize {
        let removed = table.fold(
            Which::Either,
            || 0,
            |removed, entry| {
                let backend = backends.read(entry.flow.backend.slot() as usize);
                // The entry of a backend that is gone leads nowhere any more.
                if entry.flow.backend.is(backend.identity)
                    && self.is_wrong(entry.client().to_ip(K::FAMILY), entry.flow.state, &backend)
                {
                    *removed += usize::from(entry.remove());
                }
            },
        );
        removed.into_iter().sum()
    }

    fn is_wrong(&self, client: IpAddr, state: FlowState, backend: &Backend) -> bool {
        if state.has(FlowState::PREVIEW) {
            return self.previews.contains(&backend.service);
        }
        let is_confined = state.has(FlowState::IDLE_ONLY);
        let testers = self.testers.get(&backend.deployment);
        testers.is_some_and(|testers| testers.iter().any(|prefix| covers(prefix, client)) != is_confined)
    }
}

fn covers(prefix: &Prefix, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differing = bits(prefix.addr) ^ bits(address);
    Family::of(prefix.addr) == Family::of(address) && differing.leading_zeros() >= u32::from(prefix.len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (addr, len) = text.split_once('/').unwrap();
        Prefix { addr: addr.parse().unwrap(), len: len.parse().unwrap() }
    }

    #[test]
    fn a_prefix_covers_what_begins_like_it() {
        for (text, inside, outside) in [
            ("198.51.100.0/24", "198.51.100.255", "198.51.101.0"),
            ("198.51.100.7/32", "198.51.100.7", "198.51.100.6"),
            ("0.0.0.0/0", "203.0.113.9", "::"),
            ("2001:db8:7::/48", "2001:db8:7:ffff::1", "2001:db8:8::"),
        ] {
            let prefix = prefix(text);
            assert!(covers(&prefix, inside.parse().unwrap()) && !covers(&prefix, outside.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_flow_is_wrong_if_its_role_is_not_what_its_source_has_now() {
        let sweep =
            Sweep { testers: HashMap::from([(3, vec![prefix("198.51.100.0/24")])]), previews: HashSet::from([9]) };
        let wrong = |deployment, client: [u8; 4], state| {
            let backend = Backend { deployment, service: 8, ..Backend::default() };
            sweep.is_wrong(client.into(), FlowState(FlowState::LIVE | state), &backend)
        };
        let (tester, user) = ([198, 51, 100, 1], [203, 0, 113, 1]);
        for reply in [0, FlowState::REPLY] {
            assert!(wrong(3, tester, reply) && !wrong(3, tester, reply | FlowState::IDLE_ONLY));
            assert!(!wrong(3, user, reply) && wrong(3, user, reply | FlowState::IDLE_ONLY));
            assert!(!wrong(4, tester, reply), "of another deployment");
            let preview = reply | FlowState::IDLE_ONLY | FlowState::PREVIEW;
            assert!(!wrong(3, user, preview), "confined by its address");
            let backend = Backend { deployment: 3, service: 9, ..Backend::default() };
            assert!(sweep.is_wrong(user.into(), FlowState(preview), &backend), "its address is gone");
        }
    }
}
