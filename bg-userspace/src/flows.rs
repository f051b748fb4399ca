//! The flow table, as people read it: flows that are open, with both directions of each as one.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use bg_common::{
    Backend, Colour, DeploymentRow, Family, Flow, FlowKey4, FlowKey6, FlowState, LiveFlags, LiveWord, MAX_DEPLOYMENTS,
    Protocol, SwitchTerms,
};
use serde::{Serialize, Serializer};

use crate::{
    Error, Instance,
    config::protocol_name,
    flow_table::{FlowKey, FlowTable, Which, ends},
    maps::{self, Tables, flows4, flows6},
    running::{Running, deployment_rows, text},
    sys::Mapped,
    time::{is_past, since, tick},
};

/// A flow that is open: its next packet goes where this says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowStatus {
    /// Name of its deployment.
    pub deployment: String,
    /// Name of its service.
    pub service: String,
    /// Its transport protocol.
    #[serde(serialize_with = "protocol")]
    pub protocol: Protocol,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where the client sends to.
    pub destination: SocketAddr,
    /// Colour of its backend.
    #[serde(serialize_with = "colour")]
    pub colour: Colour,
    /// Its backend.
    pub backend: SocketAddr,
    /// `opening`, `established` or `closing`; UDP is always established.
    pub state: &'static str,
    /// `user`, `tester` or `preview`.
    pub via: &'static str,
    /// Generation of the live word that it was opened by.
    pub generation: u32,
    /// How long neither direction has shown a packet.
    #[serde(serialize_with = "seconds", rename = "idle_seconds")]
    pub idle: Duration,
}

/// Which flows are asked for: those that fit everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Name of their deployment.
    pub deployment: Option<String>,
    /// Name of their service.
    pub service: Option<String>,
    /// Colour of their backend.
    pub colour: Option<Colour>,
    /// Their backend.
    pub backend: Option<SocketAddr>,
}

/// A [`FlowFilter`] in the numbers of the maps.
struct Wanted {
    deployment: Option<u16>,
    services: Option<HashSet<u16>>,
    colour: Option<Colour>,
    backend: Option<SocketAddr>,
}

impl Wanted {
    fn new(filter: &FlowFilter, running: &Running) -> Result<Self, Error> {
        let deployment = filter.deployment.as_deref().map(|name| running.deployment(name)).transpose()?;
        let services =
            || running.services.iter().filter(|service| deployment.is_none_or(|of| of == service.deployment));
        let named = filter.service.as_ref().map(|name| {
            let named = services().filter(|service| service.name == *name).map(|service| service.index);
            match named.collect::<HashSet<_>>() {
                none if none.is_empty() => {
                    let existing = services().map(|service| service.name.clone()).collect();
                    Err(Error::UnknownService { name: name.clone(), existing })
                }
                named => Ok(named),
            }
        });
        Ok(Self { deployment, services: named.transpose()?, colour: filter.colour, backend: filter.backend })
    }

    fn fits(&self, backend: &Backend) -> bool {
        self.deployment.is_none_or(|wanted| wanted == backend.deployment)
            && self.services.as_ref().is_none_or(|wanted| wanted.contains(&backend.service))
            && self.colour.is_none_or(|wanted| wanted == Colour::from_u8(backend.colour))
            && self.backend.is_none_or(|wanted| Some(wanted) == address_of(backend))
    }
}

fn address_of(backend: &Backend) -> Option<SocketAddr> {
    let family = Family::from_u8(backend.family)?;
    Some(SocketAddr::new(backend.addr.to_ip(family), backend.port.host()))
}

impl Instance {
    /// Flows that are open, ordered by deployment, service and client.
    pub fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowStatus>, Error> {
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let wanted = Wanted::new(filter, &running)?;
        let view = View { tables: &tables, running: &running, idle: Idle::Exact };
        let flows = self.fold_open_flows(&view, Vec::new, |flows, open| {
            let (flow, backend) = (&open.flow, open.backend);
            if !wanted.fits(backend) {
                return;
            }
            let family = Family::of(open.ends.0.ip());
            flows.push(FlowStatus {
                deployment: text(&open.deployment.row.name),
                service: text(&tables.services.info.read(backend.service.into()).name),
                protocol: flow.state.protocol(),
                client: open.ends.0,
                destination: open.ends.1,
                colour: Colour::from_u8(backend.colour),
                backend: SocketAddr::new(backend.addr.to_ip(family), backend.port.host()),
                state: state(flow.state),
                via: via(flow.state),
                generation: flow.generation,
                idle: self.tick_length.duration(open.idle),
            });
        })?;
        let mut flows = flows.concat();
        flows.sort_by(|a, b| (&a.deployment, &a.service, a.client).cmp(&(&b.deployment, &b.service, b.client)));
        Ok(flows)
    }

    /// How many flows are open. Takes far less memory than [`flows`](Self::flows).
    pub fn count_flows(&self, filter: &FlowFilter) -> Result<u64, Error> {
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let wanted = Wanted::new(filter, &running)?;
        let view = View { tables: &tables, running: &running, idle: Idle::Enough };
        let count = |count: &mut u64, open: &OpenFlow<'_>| *count += u64::from(wanted.fits(open.backend));
        Ok(self.fold_open_flows(&view, || 0, count)?.into_iter().sum())
    }

    /// Calls `each` with every flow that is open, on all CPUs: each thread adds to an own sum, which is `empty` at
    /// first. Returns the sums.
    pub(crate) fn fold_open_flows<A: Send>(
        &self,
        view: &View<'_>,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, &OpenFlow<'_>) + Sync,
    ) -> Result<Vec<A>, Error> {
        let scan =
            Scan { now: tick(maps::clock(&self.paths)?), deployments: self.deployment_states(), idle: view.idle };
        let backends = &view.tables.backends;
        let mut sums = Vec::new();
        // A table of a family that no backend has has no flow that is open: it is not even mapped.
        if view.running.families.contains(&Family::V4) {
            let words = flows4(&self.paths)?;
            sums.extend(scan.fold(&FlowTable::<FlowKey4>::new(words.all(), &self.flow_hash), backends, &empty, &each));
        }
        if view.running.families.contains(&Family::V6) {
            let words = flows6(&self.paths)?;
            sums.extend(scan.fold(&FlowTable::<FlowKey6>::new(words.all(), &self.flow_hash), backends, &empty, &each));
        }
        Ok(sums)
    }

    /// By index. Read once: there may be millions of flows.
    fn deployment_states(&self) -> Vec<Option<DeploymentState>> {
        let mut states = vec![None; MAX_DEPLOYMENTS as usize];
        for (index, row) in deployment_rows(&self.words) {
            let word = self.words.live.read(index.into());
            let terms = self.words.terms.read(index.into())[word.terms_slot()];
            states[usize::from(index)] = Some(DeploymentState { row, word, terms });
        }
        states
    }
}

/// What flows are read beside.
pub(crate) struct View<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) running: &'a Running,
    pub(crate) idle: Idle,
}

/// What is wanted of the time for which a flow has been silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Whether it is open: the reply's entry is looked at only if the client has been silent for too long.
    Enough,
    /// The time itself, of both directions.
    Exact,
}

/// A flow that is open, not yet in words.
pub(crate) struct OpenFlow<'a> {
    pub(crate) flow: Flow,
    pub(crate) backend: &'a Backend,
    pub(crate) deployment: &'a DeploymentState,
    /// Client and where it sends to.
    ends: (SocketAddr, SocketAddr),
    /// Ticks; no less than the truth, and the truth if it is asked for.
    idle: u32,
}

/// Settings and live state of a deployment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeploymentState {
    row: DeploymentRow,
    pub(crate) word: LiveWord,
    terms: SwitchTerms,
}

impl DeploymentState {
    /// Ticks that both directions may be silent; `state` is the forward entry's.
    fn limit(&self, state: FlowState) -> u32 {
        match state.protocol() {
            Protocol::Udp => self.row.udp_idle,
            Protocol::Tcp if state.has(FlowState::ESTABLISHED) => self.row.tcp_idle,
            Protocol::Tcp => self.row.tcp_opening,
        }
    }
}

/// What tells whether a flow is open: whether the data path would keep its next packet on its backend.
struct Scan {
    now: u32,
    /// By index.
    deployments: Vec<Option<DeploymentState>>,
    idle: Idle,
}

impl Scan {
    fn fold<K: FlowKey + Sync, A: Send>(
        &self,
        table: &FlowTable<'_, K>,
        backends: &Mapped<Backend>,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, &OpenFlow<'_>) + Sync,
    ) -> Vec<A> {
        table.fold(Which::Forward, empty, |sum, entry| {
            let backend = backends.read(entry.flow.backend.slot() as usize);
            let deployment = self.deployments.get(usize::from(backend.deployment)).and_then(Option::as_ref);
            if let Some(deployment) = deployment
                && let Some(idle) =
                    self.idle_if_open(&entry.flow, &backend, deployment, || table.find(&entry.key.reply(&backend)))
            {
                each(sum, &OpenFlow { flow: entry.flow, backend: &backend, deployment, ends: ends(&entry.key), idle });
            }
        })
    }

    /// Ticks for which a flow has been silent, if it is open; `reply` finds the entry of the other direction.
    fn idle_if_open(
        &self,
        flow: &Flow,
        backend: &Backend,
        deployment: &DeploymentState,
        reply: impl Fn() -> Option<Flow>,
    ) -> Option<u32> {
        let is_over = !flow.backend.is(backend.identity)
            || flow.state.has_ended()
            || is_ended_by_switch(flow, Colour::from_u8(backend.colour), deployment, self.now);
        if is_over {
            return None;
        }
        let limit = deployment.limit(flow.state);
        let mut idle = since(flow.last_seen, self.now);
        if idle > limit || (self.idle == Idle::Exact && idle > 0) {
            // What stands there may be the entry of another flow, whose client talks to the backend itself.
            let reply = reply().filter(|reply| reply.backend == flow.backend);
            idle = idle.min(reply.map_or(u32::MAX, |reply| since(reply.last_seen, self.now)));
        }
        (idle <= limit).then_some(idle)
    }
}

fn is_ended_by_switch(flow: &Flow, colour: Colour, deployment: &DeploymentState, now: u32) -> bool {
    let (word, terms) = (deployment.word, deployment.terms);
    let is_live = colour == word.live();
    let flags = word.flags();
    let is_tester_on_live = is_live && flow.state.has(FlowState::IDLE_ONLY);
    let is_cut = flags.has(LiveFlags::CUT) && flow.generation < terms.ended_before[colour as usize];
    let is_drained = flags.has(LiveFlags::DRAINING)
        && !is_live
        && flow.generation < word.generation()
        && terms.drain_deadline != 0
        && is_past(terms.drain_deadline, now);
    is_tester_on_live || is_cut || is_drained
}

fn state(state: FlowState) -> &'static str {
    if state.protocol() == Protocol::Udp {
        "established"
    } else if state.0 & (FlowState::CLIENT_FIN | FlowState::BACKEND_FIN) != 0 {
        "closing"
    } else if state.has(FlowState::ESTABLISHED) {
        "established"
    } else {
        "opening"
    }
}

fn via(state: FlowState) -> &'static str {
    if state.has(FlowState::PREVIEW) {
        "preview"
    } else if state.has(FlowState::IDLE_ONLY) {
        "tester"
    } else {
        "user"
    }
}

fn protocol<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol_name(*protocol))
}

fn colour<S: Serializer>(colour: &Colour, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(colour.name())
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use bg_common::{FlowBackend, Identity};

    use super::*;

    fn flow(generation: u32, state: u32) -> Flow {
        Flow { backend: FlowBackend::new(7, 3), generation, state: FlowState(state), ..Flow::default() }
    }

    fn backend() -> Backend {
        Backend { identity: Identity { epoch: 3, in_use: 1 }, ..Backend::default() }
    }

    fn deployment(word: LiveWord, terms: SwitchTerms) -> DeploymentState {
        let row = DeploymentRow { tcp_idle: 100, tcp_opening: 10, udp_idle: 5, ..bytemuck::Zeroable::zeroed() };
        DeploymentState { row, word, terms }
    }

    /// For how long a flow counts as silent, if it is open.
    fn idle(forward: &Flow, reply: Option<Flow>, backend: &Backend, wanted: Idle) -> Option<u32> {
        let steady = deployment(LiveWord::new(1, LiveFlags::NONE, 0, 0), SwitchTerms::default());
        Scan { now: 1000, deployments: Vec::new(), idle: wanted }.idle_if_open(forward, backend, &steady, || reply)
    }

    #[test]
    fn a_flow_is_open_until_its_end() {
        const ESTABLISHED: u32 = FlowState::ESTABLISHED;
        let seen = |ago: u32, state| Flow { last_seen: 1000 - ago, ..flow(1, state) };
        let open = |flow: &Flow, backend: &Backend| idle(flow, None, backend, Idle::Enough);
        assert_eq!(open(&seen(100, ESTABLISHED), &backend()), Some(100));
        assert_eq!(open(&seen(101, ESTABLISHED), &backend()), None, "silent for too long");
        assert_eq!(open(&seen(10, 0), &backend()), Some(10));
        assert_eq!(open(&seen(11, 0), &backend()), None);
        for ended in [FlowState::BACKEND_RESET, FlowState::CLIENT_RESET, FlowState::CLIENT_FIN | FlowState::BACKEND_FIN]
        {
            assert_eq!(open(&seen(0, ESTABLISHED | ended), &backend()), None);
        }
        assert_eq!(open(&seen(0, ESTABLISHED | FlowState::CLIENT_FIN), &backend()), Some(0));
        let reused = Backend { identity: Identity { epoch: 4, in_use: 1 }, ..backend() };
        assert_eq!(open(&seen(0, ESTABLISHED), &reused), None, "the slot is another backend's");
        let removed = Backend { identity: Identity { epoch: 3, in_use: 0 }, ..backend() };
        assert_eq!(open(&seen(0, ESTABLISHED), &removed), None);
    }

    #[test]
    fn either_direction_shows_that_a_flow_is_open() {
        let seen = |ago: u32| Flow { last_seen: 1000 - ago, ..flow(1, FlowState::ESTABLISHED) };
        let idle = |wanted, forward, reply| idle(&forward, reply, &backend(), wanted);
        assert_eq!(idle(Idle::Enough, seen(500), Some(seen(20))), Some(20));
        assert_eq!(idle(Idle::Enough, seen(50), Some(seen(20))), Some(50), "not looked at");
        assert_eq!(idle(Idle::Exact, seen(50), Some(seen(20))), Some(20));
        assert_eq!(idle(Idle::Exact, seen(50), None), Some(50));
        let of_other = Flow { backend: FlowBackend::new(7, 2), ..seen(20) };
        assert_eq!(idle(Idle::Enough, seen(500), Some(of_other)), None, "of another flow");
    }

    #[test]
    fn a_switch_ends_what_its_terms_say() {
        let draining = LiveWord::new(2, LiveFlags::DRAINING, 0, 10_000);
        let until = |drain_deadline| deployment(draining, SwitchTerms { drain_deadline, ..SwitchTerms::default() });
        let ends = |generation, colour, state, deployment: &DeploymentState| {
            is_ended_by_switch(&flow(generation, state), colour, deployment, 1000)
        };
        let (blue, green) = (Colour::Blue, Colour::Green);
        assert!(!ends(1, blue, 0, &until(0)), "no deadline");
        assert!(!ends(1, blue, 0, &until(1001)) && ends(1, blue, 0, &until(1000)));
        assert!(!ends(2, green, 0, &until(1000)));
        assert!(ends(2, green, FlowState::IDLE_ONLY, &until(0)), "testers never meet the live colour");
        let word = LiveWord::new(2, LiveFlags::CUT, 0, 10_000);
        let cut = deployment(word, SwitchTerms { ended_before: [2, 0], ..SwitchTerms::default() });
        assert!(ends(1, blue, 0, &cut) && !ends(2, green, 0, &cut));
    }
}
