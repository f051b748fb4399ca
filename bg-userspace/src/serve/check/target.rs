//! Which backends are checked, and how.

use std::collections::BTreeMap;

use bg_common::Colour;

use super::by_vip;
use crate::{
    DeploymentStatus, Health,
    config::{
        Config,
        model::{CheckKind, HealthCheck},
    },
    serve::board::BackendKey,
};

/// How a backend is to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) check: HealthCheck,
    /// Where its connection goes; `None` is the backend's own address.
    pub(super) by_vip: Option<by_vip::Target>,
}

/// The checks of a configuration: those of the services, else those of their deployments. Both colours are checked.
pub(super) fn wanted(config: &Config) -> BTreeMap<BackendKey, Wanted> {
    let mut wanted = BTreeMap::new();
    for deployment in &config.deployments {
        for service in &deployment.services {
            let Some(check) = deployment.check_of(service) else { continue };
            let is_by_vip = service.mode.is_direct() && !matches!(check.kind, CheckKind::Exec { .. });
            let (vip, mode, encap) = (service.vip.ip(), service.mode, service.encap);
            let by_vip = is_by_vip.then_some(by_vip::Target { vip, mode, encap });
            for colour in Colour::ALL {
                for backend in service.backends(colour) {
                    let key = BackendKey {
                        deployment: deployment.name.clone(),
                        service: service.name.clone(),
                        colour,
                        address: backend.address,
                    };
                    wanted.insert(key, Wanted { check: check.clone(), by_vip: by_vip.clone() });
                }
            }
        }
    }
    wanted
}

/// Whether the configuration has this service, with checks or without.
pub(super) fn has_service(config: &Config, deployment: &str, service: &str) -> bool {
    let deployment = config.deployments.iter().find(|found| found.name == deployment);
    deployment.is_some_and(|deployment| deployment.services.iter().any(|found| found.name == service))
}

/// What the instance says of each backend: its health and its share.
pub(super) fn told(deployments: &[DeploymentStatus]) -> BTreeMap<BackendKey, (Health, f64)> {
    let mut told = BTreeMap::new();
    for deployment in deployments {
        for service in &deployment.services {
            for colour in Colour::ALL {
                for backend in &service.colours.of(colour).backends {
                    let key = BackendKey {
                        deployment: deployment.name.clone(),
                        service: service.name.clone(),
                        colour,
                        address: backend.address,
                    };
                    told.insert(key, (Health::of_name(backend.health), backend.slow_start.unwrap_or(1.0)));
                }
            }
        }
    }
    told
}
