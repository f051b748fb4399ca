//! Removing open flows that a change has made invalid.
//!
//! A flow's row says whether the flow is confined to the idle colour, and the data path relies on it. So when a source
//! becomes a tester, its open flows on the live colour end, both TCP and UDP: that testers never reach the
//! live colour takes precedence over keeping open flows. When it ceases to be a tester, its flows on the idle colour end.
//!
//! A flow also names the row of `vips` to which its client sends. The flows of such a row end before it gets another address.

use std::{collections::HashSet, net::IpAddr};

use bg_common::{Backend, Family, Flow, FlowKey4, FlowKey6, FlowState, Role};

use super::work::{Testers, Work};
use crate::{
    Error,
    config::Prefix,
    flow_table::{FlowKey, FlowTable},
    maps::{flows4, flows6},
    sys::Mapped,
};

impl Work<'_> {
    /// Removes the flows of sources that have become testers or have ceased to be. The change already applies to every packet.
    pub(super) fn sweep_testers(&mut self) -> Result<(), Error> {
        let testers = std::mem::take(&mut self.testers);
        let is_wrong = |client, vip, flow: &Flow, backends: &Mapped<Backend>| {
            let slot = flow.backend.slot() as usize;
            let backend = if slot < backends.rows() { backends.read(slot) } else { Backend::default() };
            // The flow of a removed backend has no target any more.
            flow.backend.is(backend.identity) && is_wrong(&testers, client, vip, flow.state, backend.deployment)
        };
        let swept = if testers.is_empty() { Ok(()) } else { self.sweep(is_wrong) };
        self.testers = testers;
        swept
    }

    /// Removes the flows of these rows of `vips`, which packets can no longer find.
    pub(super) fn sweep_vips(&mut self, rows: &HashSet<usize>) -> Result<(), Error> {
        if rows.is_empty() { Ok(()) } else { self.sweep(|_, vip, _, _| rows.contains(&usize::from(vip))) }
    }

    /// Removes flows, by client and row of `vips`.
    fn sweep(&mut self, is_wrong: impl Fn(IpAddr, u16, &Flow, &Mapped<Backend>) -> bool + Sync) -> Result<(), Error> {
        /// After this many rounds, a row that is still being written was left by a writer that stopped.
        const PASSES: usize = 8;
        let (v4, v6) = (flows4(self.paths)?, flows6(self.paths)?);
        for _ in 0..PASSES {
            let backends = &self.tables.backends;
            let more4 = FlowTable::<FlowKey4>::new(v4.all())
                .remove(|key, flow| is_wrong(key.client().ip(), key.vip, flow, backends));
            let more6 = FlowTable::<FlowKey6>::new(v6.all())
                .remove(|key, flow| is_wrong(key.client().ip(), key.vip, flow, backends));
            if !more4 && !more6 {
                break;
            }
            self.wait()?;
        }
        Ok(())
    }
}

fn is_wrong(testers: &Testers, client: IpAddr, vip: u16, state: FlowState, deployment: u16) -> bool {
    // Flows to a preview address are confined by the address.
    if vip % 2 == Role::Preview as u16 {
        return false;
    }
    let is_confined = state.has(FlowState::IDLE_ONLY);
    let testers = testers.get(&deployment);
    testers.is_some_and(|testers| testers.iter().any(|prefix| covers(prefix, client)) != is_confined)
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
    use std::collections::HashMap;

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
        let testers = HashMap::from([(3, vec![prefix("198.51.100.0/24")])]);
        let wrong = |deployment, client: [u8; 4], vip, state| {
            is_wrong(&testers, client.into(), vip, FlowState(FlowState::LIVE | state), deployment)
        };
        let (tester, user) = ([198, 51, 100, 1], [203, 0, 113, 1]);
        assert!(wrong(3, tester, 8, 0) && !wrong(3, tester, 8, FlowState::IDLE_ONLY));
        assert!(!wrong(3, user, 8, 0) && wrong(3, user, 8, FlowState::IDLE_ONLY));
        assert!(!wrong(4, tester, 8, 0), "of another deployment");
        assert!(!wrong(3, user, 9, FlowState::IDLE_ONLY), "confined by its address");
    }
}
