//! What a switch does to open flows.

use std::{collections::HashMap, net::IpAddr, ops::AddAssign};

use bg_common::{FLOW_WAYS, Family, FlowState, LiveWord, Protocol, SwitchTerms};
use bg_ebpf::policy::lifetime::ended_by;
use serde::Serialize;

use crate::{
    Error, Instance,
    flows::{OpenFlow, Scan},
    maps::{Tables, flows4, flows6},
};

/// What happens to open flows, or to their clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fates {
    /// The number of those that stay on their backends.
    pub stay: u64,
    /// The number of those that go on at a backend of the other colour.
    #[serde(rename = "move")]
    pub moved: u64,
    /// The number of those that end: TCP connections cannot go on elsewhere.
    pub reset: u64,
}

impl AddAssign for Fates {
    fn add_assign(&mut self, other: Self) {
        self.stay += other.stay;
        self.moved += other.moved;
        self.reset += other.reset;
    }
}

impl Fates {
    const STAY: Self = Self { stay: 1, moved: 0, reset: 0 };
    const MOVE: Self = Self { stay: 0, moved: 1, reset: 0 };
    const RESET: Self = Self { stay: 0, moved: 0, reset: 1 };

    /// The fate of one flow once `word` is in force.
    fn of(open: &OpenFlow<'_>, word: LiveWord, terms: &SwitchTerms, now: u32) -> Self {
        if !ended_by(open.flow, open.target.colour, word, terms, now) {
            return Self::STAY;
        }
        // A client that has got no answer yet sends its SYN again, and that goes to the other colour.
        let is_connection = open.flow.state.has_any(FlowState::CONFIRMED | FlowState::ANSWERED);
        if open.target.protocol == Protocol::Tcp && is_connection { Self::RESET } else { Self::MOVE }
    }

    /// The worst that happens to one of these flows.
    fn worst(self) -> Self {
        match self {
            Self { reset: 1.., .. } => Self::RESET,
            Self { moved: 1.., .. } => Self::MOVE,
            _ => Self::STAY,
        }
    }

    pub(super) fn sum(self) -> u64 {
        self.stay + self.moved + self.reset
    }
}

/// The flows and clients of a service or a deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Affected {
    pub(super) flows: Fates,
    /// By the worst that happens to one of their flows.
    pub(super) clients: Fates,
}

impl Affected {
    fn add(&mut self, flows_of_client: Fates) {
        self.flows += flows_of_client;
        self.clients += flows_of_client.worst();
    }
}

/// How full a flow table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableUse {
    /// The number of open flows, of all deployments.
    pub open: u64,
    /// The number of flows for which it has room.
    pub room: u64,
}

/// How full the flow tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TablesUse {
    /// The table of IPv4 flows.
    pub ipv4: TableUse,
    /// The table of IPv6 flows.
    pub ipv6: TableUse,
}

/// The open flows, as one look at the flow tables has found them.
#[derive(Default)]
pub(super) struct Census {
    pub(super) all: Affected,
    /// By index of services.
    pub(super) services: HashMap<u16, Affected>,
    pub(super) tables: TablesUse,
}

/// The census of one thread.
#[derive(Default)]
struct Counts {
    /// By service and client.
    clients: HashMap<(u16, IpAddr), Fates>,
    ipv4: u64,
    ipv6: u64,
}

impl Census {
    /// Counts open flows, and what happens to those of a deployment once `word` is in force.
    pub(super) fn take(
        instance: &Instance,
        tables: &Tables,
        deployment: u16,
        word: LiveWord,
        terms: &SwitchTerms,
    ) -> Result<Self, Error> {
        let scan = Scan::new(instance, &tables.backends)?;
        let counts = scan.fold(&instance.paths, Counts::default, |counts, open| {
            let Some(open) = open else { return };
            match open.family {
                Family::V4 => counts.ipv4 += 1,
                Family::V6 => counts.ipv6 += 1,
            }
            if open.target.deployment == deployment {
                let client = (open.service(), open.client().ip());
                *counts.clients.entry(client).or_default() += Fates::of(open, word, terms, scan.now);
            }
        })?;

        let mut census = Self::default();
        let room = |buckets: usize| buckets as u64 * u64::from(FLOW_WAYS);
        census.tables.ipv4.room = room(flows4(&instance.paths)?.rows());
        census.tables.ipv6.room = room(flows6(&instance.paths)?.rows());
        let (mut by_service, mut by_client) = (HashMap::<_, Fates>::new(), HashMap::<_, Fates>::new());
        for thread in counts {
            census.tables.ipv4.open += thread.ipv4;
            census.tables.ipv6.open += thread.ipv6;
            for ((service, client), fates) in thread.clients {
                *by_service.entry((service, client)).or_default() += fates;
                *by_client.entry(client).or_default() += fates;
            }
        }
        by_service.into_iter().for_each(|((service, _), fates)| census.services.entry(service).or_default().add(fates));
        by_client.into_values().for_each(|fates| census.all.add(fates));
        Ok(census)
    }
}
