//! The numbers of one scrape.

use std::{collections::BTreeMap, fmt};

use bg_common::ABI_VERSION;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::counts::Kind;
use crate::{
    BackendStatus, ColourStatus, DeploymentStatus, ServiceStatus, Status, TablesUse,
    serve::{
        board::{BackendKey, Checked, Troubles},
        tee::counts::TeeStatus,
    },
};

const PHASES: [&str; 7] = ["steady", "draining", "split", "ramping", "confirming", "scheduled", "frozen"];
/// What is counted from zero on, so that the first one is seen as an increase.
const USUAL: [&str; 4] = ["switch", "rollback", "expired", "tripped"];

/// What is exported.
#[derive(Debug)]
pub(super) struct Numbers {
    pub(super) at: jiff::Timestamp,
    /// `None` without an instance.
    pub(super) look: Option<(Status, TablesUse)>,
    pub(super) changes: BTreeMap<Kind, u64>,
    pub(super) tees: Vec<TeeStatus>,
    pub(super) checks: BTreeMap<BackendKey, Checked>,
    pub(super) troubles: Troubles,
}

/// A metric whose samples have labels.
struct Family<'e>(MetricEncoder<'e>);

impl Family<'_> {
    fn set<const N: usize>(&mut self, labels: [(&str, &str); N], value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_family(&labels)?.encode_gauge(&value)
    }

    fn count<const N: usize>(&mut self, labels: [(&str, &str); N], value: u64) -> fmt::Result {
        self.0.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn total(&mut self, value: u64) -> fmt::Result {
        self.0.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }
}

fn gauge<'e>(encoder: &'e mut DescriptorEncoder<'_>, name: &'e str, help: &str) -> Result<Family<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge).map(Family)
}

/// `name` is without `_total`.
fn counter<'e>(encoder: &'e mut DescriptorEncoder<'_>, name: &'e str, help: &str) -> Result<Family<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter).map(Family)
}

impl Numbers {
    fn deployments(&self) -> &[DeploymentStatus] {
        self.look.as_ref().map_or(&[], |(status, _)| &status.deployments)
    }

    fn services(&self) -> impl Iterator<Item = (&str, &ServiceStatus)> {
        self.deployments().iter().flat_map(|DeploymentStatus { name, services, .. }| {
            services.iter().map(move |service| (name.as_str(), service))
        })
    }

    fn live(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut live = gauge(encoder, "bgctl_live_info", "The live colour of a deployment, and its generation")?;
        for deployment in self.deployments() {
            let generation = deployment.generation.to_string();
            live.set(
                [("deployment", &deployment.name), ("colour", deployment.live), ("generation", &generation)],
                1_u64,
            )?;
        }
        let mut share = gauge(encoder, "bgctl_green_share", "The part of new flows that goes to green")?;
        for deployment in self.deployments() {
            share.set([("deployment", &deployment.name)], deployment.green_share)?;
        }
        let mut phase = gauge(encoder, "bgctl_phase", "1 for the phase of a deployment, 0 for the others")?;
        for deployment in self.deployments() {
            for name in PHASES {
                phase.set([("deployment", &deployment.name), ("phase", name)], u64::from(deployment.phase == name))?;
            }
        }
        let help = "Seconds until a switch is taken back unless it is confirmed; absent if none waits";
        let mut deadline = gauge(encoder, "bgctl_confirm_deadline_seconds", help)?;
        for deployment in self.deployments() {
            if let Some(at) = deployment.confirm_deadline {
                let left = at.duration_since(self.at).as_secs_f64();
                deadline.set([("deployment", &deployment.name)], left.max(0.0))?;
            }
        }
        Ok(())
    }

    fn traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Of = fn(&ColourStatus) -> u64;
        let kinds: [(&str, &str, Of); 3] = [
            ("bgctl_packets", "Packets from clients to backends", |colour| colour.packets),
            ("bgctl_bytes", "Bytes in the frames of these packets", |colour| colour.bytes),
            ("bgctl_flows_opened", "Flows that were opened", |colour| colour.flows_opened),
        ];
        for (name, help, of) in kinds {
            let mut family = counter(encoder, name, help)?;
            for (deployment, service) in self.services() {
                for (colour, traffic) in colours(service) {
                    let labels = [("deployment", deployment), ("service", service.name.as_str()), ("colour", colour)];
                    family.count(labels, of(traffic))?;
                }
            }
        }
        let mut flows = gauge(encoder, "bgctl_flows", "Open flows")?;
        for DeploymentStatus { name, flows: open, .. } in self.deployments() {
            for (colour, open) in [("blue", open.blue), ("green", open.green)] {
                flows.set([("deployment", name), ("colour", colour)], open)?;
            }
        }
        Ok(())
    }

    fn events(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.look.as_ref().map(|(status, _)| status);
        let mut drops = counter(encoder, "bgctl_drops", "Dropped packets")?;
        for (reason, count) in status.into_iter().flat_map(|status| &status.drops) {
            drops.count([("reason", reason)], *count)?;
        }
        let mut events = counter(encoder, "bgctl_events", "Other events of the data path; nothing was dropped")?;
        for (event, count) in status.into_iter().flat_map(|status| &status.events) {
            events.count([("event", event)], *count)?;
        }
        let help = "Recorded changes (done), and requests to the API that were not done (refused, failed), since the controller has started";
        let mut changes = counter(encoder, "bgctl_switches", help)?;
        for DeploymentStatus { name, .. } in self.deployments() {
            for action in USUAL {
                let kind = (name.clone(), action.to_owned(), "done");
                if !self.changes.contains_key(&kind) {
                    changes.count([("deployment", name), ("action", action), ("result", "done")], 0)?;
                }
            }
            for ((_, action, result), count) in self.changes.iter().filter(|((deployment, ..), _)| deployment == name) {
                changes.count([("deployment", name), ("action", action), ("result", result)], *count)?;
            }
        }
        Ok(())
    }

    /// Tells each backend of each service and colour, with its labels.
    fn each_backend(&self, mut tell: impl FnMut([(&str, &str); 4], &BackendStatus) -> fmt::Result) -> fmt::Result {
        for (deployment, service) in self.services() {
            for (colour, status) in colours(service) {
                for backend in &status.backends {
                    let address = backend.address.to_string();
                    let labels = [
                        ("deployment", deployment),
                        ("service", &*service.name),
                        ("colour", colour),
                        ("backend", &*address),
                    ];
                    tell(labels, backend)?;
                }
            }
        }
        Ok(())
    }

    fn health(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut up =
            gauge(encoder, "bgctl_backend_up", "1 if a backend is up, 0 if it is down; absent if it is not known")?;
        self.each_backend(|labels, backend| match backend.health {
            "unknown" => Ok(()),
            health => up.set(labels, u64::from(health == "up")),
        })?;
        let help = "The weight of a backend, as configured";
        let mut weight = gauge(encoder, "bgctl_backend_weight", help)?;
        self.each_backend(|labels, backend| weight.set(labels, backend.weight))?;
        let help = "Health checks that began more than a tenth of a second late";
        counter(encoder, "bgctl_checks_late", help)?.total(self.troubles.late)?;
        let help = "Health checks that this host could not make, which says nothing of the backends";
        counter(encoder, "bgctl_checks_without_verdict", help)?.total(self.troubles.without_verdict)?;
        let help = "How long the last check of a backend took";
        let mut duration = gauge(encoder, "bgctl_backend_check_duration_seconds", help)?;
        for (BackendKey { deployment, service, colour, address }, checked) in &self.checks {
            if let Some(took) = checked.took {
                let address = address.to_string();
                let labels = [
                    ("deployment", deployment.as_str()),
                    ("service", service.as_str()),
                    ("colour", colour.name()),
                    ("backend", address.as_str()),
                ];
                duration.set(labels, took.as_secs_f64())?;
            }
        }
        Ok(())
    }

    fn tees(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "What has become of connections of services in mode tee, and of their copies, since the controller has started";
        let mut tee = counter(encoder, "bgctl_tee_connections", help)?;
        for (deployment, service) in self.services().filter(|(_, service)| service.mode == "tee") {
            let service = service.name.as_str();
            let is_it = |tee: &&TeeStatus| (tee.deployment.as_str(), tee.service.as_str()) == (deployment, service);
            for (outcome, count) in self.tees.iter().find(is_it).into_iter().flat_map(|tee| &tee.counts) {
                tee.count([("deployment", deployment), ("service", service), ("outcome", outcome)], *count)?;
            }
        }
        Ok(())
    }

    fn host(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut used = gauge(encoder, "bgctl_flow_table_used_ratio", "The part of a flow table that is in use")?;
        if let Some((_, tables)) = &self.look {
            for (family, table) in [("ipv4", tables.ipv4), ("ipv6", tables.ipv6)] {
                used.set([("family", family)], table.open as f64 / table.room.max(1) as f64)?;
            }
        }
        let mut build = gauge(encoder, "bgctl_build_info", "The version of bgctl, and of the layout of its maps")?;
        let abi = ABI_VERSION.to_string();
        build.set([("version", env!("CARGO_PKG_VERSION")), ("abi", &abi)], 1_u64)
    }
}

fn colours(service: &ServiceStatus) -> [(&'static str, &ColourStatus); 2] {
    [("blue", &service.colours.blue), ("green", &service.colours.green)]
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.live(&mut encoder)?;
        self.traffic(&mut encoder)?;
        self.events(&mut encoder)?;
        self.health(&mut encoder)?;
        self.tees(&mut encoder)?;
        self.host(&mut encoder)
    }
}
