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

use bg_common::{Family, Flow, FlowKey4, FlowKey6, FlowRole};

use crate::{
    Error, Paths,
    config::Prefix,
    flow_table::{FlowKey, FlowTable},
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
    pub(super) fn run(&self, paths: &Paths, mut wait: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
        if self.testers.is_empty() && self.previews.is_empty() {
            return Ok(());
        }
        let mut v4 = FlowTable::<FlowKey4>::open(paths, "flows4")?;
        let mut v6 = FlowTable::<FlowKey6>::open(paths, "flows6")?;
        let gone = (self.remove(&mut v4)?, self.remove(&mut v6)?);
        if gone.0.is_empty() && gone.1.is_empty() {
            return Ok(());
        }
        // A packet that had found one direction before it went may just have restored the other one from it.
        wait()?;
        self.remove_again(&mut v4, &gone.0)?;
        self.remove_again(&mut v6, &gone.1)
    }

    fn remove<K: FlowKey>(&self, table: &mut FlowTable<K>) -> Result<Vec<K>, Error> {
        let mut wrong = Vec::new();
        table.each(|key, flow| {
            if self.is_wrong(key.client(&flow), &flow) {
                wrong.push(key);
            }
        })?;
        wrong.iter().try_for_each(|key| table.remove(key))?;
        Ok(wrong)
    }

    fn remove_again<K: FlowKey>(&self, table: &mut FlowTable<K>, gone: &[K]) -> Result<(), Error> {
        for key in gone {
            if table.flow(key)?.is_some_and(|flow| self.is_wrong(key.client(&flow), &flow)) {
                table.remove(key)?;
            }
        }
        Ok(())
    }

    fn is_wrong(&self, client: IpAddr, flow: &Flow) -> bool {
        if flow.role & FlowRole::PREVIEW != 0 {
            return self.previews.contains(&flow.service);
        }
        let is_confined = flow.role & FlowRole::IDLE_ONLY != 0;
        let testers = self.testers.get(&flow.deployment);
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
        let wrong = |deployment, client: [u8; 4], role| {
            sweep.is_wrong(client.into(), &Flow { deployment, role, service: 8, ..Flow::default() })
        };
        let (tester, user) = ([198, 51, 100, 1], [203, 0, 113, 1]);
        for reply in [0, FlowRole::REPLY] {
            assert!(wrong(3, tester, reply) && !wrong(3, tester, reply | FlowRole::IDLE_ONLY));
            assert!(!wrong(3, user, reply) && wrong(3, user, reply | FlowRole::IDLE_ONLY));
            assert!(!wrong(4, tester, reply), "of another deployment");
            let preview = reply | FlowRole::IDLE_ONLY | FlowRole::PREVIEW;
            assert!(!wrong(3, user, preview), "confined by its address");
            let flow = Flow { deployment: 3, role: preview, service: 9, ..Flow::default() };
            assert!(sweep.is_wrong(user.into(), &flow), "its address is gone");
        }
    }
}
