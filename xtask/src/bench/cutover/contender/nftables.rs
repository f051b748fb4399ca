//! nftables: with connection tracking, and without any state.

use super::{Arena, Kind, Running, Serving, command};
use crate::bench::cutover::{arena, server};
use anyhow::Result;
use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
};

/// Slots of the map, which are assigned to backends.
const SLOTS: usize = 1024;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rules {
    Stateful,
    Stateless,
}

pub(super) struct Nftables {
    rules: Rules,
    file: PathBuf,
}

impl Nftables {
    pub(super) fn start(arena: &Arena, rules: Rules, state: Serving) -> Result<Self> {
        let file = arena.lab.sandbox.dir().join("rules.nft");
        fs::write(&file, text(rules, state))?;
        arena.lab.edge.run(&format!("nft -f {}", file.display()))?;
        Ok(Self { rules, file })
    }
}

impl Running for Nftables {
    fn change(&mut self, _: Kind, to: Serving) -> Result<Command> {
        let elements = elements(self.rules, to);
        fs::write(&self.file, format!("flush map ip bench slots\nadd element ip bench slots {{ {elements} }}\n"))?;
        command(&format!("nft -f {}", self.file.display()))
    }
}

fn text(rules: Rules, state: Serving) -> String {
    let (vip, vip_port, port) = (arena::vip().ip(), arena::VIP_PORT, server::PORT);
    let select = match rules {
        Rules::Stateful => format!("numgen inc mod {SLOTS}"),
        Rules::Stateless => format!("jhash ip saddr . tcp sport mod {SLOTS} seed 0x5eed"),
    };
    let chain = match rules {
        Rules::Stateful => format!(
            "type nat hook prerouting priority dstnat\n    \
             ip daddr {vip} tcp dport {vip_port} dnat to {select} map @slots : {port}\n"
        ),
        Rules::Stateless => format!(
            "type filter hook prerouting priority raw\n    \
             ip daddr {vip} tcp dport {vip_port} notrack ip daddr set {select} map @slots tcp dport set {port}\n    \
             ip saddr 10.0.0.0/16 tcp sport {port} notrack ip saddr set {vip} tcp sport set {vip_port}\n"
        ),
    };
    format!(
        "table ip bench {{\n  map slots {{\n    typeof {select} : ip daddr\n    elements = {{ {} }}\n  }}\n  \
         chain prerouting {{\n    {chain}  }}\n}}\n",
        elements(rules, state)
    )
}

fn elements(rules: Rules, state: Serving) -> String {
    let backends = state.addresses();
    let backend = |slot: usize| match rules {
        Rules::Stateful => backends[slot % backends.len()],
        Rules::Stateless => rendezvous(slot, &backends),
    };
    (0..SLOTS).map(|slot| format!("{slot} : {}", backend(slot))).collect::<Vec<_>>().join(", ")
}

/// The backend of a slot. A backend that goes or returns moves only its own slots.
fn rendezvous(slot: usize, backends: &[Ipv4Addr]) -> Ipv4Addr {
    let weight = |backend: &&Ipv4Addr| {
        let mut hasher = DefaultHasher::new();
        (slot, backend).hash(&mut hasher);
        hasher.finish()
    };
    backends.iter().copied().max_by_key(|backend| weight(&backend)).unwrap_or(Ipv4Addr::UNSPECIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_slots_of_a_backend_that_goes_are_moved() {
        let all = Serving::first();
        let without = all.next(Kind::Backends);
        let gone = all.change(without, 0, 0).old[0];
        let [before, after] = [all, without].map(|state| {
            let backends = state.addresses();
            (0..SLOTS).map(|slot| rendezvous(slot, &backends)).collect::<Vec<_>>()
        });
        let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(before, _)| **before == gone));
        assert!((SLOTS / 32..SLOTS / 8).contains(&moved.len()), "{}", moved.len());
    }
}
