//! Publishing the services of a configuration, and removing those that are not in it.

use std::collections::{HashMap, HashSet};

use bg_common::ServiceKey;

use super::{
    fill::fill,
    job::Job,
    work::{Work, keys},
};
use crate::{
    Error,
    config::{Config, Deployment, Service},
    plan,
    running::{RunningService, service_key},
};

impl<'a> Work<'a> {
    /// Removes services that are no longer configured. Returns those whose address another
    /// service takes over. They are removed when that service is published, so that nothing of theirs is freed before.
    pub(super) fn remove_services(&mut self, config: &Config) -> Result<Vec<&'a RunningService>, Error> {
        let (taken_over, gone): (Vec<_>, Vec<_>) =
            self.gone(config).into_iter().partition(|service| keys(service).any(|key| self.wanted.contains(&key)));
        self.withdraw_services(&gone)?;
        self.release()?;
        Ok(taken_over)
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

    /// Publishes every service that is new or has changed.
    pub(super) fn publish_services(&mut self, config: &Config, indexes: &HashMap<&str, u16>) -> Result<(), Error> {
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
}
