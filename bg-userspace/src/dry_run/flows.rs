//! What a switch does to open flows.

use std::{collections::HashMap, net::IpAddr};

use bg_common::{FLOW_WAYS, Family, LiveWord, SwitchTerms};
use serde::Serialize;

use crate::{
    Error, Instance,
    fates::Fates,
    flows::Scan,
    maps::{Tables, flows4, flows6},
};

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

#[cfg(feature = "serve")]
impl Instance {
    /// How full the flow tables are.
    pub(crate) fn flow_tables(&self) -> Result<TablesUse, Error> {
        let tables = Tables::open(&self.paths)?;
        let scan = Scan::new(self, &tables.backends)?;
        let counts = scan.fold(&self.paths, TablesUse::default, |counts, open| match open.map(|open| open.family) {
            Some(Family::V4) => counts.ipv4.open += 1,
            Some(Family::V6) => counts.ipv6.open += 1,
            None => {}
        })?;
        let mut tables = room(self)?;
        for thread in counts {
            tables.ipv4.open += thread.ipv4.open;
            tables.ipv6.open += thread.ipv6.open;
        }
        Ok(tables)
    }
}

/// The sizes of the empty tables.
fn room(instance: &Instance) -> Result<TablesUse, Error> {
    let empty = |buckets: usize| TableUse { open: 0, room: buckets as u64 * u64::from(FLOW_WAYS) };
    Ok(TablesUse { ipv4: empty(flows4(&instance.paths)?.rows()), ipv6: empty(flows6(&instance.paths)?.rows()) })
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
                *counts.clients.entry(client).or_default() += Fates::of(open.flow, open.target, word, terms, scan.now);
            }
        })?;

        let mut census = Self { tables: room(instance)?, ..Self::default() };
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
