//! Making the running state match a configuration.
//!
//! The order ensures that no packet sees a half-written row, and that calling a killed apply again completes it:
//!
//! 1. Rows that a killed call has left, and services that are no longer configured, are removed from the index, then from the
//!    `services` map. After a fence, what they used is ended.
//! 2. The rows and testers of deployments are written, and the live words of new deployments, before any service refers to them.
//! 3. For each service that changes, backends and tables are written where nothing refers to them, and the backends are
//!    linked in their index. Then its rows are replaced, each at once, and its virtual addresses are linked in theirs. Then
//!    weights are settled.
//! 4. After a fence, backends, tables and deployments to which nothing refers are ended, and so are open flows
//!    of sources that have become testers or have ceased to be testers.
//!
//! Ended backends are free only after a second fence, because a program that has just found one alive
//! may still use its slot and the rows of its service. A row of `vips` is free when no flow refers to it.
//!
//! A backend that stays keeps its slot and epoch, and with them its flows, whatever happens to its weight
//! or to other backends. The live word of an existing deployment is never changed.

mod alloc;
mod check;
mod deployments;
mod fill;
mod job;
mod links;
mod rows;
mod salts;
mod sweep;

use std::collections::{HashMap, HashSet};

use bg_common::{Colour, MAX_DEPLOYMENTS, Mode, Role, ServiceInfo, ServiceKey, ServiceRow, TableSpan, Vip};
use bytemuck::Zeroable as _;

use self::{
    alloc::{Indexes, Spans},
    fill::fill,
    job::Job,
    rows::Rows,
    salts::Salts,
    sweep::Testers,
};
use crate::{
    ApplyRequest, Error, Instance, Paths, Refusal,
    config::{Config, Deployment, Service},
    fence::Fence,
    lock::Lock,
    maps::{Heads, Tables, TrafficCounters, Words, maglev, unless_missing},
    net, pins,
    plan::{self, Plan},
    running::{Running, RunningService, service_key, vip_row},
    sizes::Sizes,
    state::{Change, State},
    sys::Mapped,
};

/// Applies `config`, and returns what was changed.
pub(crate) fn apply(
    instance: &Instance,
    state: &State,
    config: &Config,
    request: &ApplyRequest,
) -> Result<Plan, Error> {
    let Instance { paths, words, tick_length, .. } = instance;
    check::check(config, &Sizes::read(paths)?)?;
    // The routes and neighbours are those of the caller's namespace.
    pins::check_own_namespace(paths)?;
    let _lock = Lock::apply(paths)?;
    let recalled = state.recall()?;
    let tables = Tables::open(paths)?;
    let running = Running::read(words, &tables)?;
    let plan = instance.compare(config, &tables, &running, &recalled)?;
    if plan.is_empty() {
        keep_neighbours(paths, config);
        remember(state, words, deployments::changes(words, &recalled, &running, &plan, request))?;
        return Ok(plan);
    }
    if !plan.colour_changes.is_empty() && !request.force {
        return Err(Refusal::ColourChanges { changes: plan.colour_changes }.into());
    }
    let heads = Heads::open(paths)?;
    links::check(config, &running, &heads, &tables)?;
    let mut work = Work::new(paths, words, tables, heads, &running, config)?;
    work.retire_left_over()?;
    let taken_over = work.remove_services(config)?;
    let indexes = deployments::begin(&mut work, config, *tick_length, &recalled)?;
    work.publish_services(config, &indexes)?;
    work.withdraw_services(&taken_over)?;
    work.release()?;
    deployments::end(&mut work, config)?;
    keep_neighbours(paths, config);
    remember(state, words, deployments::changes(words, &recalled, &running, &plan, request))?;
    Ok(plan)
}

/// Updates the state directory, after everything else is done.
fn remember(state: &State, words: &Words, changes: Vec<Change>) -> Result<(), Error> {
    state.move_in();
    state.record(Some(words), None, &changes).map_err(|source| {
        let done = if changes.is_empty() { "there was nothing to apply" } else { "the apply is done" };
        Error::DoneNotRecorded { done: done.to_owned(), source: Box::new(source) }
    })
}

/// Has the kernel keep the next hops to all backends resolved.
fn keep_neighbours(paths: &Paths, config: &Config) {
    let services = config.deployments.iter().flat_map(|deployment| &deployment.services);
    let elsewhere = services.filter(|service| service.mode == Mode::Nat);
    let backends = elsewhere.flat_map(|service| Colour::ALL.into_iter().flat_map(|colour| service.backends(colour)));
    net::keep_neighbours(paths, backends.map(|backend| backend.address.ip()));
}

/// An apply in progress.
struct Work<'a> {
    paths: &'a Paths,
    fence: Fence,
    words: &'a Words,
    tables: Tables,
    heads: Heads,
    maglev: Mapped<[u32; 2]>,
    traffic: TrafficCounters,
    running: &'a Running,
    deployments: Indexes,
    services: Indexes,
    slots: Indexes,
    spans: Spans,
    rows: Rows,
    salts: Salts,
    /// The keys of the configuration, which are never removed from the `services` map.
    wanted: HashSet<ServiceKey>,
    /// Rows of `vips` that must no longer be found, although a row of `services` may name them.
    unlinked: HashSet<usize>,
    retired: Retired,
    testers: Testers,
}

/// What no row refers to any more, although a running program may still use it.
#[derive(Debug, Default)]
struct Retired {
    services: Vec<u16>,
    slots: Vec<u32>,
    spans: Vec<TableSpan>,
}

impl Retired {
    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slots.is_empty() && self.spans.is_empty()
    }

    fn add_service(&mut self, service: &RunningService) {
        self.services.push(service.index);
        self.slots.extend(service.backends.iter().flatten().map(|backend| backend.slot));
        self.spans.extend(service.row.tables);
    }
}

impl<'a> Work<'a> {
    fn new(
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
    fn retire_left_over(&mut self) -> Result<(), Error> {
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

    /// Removes services that are no longer configured. Returns those whose address another
    /// service takes over. They are removed when that service is published, so that nothing of theirs is freed before.
    fn remove_services(&mut self, config: &Config) -> Result<Vec<&'a RunningService>, Error> {
        let (taken_over, gone): (Vec<_>, Vec<_>) =
            self.gone(config).into_iter().partition(|service| keys(service).any(|key| self.wanted.contains(&key)));
        self.withdraw_services(&gone)?;
        self.release()?;
        Ok(taken_over)
    }

    fn withdraw_services(&mut self, services: &[&RunningService]) -> Result<(), Error> {
        self.unlinked.extend(services.iter().flat_map(|service| vip_rows(service.index)));
        self.settle_indexes()?;
        for service in services {
            keys(service).try_for_each(|key| self.withdraw(key))?;
            self.retired.add_service(service);
        }
        Ok(())
    }

    /// The running services that are not in the configuration.
    fn gone(&self, config: &Config) -> Vec<&'a RunningService> {
        let wanted: HashSet<(u16, ServiceKey)> = config
            .deployments
            .iter()
            .filter_map(|deployment| Some((deployment, self.running.deployments.get(&deployment.name)?.index)))
            .flat_map(|(deployment, index)| {
                deployment.services.iter().map(move |service| (index, service_key(service.vip, service.protocol)))
            })
            .collect();
        let stays = |service: &&RunningService| wanted.contains(&(service.deployment, service.vip));
        self.running.services.iter().filter(|service| !stays(service)).collect()
    }

    /// Removes a key that no service of the configuration has.
    fn withdraw(&mut self, key: ServiceKey) -> Result<(), Error> {
        if self.wanted.contains(&key) {
            return Ok(());
        }
        self.remove_row(&key)
    }

    /// Writes a row. It replaces the present row, if there is one.
    fn write_row(&mut self, key: ServiceKey, row: ServiceRow) -> Result<(), Error> {
        if self.rows.need_fence() {
            self.wait()?;
        }
        self.tables.services.rows.insert(key, row, 0).map_err(Error::map("write", "services"))?;
        self.rows.written(key, row);
        Ok(())
    }

    /// Removes a row, if it exists.
    fn remove_row(&mut self, key: &ServiceKey) -> Result<(), Error> {
        unless_missing(self.tables.services.rows.remove(key)).map_err(Error::map("write", "services"))?;
        self.rows.removed(key);
        Ok(())
    }

    /// Waits for a grace period, after which no program uses what it read before.
    fn wait(&mut self) -> Result<(), Error> {
        self.fence.wait()?;
        self.rows.fenced();
        Ok(())
    }

    /// Publishes every service that is new or has changed.
    fn publish_services(&mut self, config: &Config, indexes: &HashMap<&str, u16>) -> Result<(), Error> {
        let current: HashMap<(u16, ServiceKey), &'a RunningService> =
            self.running.services.iter().map(|service| ((service.deployment, service.vip), service)).collect();
        let mut batch = Vec::new();
        for deployment in &config.deployments {
            let index = indexes[deployment.name.as_str()];
            let running = self.running.deployments.get(&deployment.name);
            for service in &deployment.services {
                let current = current.get(&(index, service_key(service.vip, service.protocol))).copied();
                if plan::service_needs_work(deployment, service, running, current) {
                    let job = self.prepare(&mut batch, deployment, index, service, current)?;
                    batch.push(job);
                }
            }
        }
        self.publish(&mut batch)
    }

    /// Allocates room for a service. If there is none, publishes the services that are ready, and uses what that frees.
    fn prepare(
        &mut self,
        batch: &mut Vec<Job>,
        deployment: &Deployment,
        index: u16,
        service: &Service,
        current: Option<&RunningService>,
    ) -> Result<Job, Error> {
        match Job::prepare(self, deployment, index, service, current) {
            Err(Error::NoRoom { .. }) if !batch.is_empty() || !self.retired.is_empty() => {
                self.publish(batch)?;
                self.release()?;
                Job::prepare(self, deployment, index, service, current)
            }
            result => result,
        }
    }

    /// Writes the services that are ready, then publishes them.
    fn publish(&mut self, batch: &mut Vec<Job>) -> Result<(), Error> {
        for job in &*batch {
            job.write_rows(self)?;
        }
        // Before any packet is sent to them.
        self.link_backends()?;
        let fills: Vec<_> = batch.iter().flat_map(|job| &job.fills).collect();
        fill(&fills, &self.maglev);
        for job in &*batch {
            job.publish(self)?;
        }
        self.link_vips()?;
        self.change_previews(batch)?;
        for job in batch.drain(..) {
            job.settle(self);
        }
        Ok(())
    }

    /// Ends preview addresses that are removed or replaced, and writes the new ones into their rows.
    fn change_previews(&mut self, jobs: &[Job]) -> Result<(), Error> {
        let jobs: Vec<&Job> = jobs.iter().filter(|job| job.changes_preview()).collect();
        if jobs.is_empty() {
            return Ok(());
        }
        let rows: HashSet<usize> = jobs.iter().map(|job| job.preview_row()).collect();
        self.unlinked.extend(&rows);
        self.settle_indexes()?;
        jobs.iter().try_for_each(|job| self.withdraw(job.old_preview()))?;
        self.wait()?;
        self.sweep_vips(&rows)?;
        jobs.iter().try_for_each(|job| job.replace_preview(self))?;
        self.unlinked.retain(|row| !rows.contains(row));
        self.link_vips()
    }

    /// Waits until no program can use what is retired, then frees it.
    fn release(&mut self) -> Result<(), Error> {
        if self.retired.is_empty() {
            return Ok(());
        }
        self.wait()?;
        self.free()
    }

    /// Frees what is retired. No program can find it any more.
    fn free(&mut self) -> Result<(), Error> {
        let Retired { services, slots, spans } = std::mem::take(&mut self.retired);
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
fn keys(service: &RunningService) -> impl Iterator<Item = ServiceKey> + use<> {
    std::iter::once(service.vip).chain(service.preview.map(|(key, _)| key))
}

/// Both rows of a service in `vips`.
fn vip_rows(service: u16) -> [usize; 2] {
    [Role::Vip, Role::Preview].map(|role| vip_row(service, role))
}
