//! The open flows, for people to read.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bg_common::{
    Addr, Backend, Be16, Colour, DeploymentRow, Family, Flow, FlowKey4, FlowKey6, FlowState, Identity, LiveWord,
    MAX_DEPLOYMENTS, Protocol, Role, SwitchTerms,
};
use bg_ebpf::{flow::row::idle, policy::lifetime};
use serde::{Serialize, Serializer};

use crate::{
    Error, Instance, Paths,
    flow_table::{FlowKey, FlowTable},
    json,
    live::Reading,
    maps::{self, Tables, flows4, flows6},
    running::{Running, address_of, deployment_rows, text},
    sys::Mapped,
    time::tick,
};

/// An open flow. Its next packet goes to this backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowStatus {
    /// Name of its deployment.
    pub deployment: String,
    /// Name of its service.
    pub service: String,
    /// Its transport protocol.
    #[serde(serialize_with = "json::protocol")]
    pub protocol: Protocol,
    /// Who opened it.
    pub client: SocketAddr,
    /// The address to which the client sends.
    pub destination: SocketAddr,
    /// Colour of its backend.
    #[serde(serialize_with = "json::colour")]
    pub colour: Colour,
    /// Its backend.
    pub backend: SocketAddr,
    /// `opening`, `established` or `closing`. UDP flows are always established.
    pub state: &'static str,
    /// `user`, `tester` or `preview`.
    pub via: &'static str,
    /// Generation of the live word under which it was opened.
    pub generation: u32,
    /// How long there has been no packet in either direction.
    #[serde(serialize_with = "seconds", rename = "idle_seconds")]
    pub idle: Duration,
}

/// Selects flows. A flow must match every field that is set.
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
            && self.backend.is_none_or(|wanted| Some(wanted) == endpoint_of(backend))
    }
}

pub(crate) fn endpoint_of(backend: &Backend) -> Option<SocketAddr> {
    let family = Family::from_u8(backend.family)?;
    Some(SocketAddr::new(backend.addr.to_ip(family), backend.port.host()))
}

impl Instance {
    /// The open flows, ordered by deployment, service and client.
    pub fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowStatus>, Error> {
        let _ = self.release_overdue();
        let _ = self.end_confined();
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let wanted = Wanted::new(filter, &running)?;
        let flows = self.fold_and_end_drains(&tables.backends, Vec::new, |flows, open| {
            let backend = tables.backends.read(open.flow.backend.slot() as usize);
            let (Some(address), true) = (endpoint_of(&backend), wanted.fits(&backend)) else { return };
            flows.push(FlowStatus {
                deployment: text(&open.deployment.row.name),
                service: text(&tables.services.info.read(backend.service.into()).name),
                protocol: open.target.protocol,
                client: open.client(),
                destination: address_of(&tables.services.vips.read(open.vip.into()).key),
                colour: open.target.colour,
                backend: address,
                state: state(open.flow.state, open.target.protocol),
                via: via(open.flow.state, open.vip),
                generation: open.flow.generation,
                idle: self.tick_length.duration(open.idle),
            });
        })?;
        let mut flows: Vec<FlowStatus> = flows.into_iter().flatten().collect();
        flows.sort_by(|a, b| (&a.deployment, &a.service, a.client).cmp(&(&b.deployment, &b.service, b.client)));
        Ok(flows)
    }

    /// The number of open flows. Takes far less memory than [`flows`](Self::flows).
    pub fn count_flows(&self, filter: &FlowFilter) -> Result<u64, Error> {
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let wanted = Wanted::new(filter, &running)?;
        let fits = |slot: usize| wanted.fits(&tables.backends.read(slot));
        let fits: Vec<bool> = (0..tables.backends.rows()).map(fits).collect();
        let count = |count: &mut u64, open: &OpenFlow<'_>| *count += u64::from(fits[open.flow.backend.slot() as usize]);
        Ok(self.fold_and_end_drains(&tables.backends, || 0, count)?.into_iter().sum())
    }

    /// Calls `each` with every open flow, on all CPUs. Each thread has its own sum, which starts as `empty`. Returns the sums.
    /// Changes nothing.
    pub(crate) fn fold_open_flows<A: Send>(
        &self,
        backends: &Mapped<Backend>,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, &OpenFlow<'_>) + Sync,
    ) -> Result<Vec<A>, Error> {
        Scan::new(self, backends)?.fold(&self.paths, empty, |sum, open| {
            if let Some(open) = open {
                each(sum, open);
            }
        })
    }
}

/// An open flow, by numbers instead of names.
pub(crate) struct OpenFlow<'a> {
    pub(crate) flow: &'a Flow,
    pub(crate) target: &'a Target,
    pub(crate) deployment: &'a DeploymentState,
    /// The client's address and port.
    address: Addr,
    port: Be16,
    pub(crate) family: Family,
    /// The row of `vips` to which the client sends.
    vip: u16,
    /// Ticks since the last packet.
    idle: u32,
    /// The word of its row with its state.
    head: &'a AtomicU64,
}

impl OpenFlow<'_> {
    pub(crate) fn client(&self) -> SocketAddr {
        SocketAddr::new(self.address.to_ip(self.family), self.port.host())
    }

    /// Index of its service.
    pub(crate) fn service(&self) -> u16 {
        self.vip / 2
    }

    /// Whether it keeps a colour of a deployment from coming to rest, since something of a user may be on its way: the connection is open, or the flow's last
    /// datagram came no more than `quiet` ticks ago.
    pub(crate) fn keeps_from_rest(&self, deployment: u16, colour: Colour, quiet: u32) -> bool {
        let is_there = self.target.deployment == deployment && self.target.colour == colour;
        let is_in_flight = self.target.protocol == Protocol::Tcp || self.idle <= quiet;
        is_there && is_in_flight && !self.flow.state.has(FlowState::IDLE_ONLY)
    }

    /// Ends a TCP connection whose client has not completed the handshake: packets of either end are answered with a reset, and a SYN opens another
    /// flow. `false`: the handshake is complete, or another flow has taken over the row.
    pub(crate) fn end_handshake(&self) -> bool {
        let is_opening = |head: u64| {
            let state = FlowState(head as u32);
            let is_same = (state.0 ^ self.flow.state.0) & FlowState::IDENTITY == 0;
            is_same && !state.has(FlowState::CONFIRMED) && self.target.protocol == Protocol::Tcp
        };
        let ended = |head: u64| is_opening(head).then_some(head | u64::from(FlowState::ENDED));
        self.head.fetch_update(Ordering::SeqCst, Ordering::SeqCst, ended).is_ok()
    }

    /// Whether it is on the idle colour and was opened before the last switch, so that a drain waits for it.
    pub(crate) fn is_left(&self) -> bool {
        let word = self.deployment.word;
        self.target.colour != word.live() && self.flow.generation < word.generation()
    }
}

/// What the decision about a flow needs of its backend. This is less than the row, since there may be millions of flows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    identity: Identity,
    pub(crate) deployment: u16,
    pub(crate) colour: Colour,
    pub(crate) protocol: Protocol,
    /// `None` if there is no backend in this slot.
    family: Option<Family>,
    /// Whether it may be of another family than its clients.
    is_of_any_family: bool,
}

impl Target {
    /// Whether it is the backend of a flow.
    pub(crate) fn is_of(&self, flow: &Flow) -> bool {
        flow.backend.is(self.identity)
    }

    fn of(backend: &Backend) -> Self {
        Self {
            identity: backend.identity,
            deployment: backend.deployment,
            colour: Colour::from_u8(backend.colour),
            protocol: backend.protocol().unwrap_or(Protocol::Tcp),
            family: Family::from_u8(backend.family).filter(|_| backend.identity.in_use != 0),
            is_of_any_family: backend.identity.in_use != 0 && backend.is_direct(),
        }
    }
}

/// Settings and live state of a deployment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeploymentState {
    row: DeploymentRow,
    pub(crate) word: LiveWord,
    terms: SwitchTerms,
}

/// Decides whether a flow is open: whether the data path would keep its next packet on its backend.
pub(crate) struct Scan {
    pub(crate) now: u32,
    /// By index.
    deployments: Vec<Option<DeploymentState>>,
    /// By slot.
    targets: Vec<Target>,
}

impl Scan {
    /// Read once, since there may be millions of flows.
    pub(crate) fn new(instance: &Instance, backends: &Mapped<Backend>) -> Result<Self, Error> {
        let mut deployments = vec![None; MAX_DEPLOYMENTS as usize];
        let now = tick(maps::clock(&instance.paths)?);
        for (index, row) in deployment_rows(&instance.words) {
            let Reading { word, terms, .. } = instance.words.reading(index, now);
            deployments[usize::from(index)] = Some(DeploymentState { row, word, terms });
        }
        let targets = (0..backends.rows()).map(|slot| Target::of(&backends.read(slot))).collect();
        Ok(Self { now, deployments, targets })
    }

    /// Whether this was the live word of the deployment when the scan began.
    pub(crate) fn has_word(&self, deployment: u16, word: LiveWord) -> bool {
        self.deployments[usize::from(deployment)].is_some_and(|state| state.word == word)
    }

    /// Calls `each` with every open flow, and with `None` for a row that is being written.
    pub(crate) fn fold<A: Send>(
        &self,
        paths: &Paths,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, Option<&OpenFlow<'_>>) + Sync,
    ) -> Result<Vec<A>, Error> {
        let mut sums = Vec::new();
        if self.has_flows4() {
            let words = flows4(paths)?;
            sums.extend(self.fold_table(&FlowTable::<FlowKey4>::new(words.all()), &empty, &each));
        }
        if self.has_flows6() {
            let words = flows6(paths)?;
            sums.extend(self.fold_table(&FlowTable::<FlowKey6>::new(words.all()), &empty, &each));
        }
        Ok(sums)
    }

    /// Whether there may be IPv4 flows. If no backend has this family, the table has no open flow, and need not even be mapped.
    pub(crate) fn has_flows4(&self) -> bool {
        self.targets.iter().any(|target| target.is_of_any_family || target.family == Some(Family::V4))
    }

    /// The same for IPv6.
    pub(crate) fn has_flows6(&self) -> bool {
        self.targets.iter().any(|target| target.is_of_any_family || target.family == Some(Family::V6))
    }

    /// The backend in a slot.
    pub(crate) fn target(&self, slot: u32) -> Option<&Target> {
        self.targets.get(slot as usize)
    }

    /// The settings of a deployment.
    pub(crate) fn row(&self, deployment: u16) -> Option<&DeploymentRow> {
        self.deployments[usize::from(deployment)].as_ref().map(|state| &state.row)
    }

    fn fold_table<K: FlowKey + Sync, A: Send>(
        &self,
        table: &FlowTable<'_, K>,
        empty: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, Option<&OpenFlow<'_>>) + Sync,
    ) -> Vec<A> {
        table.fold(empty, |sum, entry| {
            let Some(entry) = entry else { return each(sum, None) };
            let Some(target) = self.targets.get(entry.flow.backend.slot() as usize) else { return };
            let Some(Some(deployment)) = self.deployments.get(usize::from(target.deployment)) else { return };
            if is_open(&entry.flow, target, deployment, self.now) {
                let open = OpenFlow {
                    flow: &entry.flow,
                    target,
                    deployment,
                    address: entry.key.address(),
                    port: entry.key.port(),
                    family: K::FAMILY,
                    vip: entry.key.vip(),
                    idle: idle(entry.flow.last_seen, self.now),
                    head: entry.head(),
                };
                each(sum, Some(&open));
            }
        })
    }
}

fn is_open(flow: &Flow, target: &Target, deployment: &DeploymentState, now: u32) -> bool {
    target.is_of(flow)
        && lifetime::is_open(flow, target.protocol, &deployment.row, now)
        && !lifetime::ended_by(flow, target.colour, deployment.word, &deployment.terms, now)
}

pub(crate) fn state(state: FlowState, protocol: Protocol) -> &'static str {
    if protocol == Protocol::Udp {
        "established"
    } else if state.has_ended() {
        "ended"
    } else if state.has_any(FlowState::CLIENT_FIN | FlowState::BACKEND_FIN) {
        "closing"
    } else if state.has(FlowState::CONFIRMED) {
        "established"
    } else {
        "opening"
    }
}

fn via(state: FlowState, vip: u16) -> &'static str {
    if vip % 2 == Role::Preview as u16 {
        "preview"
    } else if state.has(FlowState::IDLE_ONLY) {
        "tester"
    } else {
        "user"
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use bg_common::{FlowBackend, LiveFlags};

    use super::*;

    const CONFIRMED: u32 = FlowState::CONFIRMED;

    fn flow(generation: u32, state: u32, ago: u32) -> Flow {
        let (backend, state) = (FlowBackend::new(7, 3), FlowState(state));
        Flow { backend, generation, state, last_seen: 1000 - ago, ..Flow::default() }
    }

    fn target(colour: Colour, epoch: u32, in_use: u32) -> Target {
        let identity = Identity { epoch, in_use };
        Target::of(&Backend { identity, colour: colour as u8, protocol: 6, family: 4, ..Backend::default() })
    }

    fn deployment(word: LiveWord) -> DeploymentState {
        let row = DeploymentRow { tcp_idle: 100, tcp_opening: 10, udp_idle: 5, ..bytemuck::Zeroable::zeroed() };
        DeploymentState { row, word, terms: SwitchTerms::default() }
    }

    #[test]
    fn a_flow_is_open_as_long_as_the_data_path_keeps_it() {
        let steady = deployment(LiveWord::new(1, LiveFlags::NONE, 0, 0));
        let blue = target(Colour::Blue, 3, 1);
        let is_open = |flow: &Flow, target: &Target| is_open(flow, target, &steady, 1000);
        assert!(is_open(&flow(1, CONFIRMED, 100), &blue) && !is_open(&flow(1, CONFIRMED, 101), &blue));
        assert!(is_open(&flow(1, 0, 10), &blue) && !is_open(&flow(1, 0, 11), &blue));
        let udp = Target { protocol: Protocol::Udp, ..blue };
        assert!(is_open(&flow(1, CONFIRMED, 5), &udp) && !is_open(&flow(1, CONFIRMED, 6), &udp));
        assert!(!is_open(&flow(1, CONFIRMED | FlowState::BACKEND_RESET, 0), &blue));
        assert!(!is_open(&flow(1, CONFIRMED | FlowState::IDLE_ONLY, 0), &blue), "testers never meet the live colour");
        assert!(!is_open(&flow(1, CONFIRMED, 0), &target(Colour::Blue, 4, 1)), "the slot is another backend's");
        assert!(!is_open(&flow(1, CONFIRMED, 0), &target(Colour::Blue, 3, 0)));
    }

    #[test]
    fn a_drain_waits_for_flows_of_the_idle_colour_from_before_the_switch() {
        let draining = deployment(LiveWord::new(2, LiveFlags::DRAINING, 0, 10_000));
        let is_left = |generation, colour, state| {
            let (flow, target) = (flow(generation, state, 0), target(colour, 3, 1));
            let (deployment, address, family) = (&draining, Addr::default(), Family::V4);
            let (port, head) = (Be16::new(1), &AtomicU64::new(0));
            OpenFlow { flow: &flow, target: &target, deployment, address, port, family, vip: 0, idle: 0, head }
                .is_left()
        };
        assert!(is_left(1, Colour::Blue, 0) && is_left(1, Colour::Blue, FlowState::IDLE_ONLY));
        assert!(!is_left(2, Colour::Blue, FlowState::IDLE_ONLY), "a tester's, opened since");
        assert!(!is_left(1, Colour::Green, 0) && !is_left(2, Colour::Green, 0));
    }

    #[test]
    fn the_virtual_address_tells_how_a_flow_came() {
        assert_eq!([via(FlowState(0), 6), via(FlowState(FlowState::IDLE_ONLY), 6)], ["user", "tester"]);
        assert_eq!(via(FlowState(FlowState::IDLE_ONLY), 7), "preview");
        let state = |bits| state(FlowState(bits), Protocol::Tcp);
        let closing = CONFIRMED | FlowState::CLIENT_FIN;
        assert_eq!([state(0), state(CONFIRMED), state(closing)], ["opening", "established", "closing"]);
    }
}
