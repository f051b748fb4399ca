//! Publishing the services of a configuration, and removing those that are not in it.

use std::collections::HashSet;

use super::{
    fill::fill,
    job::Job,
    work::{Work, keys},
};
use crate::{
    Error,
    plan::{DeploymentDiff, Diff, ServiceDiff},
    running::RunningService,
};

impl<'a> Work<'a> {
    /// Removes services that are no longer configured. Returns those whose address another
    /// service takes over. They are removed when that service is published, so that nothing of theirs is freed before.
    pub(super) fn remove_services(&mut self, diff: &Diff<'a>) -> Result<Vec<&'a RunningService>, Error> {
        let removed = diff.removed_services.iter().map(|removed| removed.current);
        let (taken_over, gone): (Vec<_>, Vec<_>) =
            removed.partition(|service| keys(service).any(|key| self.wanted.contains(&key)));
        self.withdraw_services(&gone)?;
        self.release()?;
        Ok(taken_over)
    }

    /// Publishes every service that is new or changes. `indexes` are those of the deployments.
    pub(super) fn publish_services(&mut self, diff: &Diff<'_>, indexes: &[u16]) -> Result<(), Error> {
        let mut batch = Vec::new();
        for (deployment, index) in diff.deployments.iter().zip(indexes) {
            for service in deployment.changed_services() {
                let job = self.prepare(&mut batch, deployment, *index, service)?;
                batch.push(job);
            }
        }
        self.publish(&mut batch)
    }

    /// Allocates room for a service. If there is none, publishes the services that are ready, and uses what that frees.
    fn prepare(
        &mut self,
        batch: &mut Vec<Job>,
        deployment: &DeploymentDiff<'_>,
        index: u16,
        service: &ServiceDiff<'_>,
    ) -> Result<Job, Error> {
        match Job::prepare(self, deployment, index, service) {
            Err(Error::NoRoom { .. }) if !batch.is_empty() || !self.retired.is_empty() => {
                self.publish(batch)?;
                self.release()?;
                Job::prepare(self, deployment, index, service)
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
