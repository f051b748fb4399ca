//! `bgctl check`: is the configuration one?

use bg_userspace::config::Config;
use serde::Serialize;

use crate::{
    args::{ConfigFile, Global},
    exit::Outcome,
    output,
};

/// What a valid configuration holds.
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
    let summary = Summary::of(&super::load(&file.config)?);
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
