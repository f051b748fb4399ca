//! The status of an instance, in the form that `bgctl status --json` prints.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bg_common::{ClockId, Colour, Event, FULL_SHARE, FlowState, LiveFlags, MAX_DEPLOYMENTS, Protocol};
use serde::{Serialize, Serializer};

use crate::{
    Error, Instance,
    attach::{AttachedInterface, attached_interfaces, lost_interfaces},
    config::{DivideBy, OnSwitch, Prefix, mode_name, protocol_name},
    hold::HeldLog,
    json,
    live::Reading,
    maps::{self, Tables, TrafficCounters, Words},
    pins,
    running::{Running, RunningDeployment, RunningService, UNSETTLED, address_of},
    show::{drain_timeout_of, on_switch_of},
    time::moment_of,
    tunnels,
};

/// The status of an instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The deployments, by name.
    pub deployments: Vec<DeploymentStatus>,
    /// The interfaces to which the instance was attached, and whether they still carry the programs.
    pub interfaces: Vec<AttachedInterface>,
    /// The number of dropped packets, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// The numbers of other events that an operator may want to know. Nothing was dropped.
    pub events: BTreeMap<&'static str, u64>,
}

/// A deployment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeploymentStatus {
    /// Its name.
    pub name: String,
    /// The colour that new flows go to.
    pub live: &'static str,
    /// The other colour.
    pub idle: &'static str,
    /// The colour that was live before the last switch.
    pub previous: &'static str,
    /// The number of changes of its live state.
    pub generation: u32,
    /// `frozen` while new flows are held, `confirming` while a switch waits for its confirmation, `scheduled` before a scheduled switch, `ramping` while a share moves,
    /// `split` while both colours get new flows, `draining` while flows are left on the idle colour after a switch, else `steady`.
    pub phase: &'static str,
    /// The part of new flows that goes to green now.
    pub green_share: f64,
    /// The part of the flows that were opened since the last change, and are open, that is green; `None` if there are none.
    pub green_share_measured: Option<f64>,
    /// What a share of new flows divides.
    pub divide_by: DivideBy,
    /// When the switch is taken back, unless it is confirmed.
    pub confirm_deadline: Option<jiff::Timestamp>,
    /// The conditions that take the switch back, unless it is confirmed before.
    pub revert_if: Vec<String>,
    /// Why the data path has taken the last switch back; `None` if it has not.
    pub taken_back: Option<String>,
    /// The switch or ramp that has not taken effect yet.
    pub pending: Option<PendingStatus>,
    /// When a freeze ends by itself; `None` if the deployment is not frozen.
    pub frozen_until: Option<jiff::Timestamp>,
    /// How many packets that would open a flow have been held in this freeze, or dropped for want of room.
    pub held: u64,
    /// What a switch does to open flows by default.
    pub on_switch: OnSwitch,
    /// How long a drain may last; `None` is without end. JSON has it in the form of the configuration.
    #[serde(serialize_with = "json::duration")]
    pub drain_timeout: Option<Duration>,
    /// When the flows that the last switch left on the idle colour are ended; `None` if no deadline ends them.
    pub drain_deadline: Option<jiff::Timestamp>,
    /// The sources that always reach the idle colour.
    #[serde(serialize_with = "prefixes")]
    pub testers: Vec<Prefix>,
    /// The numbers of open flows, by colour.
    pub flows: ByColour<u64>,
    /// Its services, by name.
    pub services: Vec<ServiceStatus>,
}

/// A scheduled switch, or a ramp.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PendingStatus {
    /// The part of new flows that goes to green once it has taken effect.
    pub green_share: f64,
    /// When it takes effect, or the ramp begins.
    pub at: Option<jiff::Timestamp>,
    /// When the ramp ends; `None` if there is no ramp.
    pub ramp_until: Option<jiff::Timestamp>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its virtual address.
    pub vip: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// `nat`, `local`, `tee`, `l2dsr`, `ipip` or `gue`.
    pub mode: &'static str,
    /// The address that always reaches the idle colour.
    pub preview: Option<SocketAddr>,
    /// `idle` if the idle colour gets a copy of each datagram.
    pub mirror: Option<&'static str>,
    /// The listeners of `bgctl serve` in mode `tee`.
    pub listen: Option<ByColour<SocketAddr>>,
    /// Its two environments.
    #[serde(flatten)]
    pub colours: ByColour<ColourStatus>,
}

/// One colour of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ColourStatus {
    /// Its backends, by address.
    pub backends: Vec<BackendStatus>,
    /// The number of packets from clients that were sent to it.
    pub packets: u64,
    /// The number of bytes in the frames of these packets.
    pub bytes: u64,
    /// The number of flows that were opened to it.
    pub flows_opened: u64,
    /// The number of copies of datagrams that were sent to it while it was idle.
    pub mirrored: u64,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendStatus {
    /// Its address.
    pub address: SocketAddr,
    /// Its share of new flows, relative to the other backends.
    pub weight: u32,
    /// `up`, `down`, or `unknown` if nothing has checked it.
    pub health: &'static str,
    /// The part of its weight that it has, from 0 to 1, while it starts slowly after it has returned; else `None`.
    pub slow_start: Option<f64>,
}

/// One value for each colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByColour<T> {
    /// The value for blue.
    pub blue: T,
    /// The value for green.
    pub green: T,
}

impl<T> ByColour<T> {
    /// The value for one colour.
    pub fn of(&self, colour: Colour) -> &T {
        match colour {
            Colour::Blue => &self.blue,
            Colour::Green => &self.green,
        }
    }

    fn of_mut(&mut self, colour: Colour) -> &mut T {
        match colour {
            Colour::Blue => &mut self.blue,
            Colour::Green => &mut self.green,
        }
    }
}

/// The flows of a deployment: the open flows by colour, and how many of those on the idle colour are users'.
#[derive(Clone, Copy, Default)]
struct FlowCount {
    open: ByColour<u64>,
    /// Of those, the ones that were opened since the last change, without testers' flows.
    opened_since: ByColour<u64>,
    draining: u64,
}

impl FlowCount {
    fn add(&mut self, other: &Self) {
        self.open.blue += other.open.blue;
        self.open.green += other.open.green;
        self.opened_since.blue += other.opened_since.blue;
        self.opened_since.green += other.opened_since.green;
        self.draining += other.draining;
    }
}

impl Instance {
    /// What is wrong with the source addresses of outer headers, in the modes `ipip` and `gue`. It is not known in another network namespace.
    pub fn outer_source_warnings(&self) -> Vec<String> {
        match pins::is_in_this_namespace(&self.paths) {
            Ok(true) => tunnels::warnings(&self.paths),
            _ => Vec::new(),
        }
    }

    /// The status of one deployment or all, and of the instance as a whole.
    pub fn status(&self, deployment: Option<&str>) -> Result<Status, Error> {
        let only = deployment.map(|name| self.deployment(name)).transpose()?.map(|(index, _)| index);
        let _ = self.release_overdue();
        let tables = Tables::open(&self.paths)?;
        let held = HeldLog::open(&self.paths)?;
        let counters = TrafficCounters::open(&self.paths)?;
        self.settle();
        let _ = self.end_confined();
        let flows = self.count_by_deployment(&tables)?;
        // Read afterwards, because counting may have ended a drain.
        let running = Running::read(&self.words, &tables)?;

        let mut deployments = Vec::new();
        for (name, deployment) in &running.deployments {
            if only.is_none_or(|only| only == deployment.index) {
                let count = flows.get(usize::from(deployment.index)).copied().unwrap_or_default();
                let mut services = Vec::new();
                for service in running.services_of(deployment.index) {
                    services.push(service_status(service, &counters)?);
                }
                services.sort_by(|a, b| a.name.cmp(&b.name));
                let drain_deadline = self.drain_deadline(deployment)?;
                let status = deployment_status(&self.words, name, deployment, drain_deadline, count, services);
                deployments.push(self.with_freeze(status, deployment.index, &held));
            }
        }
        deployments.sort_by(|a, b| a.name.cmp(&b.name));

        let (drops, events): (Vec<_>, Vec<_>) =
            maps::events(&self.paths)?.into_iter().partition(|(event, _)| Event::is_drop(*event));
        let named =
            |counts: Vec<(Event, u64)>| counts.into_iter().map(|(event, count)| (event.name(), count)).collect();
        Ok(Status {
            deployments,
            interfaces: attached_interfaces(&self.paths)?,
            drops: named(drops),
            events: named(events),
        })
    }

    /// The interfaces that have lost the programs since they were attached. Their packets are not switched.
    pub fn lost_interfaces(&self) -> Result<Vec<AttachedInterface>, Error> {
        lost_interfaces(&self.paths)
    }

    /// The status with what is to be said of a freeze, if there is one.
    fn with_freeze(&self, status: DeploymentStatus, index: u16, held: &HeldLog) -> DeploymentStatus {
        let Some(until) = self.frozen_until(index) else { return status };
        let frozen_until = moment_of(until, ClockId::Boot);
        DeploymentStatus { phase: "frozen", frozen_until, held: held.len(index), ..status }
    }

    /// The deadline of a drain that has not ended yet. It is rounded to seconds, so that it is the same each time.
    fn drain_deadline(&self, deployment: &RunningDeployment) -> Result<Option<jiff::Timestamp>, Error> {
        let Reading { word, terms, .. } = deployment.reading;
        let deadline = terms.drain_deadline;
        if !word.flags().has(LiveFlags::DRAINING) || deadline == 0 {
            return Ok(None);
        }
        let Some(left) = self.tick_length.until(deadline, maps::clock(&self.paths)?) else { return Ok(None) };
        let moment = jiff::Timestamp::now().checked_add(left).ok();
        Ok(moment.and_then(|moment| moment.round(jiff::Unit::Second).ok()))
    }

    /// Counts open flows, by index of deployments.
    fn count_by_deployment(&self, tables: &Tables) -> Result<Vec<FlowCount>, Error> {
        let empty = || vec![FlowCount::default(); MAX_DEPLOYMENTS as usize];
        let counts = self.fold_and_end_drains(&tables.backends, empty, |counts, open| {
            let colour = open.target.colour;
            // The flow has a state, so its deployment exists.
            let count = &mut counts[usize::from(open.target.deployment)];
            *count.open.of_mut(colour) += 1;
            let is_testers = open.flow.state.has(FlowState::IDLE_ONLY);
            if open.flow.generation == open.deployment.word.generation() && !is_testers {
                *count.opened_since.of_mut(colour) += 1;
            }
            // Testers belong on the idle colour, so their flows do not drain.
            if open.deployment.word.live() != colour && !is_testers {
                count.draining += 1;
            }
        })?;
        let mut sums = empty();
        for counts in &counts {
            std::iter::zip(&mut sums, counts).for_each(|(sum, count)| sum.add(count));
        }
        Ok(sums)
    }
}

fn deployment_status(
    words: &Words,
    name: &str,
    deployment: &RunningDeployment,
    drain_deadline: Option<jiff::Timestamp>,
    count: FlowCount,
    services: Vec<ServiceStatus>,
) -> DeploymentStatus {
    let (word, reading) = (deployment.word, &deployment.reading);
    let timing = &reading.timing;
    let share = |share: u16| f64::from(share) / f64::from(FULL_SHARE);
    let since = count.opened_since;
    let is_divided = !matches!(word.target_share(), 0 | FULL_SHARE);
    let by_client = if is_divided { deployment.row.divides_clients() } else { deployment.row.sticky == 1 };
    let pending = reading.is_pending().then(|| {
        let clock = ClockId::from_u8(timing.clock);
        let ramp_until = (timing.ramp != 0).then(|| moment_of(timing.activate_at + timing.ramp, clock)).flatten();
        let green_share = share(reading.stored.target_share());
        PendingStatus { green_share, at: moment_of(timing.activate_at, clock), ramp_until }
    });
    DeploymentStatus {
        name: name.to_owned(),
        live: word.live().name(),
        idle: word.live().other().name(),
        previous: word.previous().name(),
        generation: word.generation(),
        phase: phase(reading, count.draining > 0),
        green_share: share(word.target_share()),
        green_share_measured: (since.blue + since.green > 0)
            .then(|| since.green as f64 / (since.blue + since.green) as f64),
        divide_by: if by_client { DivideBy::Client } else { DivideBy::Flow },
        revert_if: if reading.is_watched() { words.conditions(deployment.index, reading) } else { Vec::new() },
        taken_back: reading.is_taken_back().then(|| words.why_taken_back(deployment.index, reading)),
        confirm_deadline: reading.confirm_by().and_then(|at| moment_of(at, ClockId::Boot)),
        pending,
        frozen_until: None,
        held: 0,
        on_switch: on_switch_of(&deployment.row),
        drain_timeout: drain_timeout_of(&deployment.row),
        drain_deadline,
        testers: deployment.testers.clone(),
        flows: count.open,
        services,
    }
}

fn phase(reading: &Reading, has_draining_flows: bool) -> &'static str {
    let word = reading.word;
    if reading.is_guarded() {
        "confirming"
    } else if reading.is_pending() {
        if reading.is_ramping() { "ramping" } else { "scheduled" }
    } else if word.target_share() != word.live().full_share() {
        "split"
    } else if word.flags().has(LiveFlags::DRAINING) && has_draining_flows {
        "draining"
    } else {
        "steady"
    }
}

fn service_status(service: &RunningService, counters: &TrafficCounters) -> Result<ServiceStatus, Error> {
    let mut colours = ByColour::<ColourStatus>::default();
    for colour in Colour::ALL {
        let traffic = counters.sum(2 * u32::from(service.index) + colour as u32)?;
        let running = &service.backends[colour as usize];
        let weight = |weight| if weight == UNSETTLED { 0 } else { weight };
        let mut backends: Vec<_> = running
            .iter()
            .map(|backend| BackendStatus {
                address: backend.address,
                weight: weight(backend.weight),
                health: backend.health.health().name(),
                slow_start: backend.health.slow_start(),
            })
            .collect();
        backends.sort_by_key(|backend| backend.address);
        *colours.of_mut(colour) = ColourStatus {
            backends,
            packets: traffic.packets,
            bytes: traffic.bytes,
            flows_opened: traffic.flows_opened,
            mirrored: traffic.mirrored,
        };
    }
    Ok(ServiceStatus {
        name: service.name.clone(),
        vip: address_of(&service.vip),
        protocol: Protocol::from_u8(service.vip.protocol).map_or("?", protocol_name),
        mode: mode_name(service.mode),
        preview: service.preview.map(|(key, _)| address_of(&key)),
        mirror: service.is_mirrored.then_some("idle"),
        listen: service.tee.listen.map(|[blue, green]| ByColour { blue, green }),
        colours,
    })
}

fn prefixes<S: Serializer>(prefixes: &[Prefix], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(prefixes.iter().map(Prefix::to_string))
}
