//! The flow table, as people read it: flows that are open, with both directions of each as one.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bg_common::{
    Addr, Backend, Colour, DeploymentRow, Family, Flow, FlowKey4, FlowKey6, FlowRole, LiveFlags, LiveWord, Protocol,
    SwitchTerms, TcpState,
};
use serde::{Serialize, Serializer};

use crate::{
    Error, Instance,
    config::protocol_name,
    maps::{self, FlowTables, Tables},
    running::text,
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

impl Instance {
    /// Flows that are open, of one deployment or of all, ordered by deployment, service and client.
    pub fn flows(&self, deployment: Option<&str>) -> Result<Vec<FlowStatus>, Error> {
        let only = deployment.map(|name| self.deployment(name)).transpose()?.map(|(index, _)| index);
        let tables = Tables::open(&self.paths)?;
        let mut flows = Vec::new();
        self.each_open_flow(&tables, |open| {
            let flow = open.flow;
            if only.is_some_and(|only| only != flow.deployment) {
                return;
            }
            let (client, destination) = open.addresses;
            flows.push(FlowStatus {
                deployment: text(&self.words.deployments.read(flow.deployment.into()).name),
                service: text(&tables.services.info.read(flow.service.into()).name),
                protocol: open.protocol,
                client,
                destination,
                colour: Colour::from_u8(flow.colour),
                backend: open.backend,
                state: state(open.protocol, flow),
                via: via(flow),
                generation: flow.generation,
                idle: self.tick_length.duration(open.idle),
            });
        })?;
        flows.sort_by(|a, b| (&a.deployment, &a.service, a.client).cmp(&(&b.deployment, &b.service, b.client)));
        Ok(flows)
    }

    /// Calls `each` with every flow that is open.
    pub(crate) fn each_open_flow(&self, tables: &Tables, mut each: impl FnMut(&OpenFlow<'_>)) -> Result<(), Error> {
        let flows = FlowTables::read(&self.paths)?;
        let now = tick(maps::clock(&self.paths)?);
        // Rows of deployments are read once: there may be a million flows.
        let mut states: HashMap<u16, DeploymentState> = HashMap::new();
        let mut state_of = |index: u16| {
            *states.entry(index).or_insert_with(|| {
                let row = usize::from(index);
                let word = self.words.live.read(row);
                let terms = self.words.terms.read(row)[word.terms_slot()];
                DeploymentState { row: self.words.deployments.read(row), word, terms }
            })
        };
        for_each(&flows.v4, tables, now, &mut state_of, &mut each);
        for_each(&flows.v6, tables, now, &mut state_of, &mut each);
        Ok(())
    }
}

/// A flow that is open, not yet in words.
pub(crate) struct OpenFlow<'a> {
    pub(crate) flow: &'a Flow,
    protocol: Protocol,
    /// Client and where it sends to.
    addresses: (SocketAddr, SocketAddr),
    backend: SocketAddr,
    /// Ticks.
    idle: u32,
}

#[derive(Clone, Copy)]
struct DeploymentState {
    row: DeploymentRow,
    word: LiveWord,
    terms: SwitchTerms,
}

/// A five-tuple of either family.
trait Key: Copy + Eq + Hash {
    const FAMILY: Family;
    fn source(self) -> Addr;
    fn destination(self) -> Addr;
    fn ports(self) -> u32;
    fn protocol(self) -> u32;
    /// The key of the reply: from the backend to the client.
    fn reply(self, backend: &Backend) -> Self;
}

impl Key for FlowKey4 {
    const FAMILY: Family = Family::V4;
    fn source(self) -> Addr {
        Addr([self.src, 0, 0, 0])
    }
    fn destination(self) -> Addr {
        Addr([self.dst, 0, 0, 0])
    }
    fn ports(self) -> u32 {
        self.ports
    }
    fn protocol(self) -> u32 {
        self.protocol
    }
    fn reply(self, backend: &Backend) -> Self {
        Self { src: backend.addr.0[0], dst: self.src, ports: reply_ports(self.ports, backend), protocol: self.protocol }
    }
}

impl Key for FlowKey6 {
    const FAMILY: Family = Family::V6;
    fn source(self) -> Addr {
        self.src
    }
    fn destination(self) -> Addr {
        self.dst
    }
    fn ports(self) -> u32 {
        self.ports
    }
    fn protocol(self) -> u32 {
        self.protocol
    }
    fn reply(self, backend: &Backend) -> Self {
        Self { src: backend.addr, dst: self.src, ports: reply_ports(self.ports, backend), protocol: self.protocol }
    }
}

/// Source and destination port, in the host's order.
fn split_ports(ports: u32) -> (u16, u16) {
    let [a, b, c, d] = ports.to_ne_bytes();
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

fn reply_ports(ports: u32, backend: &Backend) -> u32 {
    let [a, b, _, _] = ports.to_ne_bytes();
    let [p, q] = backend.port.host().to_be_bytes();
    u32::from_ne_bytes([p, q, a, b])
}

fn for_each<K: Key>(
    flows: &HashMap<K, Flow>,
    tables: &Tables,
    now: u32,
    state_of: &mut impl FnMut(u16) -> DeploymentState,
    each: &mut impl FnMut(&OpenFlow<'_>),
) {
    for (key, flow) in flows.iter().filter(|(_, flow)| flow.role & FlowRole::REPLY == 0) {
        let Some(protocol) = Protocol::from_u8(key.protocol() as u8) else { continue };
        if flow.backend as usize >= tables.backends.rows() {
            continue;
        }
        let backend = tables.backends.read(flow.backend as usize);
        let state = state_of(flow.deployment);
        let reply = flows.get(&key.reply(&backend));
        let idle = since(flow.last_seen, now).min(reply.map_or(u32::MAX, |reply| since(reply.last_seen, now)));
        if !is_open(flow, protocol, &backend, &state, idle, now) {
            continue;
        }
        let (source_port, destination_port) = split_ports(key.ports());
        let address = |addr: Addr, port| SocketAddr::new(ip(addr, K::FAMILY), port);
        each(&OpenFlow {
            flow,
            protocol,
            addresses: (address(key.source(), source_port), address(key.destination(), destination_port)),
            backend: address(backend.addr, backend.port.host()),
            idle,
        });
    }
}

/// Whether the data path would keep the flow's next packet on its backend.
fn is_open(flow: &Flow, protocol: Protocol, backend: &Backend, state: &DeploymentState, idle: u32, now: u32) -> bool {
    let is_its_backend = backend.identity.in_use != 0 && backend.identity.epoch == flow.epoch;
    let is_established = flow.client_state & TcpState::ESTABLISHED != 0;
    let limit = match protocol {
        Protocol::Udp => state.row.udp_idle,
        Protocol::Tcp if is_established => state.row.tcp_idle,
        Protocol::Tcp => state.row.tcp_opening,
    };
    let has_ended = protocol == Protocol::Tcp && TcpState::ended(flow.client_state, flow.backend_state);
    is_its_backend && !has_ended && idle <= limit && !is_ended_by_switch(flow, state, now)
}

fn is_ended_by_switch(flow: &Flow, state: &DeploymentState, now: u32) -> bool {
    let (word, terms) = (state.word, state.terms);
    let colour = Colour::from_u8(flow.colour);
    let is_live = colour == word.live();
    let flags = word.flags();
    let is_tester_on_live = is_live && flow.role & FlowRole::IDLE_ONLY != 0;
    let is_cut = flags.has(LiveFlags::CUT) && flow.generation < terms.ended_before[colour as usize];
    let is_drained = flags.has(LiveFlags::DRAINING)
        && !is_live
        && flow.generation < word.generation()
        && terms.drain_deadline != 0
        && is_past(terms.drain_deadline, now);
    is_tester_on_live || is_cut || is_drained
}

fn ip(addr: Addr, family: Family) -> IpAddr {
    addr.to_ip(family)
}

fn state(protocol: Protocol, flow: &Flow) -> &'static str {
    if protocol == Protocol::Udp {
        "established"
    } else if (flow.client_state | flow.backend_state) & TcpState::FIN != 0 {
        "closing"
    } else if flow.client_state & TcpState::ESTABLISHED != 0 {
        "established"
    } else {
        "opening"
    }
}

fn via(flow: &Flow) -> &'static str {
    if flow.role & FlowRole::PREVIEW != 0 {
        "preview"
    } else if flow.role & FlowRole::IDLE_ONLY != 0 {
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
    use bg_common::{Be16, Identity};

    use super::*;

    fn flow(colour: Colour, generation: u32) -> Flow {
        Flow { epoch: 3, generation, colour: colour as u8, client_state: TcpState::ESTABLISHED, ..Flow::default() }
    }

    fn backend() -> Backend {
        Backend { identity: Identity { epoch: 3, in_use: 1 }, port: Be16::new(8443), ..Backend::default() }
    }

    fn state(word: LiveWord, terms: SwitchTerms) -> DeploymentState {
        let row = DeploymentRow { tcp_idle: 100, tcp_opening: 10, udp_idle: 5, ..bytemuck::Zeroable::zeroed() };
        DeploymentState { row, word, terms }
    }

    #[test]
    fn a_flow_is_open_until_its_end() {
        let steady = state(LiveWord::new(1, LiveFlags::NONE, 0, 0), SwitchTerms::default());
        let open = |flow: &Flow, backend: &Backend, idle| is_open(flow, Protocol::Tcp, backend, &steady, idle, 1000);
        let blue = flow(Colour::Blue, 1);
        assert!(open(&blue, &backend(), 100));
        assert!(!open(&blue, &backend(), 101), "silent for too long");
        let opening = Flow { client_state: 0, ..blue };
        assert!(open(&opening, &backend(), 10) && !open(&opening, &backend(), 11));
        let reset = Flow { backend_state: TcpState::RESET, ..blue };
        assert!(!open(&reset, &backend(), 0));
        let reused = Backend { identity: Identity { epoch: 4, in_use: 1 }, ..backend() };
        assert!(!open(&blue, &reused, 0), "the slot is another backend's");
        let removed = Backend { identity: Identity { epoch: 3, in_use: 0 }, ..backend() };
        assert!(!open(&blue, &removed, 0));
    }

    #[test]
    fn a_switch_ends_what_its_terms_say() {
        let draining = LiveWord::new(2, LiveFlags::DRAINING, 0, 10_000);
        let until = |drain_deadline| state(draining, SwitchTerms { drain_deadline, ..SwitchTerms::default() });
        let (old, new) = (flow(Colour::Blue, 1), flow(Colour::Green, 2));
        assert!(!is_ended_by_switch(&old, &until(0), 1000), "no deadline");
        assert!(!is_ended_by_switch(&old, &until(1001), 1000) && is_ended_by_switch(&old, &until(1000), 1000));
        assert!(!is_ended_by_switch(&new, &until(1000), 1000));
        let tester = Flow { role: FlowRole::IDLE_ONLY, ..new };
        assert!(is_ended_by_switch(&tester, &until(0), 1000), "testers never meet the live colour");
        let cut = state(
            LiveWord::new(2, LiveFlags::CUT, 0, 10_000),
            SwitchTerms { ended_before: [2, 0], ..SwitchTerms::default() },
        );
        assert!(is_ended_by_switch(&old, &cut, 0) && !is_ended_by_switch(&new, &cut, 0));
    }

    #[test]
    fn the_reply_comes_from_the_backend() {
        let key = FlowKey4 { src: 1, dst: 2, ports: u32::from_ne_bytes([0xc0, 0x01, 0x01, 0xbb]), protocol: 6 };
        let reply = key.reply(&Backend { addr: Addr([9, 0, 0, 0]), ..backend() });
        assert_eq!((reply.src, reply.dst, split_ports(reply.ports)), (9, 1, (8443, 0xc001)));
    }
}
