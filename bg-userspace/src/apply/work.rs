//! An apply in progress: the open maps, what is free in them, and what is to be freed.

use std::collections::{HashMap, HashSet};

use bg_common::{MAX_DEPLOYMENTS, Role, ServiceInfo, ServiceKey, ServiceRow, TableSpan, Vip};
use bytemuck::Zeroable as _;

use super::{
    alloc::{Indexes, Spans},
    rows::Rows,
    salts::Salts,
};
use crate::{
    Error, Paths,
    config::{Config, Prefix},
    fence::Fence,
    maps::{Heads, Tables, TrafficCounters, Words, maglev, unless_missing},
    running::{Running, RunningService, service_key, vip_row},
    sys::Mapped,
};

/// The new testers of deployments whose testers have changed, by the deployment's index.
pub(super) type Testers = HashMap<u16, Vec<Prefix>>;

/// An apply in progress.
pub(super) struct Work<'a> {
    pub(super) paths: &'a Paths,
    pub(super) fence: Fence,
    pub(super) words: &'a Words,
    pub(super) tables: Tables,
    pub(super) heads: Heads,
    pub(super) maglev: Mapped<[u32; 2]>,
    pub(super) traffic: TrafficCounters,
    pub(super) running: &'a Running,
    pub(super) deployments: Indexes,
    pub(super) services: Indexes,
    pub(super) slots: Indexes,
    pub(super) spans: Spans,
    pub(super) rows: Rows,
    pub(super) salts: Salts,
    /// The keys of the configuration, which are never removed from the `services` map.
    pub(super) wanted: HashSet<ServiceKey>,
    /// Rows of `vips` that must no longer be found, although a row of `services` may name them.
    pub(super) unlinked: HashSet<usize>,
    pub(super) retired: Retired,
    pub(super) testers: Testers,
}

/// What no row refers to any more, although a running program may still use it.
#[derive(Debug, Default)]
pub(super) struct Retired {
    pub(super) services: Vec<u16>,
    pub(super) slots: Vec<u32>,
    pub(super) spans: Vec<TableSpan>,
}

impl Retired {
    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slots.is_empty() && self.spans.is_empty()
    }

    fn add_service(&mut self, service: &RunningService) {
        self.services.push(service.index);
        self.slots.extend(service.slots());
        self.spans.extend(service.row.tables);
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(
        paths: &'a Paths,
        words: &'a Words,
        tables: Tables,
        heads: Heads,
        running: &'a Running,
        config: &Config,
    ) -> Result<Self, Error> {
        let flags = |used: &HashSet<u16>, capacity| (0..capacity).map(|i| used.contains(&(i as u16))).collect();
        let keys = config.deployments.iter().flat_map(|deployment| &deployment.services).flat_map(|service| {
            std::iter::once(service.vip).chain(service.preview).map(|address| service_key(address, service.protocol))
        });
        let maglev = maglev(paths)?;
        Ok(Self {
            paths,
            fence: Fence::prepare(paths)?,
            words,
            deployments: Indexes::new(flags(&running.used.deployments, MAX_DEPLOYMENTS as usize)),
            services: Indexes::new(flags(&running.used.services, tables.services.info.rows())),
            slots: Indexes::new(running.used.slots.clone()),
            spans: Spans::new(running.used.spans.clone(), 2 * maglev.rows() as u32),
            tables,
            heads,
            maglev,
            traffic: TrafficCounters::open(paths)?,
            running,
            rows: Rows::new(running.published.clone()),
            salts: Salts::new(running),
            wanted: keys.collect(),
            unlinked: HashSet::new(),
            retired: Retired::default(),
            testers: Testers::default(),
        })
    }

    /// Frees what a killed call has left. Waits even if nothing of it is visible, because it may have released
    /// something a moment ago.
    pub(super) fn retire_left_over(&mut self) -> Result<(), Error> {
        self.wait()?;
        let left_over = &self.running.left_over;
        for key in &left_over.rows {
            self.remove_row(key)?;
        }
        self.retired.services.extend(&left_over.services);
        self.retired.slots.extend(&left_over.slots);
        self.settle_indexes()?;
        self.wait()?;
        self.free()
    }

    pub(super) fn withdraw_services(&mut self, services: &[&RunningService]) -> Result<(), Error> {
        self.unlinked.extend(services.iter().flat_map(|service| vip_rows(service.index)));
        self.settle_indexes()?;
        for service in services {
            keys(service).try_for_each(|key| self.withdraw(key))?;
            self.retired.add_service(service);
        }
        Ok(())
    }

    /// Removes a key that no service of the configuration has.
    pub(super) fn withdraw(&mut self, key: ServiceKey) -> Result<(), Error> {
        if self.wanted.contains(&key) {
            return Ok(());
        }
        self.remove_row(&key)
    }

    /// Writes a row. It replaces the present row, if there is one.
    pub(super) fn write_row(&mut self, key: ServiceKey, row: ServiceRow) -> Result<(), Error> {
        if self.rows.need_fence() {
            self.wait()?;
        }
        self.tables.services.rows.insert(key, row, 0).map_err(Error::map("write", "services"))?;
        self.rows.written(key, row);
        Ok(())
    }

    /// Removes a row, if it exists.
    pub(super) fn remove_row(&mut self, key: &ServiceKey) -> Result<(), Error> {
        unless_missing(self.tables.services.rows.remove(key)).map_err(Error::map("write", "services"))?;
        self.rows.removed(key);
        Ok(())
    }

    /// Waits for a grace period, after which no program uses what it read before.
    pub(super) fn wait(&mut self) -> Result<(), Error> {
        self.fence.wait()?;
        self.rows.fenced();
        Ok(())
    }

    /// Waits until no program can use what is retired, then frees it.
    pub(super) fn release(&mut self) -> Result<(), Error> {
        if self.retired.is_empty() {
            return Ok(());
        }
        self.wait()?;
        self.free()
    }

    /// Frees what is retired. No program can find it any more.
    fn free(&mut self) -> Result<(), Error> {
        let Retired { services, slots, spans } = std::mem::take(&mut self.retired);
        // Flows that are not handed over go where their hash leads.
        let _ = self.hand_over(&slots);
        // What cannot be ended now is ended by the backends' own stacks.
        let _ = self.end_connections(&slots);
        for slot in &slots {
            self.tables.backends.update(*slot as usize, |backend| backend.identity.in_use = 0);
        }
        self.settle_indexes()?;
        if !slots.is_empty() {
            // A packet finds the slot in its flow's row, and may have found the backend alive just now.
            self.wait()?;
        }
        for slot in slots {
            self.slots.give(slot as usize);
        }
        let vips: HashSet<usize> = services.iter().flat_map(|service| vip_rows(*service)).collect();
        self.sweep_vips(&vips)?;
        for row in vips {
            self.tables.services.vips.write(row, &Vip::default());
            self.unlinked.remove(&row);
        }
        for service in services {
            self.tables.services.info.write(service.into(), &ServiceInfo::zeroed());
            self.services.give(service.into());
        }
        for span in spans {
            self.spans.give(span);
        }
        Ok(())
    }
}

/// The keys of a service.
pub(super) fn keys(service: &RunningService) -> impl Iterator<Item = ServiceKey> + use<> {
    std::iter::once(service.vip).chain(service.preview.map(|(key, _)| key))
}

/// Both rows of a service in `vips`.
fn vip_rows(service: u16) -> [usize; 2] {
    [Role::Vip, Role::Preview].map(|role| vip_row(service, role))
}
