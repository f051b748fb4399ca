//! `bgctl check`: validate a configuration.

use std::path::Path;

use bg_userspace::{
    config::{Config, shared_backends},
    needs_network_at_boot,
};
use serde::Serialize;

use crate::{
    args::{ConfigFile, Global},
    exit::Outcome,
    output,
};

/// The numbers of items in a valid configuration.
#[derive(Serialize)]
struct Summary {
    valid: bool,
    deployments: usize,
    services: usize,
    backends: usize,
}

impl Summary {
    fn of(config: &Config) -> Self {
        let services = || config.deployments.iter().flat_map(|deployment| &deployment.services);
        Self {
            valid: true,
            deployments: config.deployments.len(),
            services: services().count(),
            backends: services().flat_map(|service| &service.backends).map(Vec::len).sum(),
        }
    }
}

pub(super) fn run(global: &Global, file: &ConfigFile) -> anyhow::Result<Outcome> {
    let config = super::load(&file.config)?;
    let summary = Summary::of(&config);
    let path = super::path_of(&file.config);
    tell_of_shared_backends(&config, path);
    tell_of_listeners(global, &config, path);
    if global.json {
        output::print_json(&summary)?;
    } else {
        let path = super::path_of(&file.config).display();
        let deployments = output::count(summary.deployments, "deployment");
        let services = output::count(summary.services, "service");
        let backends = output::count(summary.backends, "backend");
        output::print(&format!("{path} is valid: {deployments}, {services}, {backends}\n"))?;
    }
    Ok(Outcome::Done)
}

/// A boot would fail, long after this check.
fn tell_of_listeners(global: &Global, config: &Config, path: &Path) {
    for (deployment, service) in needs_network_at_boot(&global.paths(), config) {
        output::line(&format!(
            "{}: note: deployment \"{deployment}\", service \"{service}\": no `listen`, and no apply has chosen listeners yet. One at boot, before the network is \
             there, would fail: name them, or apply once before",
            path.display()
        ));
    }
}

/// Notes go to stderr, because they are neither results nor errors.
fn tell_of_shared_backends(config: &Config, path: &Path) {
    const SHOWN: usize = 20;
    let shared = shared_backends(config);
    let mut lines: Vec<_> = shared.iter().take(SHOWN).map(|shared| format!("note: {shared}")).collect();
    if let Some(more @ 1..) = shared.len().checked_sub(SHOWN) {
        lines.push(format!("note: and {} of several services", output::count(more, "more backend")));
    }
    for line in lines {
        output::line(&format!("{}: {line}", path.display()));
    }
}
