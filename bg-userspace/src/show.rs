//! The running configuration, read back from the maps.
//!
//! The maps keep everything from a file except what concerns the controller alone, the gates, of which the last apply has kept a copy, and `initial`. The live
//! colour takes its place, so that another host starts with the same colour. Applying the result changes nothing.

use std::{collections::HashMap, time::Duration};

use bg_common::{Colour, DeploymentRow, Mode, Protocol};

use crate::{
    Error, Instance,
    config::{BackendSpec, Config, Deployment, DivideBy, Encap, Failover, Gate, OnSwitch, Service, StickyPrefix, Tee},
    kept_gates,
    maps::Tables,
    running::{Running, RunningDeployment, RunningService, UNSETTLED, address_of},
};

impl Instance {
    /// The running configuration, in the order in which it was applied. `initial` is the live colour. During an
    /// apply, or after a killed apply, [`config::parse`](crate::config::parse) may not accept the result.
    pub fn configuration(&self) -> Result<Config, Error> {
        self.configuration_with(kept_gates::all(&self.paths)?)
    }

    /// The same without gates. This needs no disk.
    pub fn configuration_without_gates(&self) -> Result<Config, Error> {
        self.configuration_with(HashMap::new())
    }

    fn configuration_with(&self, mut gates: HashMap<String, Vec<Gate>>) -> Result<Config, Error> {
        let running = Running::read(&self.words, &Tables::open(&self.paths)?)?;
        let mut deployments: Vec<_> = running.deployments.iter().collect();
        deployments.sort_by_key(|(_, deployment)| deployment.index);
        let deployment = |(name, deployment): (&String, &RunningDeployment)| Deployment {
            name: name.clone(),
            initial: deployment.word.live(),
            on_switch: on_switch_of(&deployment.row),
            drain_timeout: drain_timeout_of(&deployment.row),
            tcp_idle_timeout: Duration::from_millis(deployment.row.tcp_idle_ms),
            udp_idle_timeout: Duration::from_millis(deployment.row.udp_idle_ms),
            sticky: if deployment.row.sticky == 1 { DivideBy::Client } else { DivideBy::Flow },
            sticky_prefix: StickyPrefix {
                ipv4: deployment.row.client_prefix[0],
                ipv6: deployment.row.client_prefix[1],
            },
            testers: deployment.testers.clone(),
            health: None,
            failover: Failover::default(),
            gates: gates.remove(name).unwrap_or_default(),
            services: running.services_of(deployment.index).map(service).collect(),
        };
        Ok(Config { deployments: deployments.into_iter().map(deployment).collect(), ..Config::default() })
    }
}

fn service(running: &RunningService) -> Service {
    Service {
        name: running.name.clone(),
        vip: address_of(&running.vip),
        protocol: Protocol::from_u8(running.vip.protocol).unwrap_or(Protocol::Tcp),
        mode: running.mode,
        preview: running.preview.map(|(key, _)| address_of(&key)),
        is_mirrored: running.is_mirrored,
        tee: if running.mode == Mode::Tee { running.tee } else { Tee::default() },
        encap: if running.mode.is_tunnel() { running.encap } else { Encap::default() },
        backends: Colour::ALL.map(|colour| {
            let of_mode = running.backends[colour as usize].iter().filter(|backend| backend.mode == running.mode);
            let weight = |weight| if weight == UNSETTLED { 1 } else { weight };
            let mut backends: Vec<_> = of_mode
                .map(|backend| BackendSpec { address: backend.address, weight: weight(backend.weight) })
                .collect();
            backends.sort_by_key(|backend| backend.address);
            backends
        }),
        health: None,
        is_unchecked: false,
    }
}

pub(crate) fn on_switch_of(row: &DeploymentRow) -> OnSwitch {
    if row.on_switch == 0 { OnSwitch::Drain } else { OnSwitch::Cut }
}

/// `None` is never.
pub(crate) fn drain_timeout_of(row: &DeploymentRow) -> Option<Duration> {
    (row.drain_timeout_ms != 0).then(|| Duration::from_millis(row.drain_timeout_ms))
}
