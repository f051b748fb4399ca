//! What the controller's proxy has to know of the services in mode `tee`: which there are, and whose a connection is.
//!
//! A connection reaches a listener by way of the data path, which has opened a flow for it. The flow's row tells to which of the service's addresses the
//! client sends, and whether the flow is confined to the idle colour. A connection without a flow came by another way.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering, fence},
    time::Duration,
};

use bg_common::{Backend, Be16, Colour, FLOW_WAYS, FlowHash, FlowKey4, FlowKey6, FlowState, Mode, Role, Vip};
use bg_ebpf::flow::{
    key::{Key, Match},
    memory::Memory,
    table,
};

use crate::{
    Error, Instance, Paths,
    flow_table::{Bucket4, Bucket6, Row},
    health::Health,
    maps::{self, Tables, flows4, flows6},
    pins::PinRoot,
    running::{Running, UNSETTLED, address_of, vip_row},
    sys::Mapped,
};

/// A service in mode `tee`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Teed {
    /// Index of the service, and of its deployment.
    pub(crate) service: u16,
    pub(crate) deployment: u16,
    /// Their names.
    pub(crate) name: String,
    pub(crate) deployment_name: String,
    /// By colour.
    pub(crate) listeners: [Listener; 2],
    pub(crate) backends: [Vec<TeedBackend>; 2],
    pub(crate) proxy_protocol: bool,
    pub(crate) compare: bool,
    /// How long a connection may be silent.
    pub(crate) idle_timeout: Duration,
}

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) slot: u32,
}

/// A backend behind a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TeedBackend {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
    pub(crate) is_down: bool,
}

impl Instance {
    /// All services in mode `tee`, except those that an apply is just adding.
    pub(crate) fn teed(&self) -> Result<Vec<Teed>, Error> {
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let teed = running.services.iter().filter(|service| service.mode == Mode::Tee).filter_map(|service| {
            let deployment = running.name_of(service.deployment)?;
            let idle_timeout = Duration::from_millis(running.deployments.get(deployment)?.row.tcp_idle_ms);
            let listener = |colour: Colour| {
                let listener = service.listeners[colour as usize].last()?;
                Some(Listener { address: listener.address, slot: listener.slot })
            };
            let backends = Colour::ALL.map(|colour| {
                let of_mode = service.backends[colour as usize].iter().filter(|backend| backend.mode == Mode::Tee);
                let weight = |weight| if weight == UNSETTLED { 0 } else { weight };
                let backends = of_mode.map(|backend| TeedBackend {
                    address: backend.address,
                    weight: weight(backend.weight),
                    is_down: backend.health.health() == Health::Down,
                });
                backends.collect()
            });
            Some(Teed {
                service: service.index,
                deployment: service.deployment,
                name: service.name.clone(),
                deployment_name: deployment.to_owned(),
                listeners: [listener(Colour::Blue)?, listener(Colour::Green)?],
                backends,
                proxy_protocol: service.tee.proxy_protocol,
                compare: service.tee.compare,
                idle_timeout,
            })
        });
        Ok(teed.collect())
    }
}

/// A connection that the data path has brought to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Brought {
    /// The address to which the client sends: the VIP or the preview address.
    pub(crate) destination: SocketAddr,
    /// Whether the flow may only be on the idle colour: that of a tester, or to the preview address.
    pub(crate) is_confined: bool,
}

/// Finds the flows of single connections.
pub(crate) struct FlowFinder {
    instance: Instance,
    flows4: Mapped<Bucket4>,
    flows6: Mapped<Bucket6>,
    vips: Mapped<Vip>,
    backends: Mapped<Backend>,
    hash: FlowHash,
}

impl FlowFinder {
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        let instance = Instance::open(paths)?;
        let PinRoot::Instance { meta, .. } = PinRoot::inspect(paths)? else {
            return Err(Error::NoInstance { pin_root: paths.pin_root.clone(), hint: String::new() });
        };
        Ok(Self {
            flows4: flows4(paths)?,
            flows6: flows6(paths)?,
            vips: maps::vips(paths)?,
            backends: maps::backends(paths)?,
            hash: meta.flow_hash,
            instance,
        })
    }

    /// Whether this is still the pinned instance.
    pub(crate) fn is_current(&self) -> bool {
        self.instance.is_current()
    }

    /// Whether this is the live colour: the one that gets most of the new flows of users. If so, a confined connection must not be there (invariant 6). While a
    /// share divides new flows, the other colour gets some of them too, and testers stay on it.
    pub(crate) fn is_live(&self, deployment: u16, colour: Colour) -> bool {
        self.instance.words.reading(deployment, 0).shown().live() == colour
    }

    /// The flow of a client that is at a listener. `None`: the data path knows nothing of it.
    pub(crate) fn find(&self, service: u16, listener: &Listener, client: SocketAddr) -> Option<Brought> {
        let identity = self.backends.read(listener.slot as usize).identity;
        let rows = [Role::Vip, Role::Preview].map(|role| vip_row(service, role));
        let flows = rows.into_iter().filter_map(|row| {
            let vip = self.vips.read(row);
            let state = self.state(vip.salt, row as u16, client, |flow| flow.backend.is(identity))?;
            let is_confined = row % 2 == Role::Preview as usize || state.has(FlowState::IDLE_ONLY);
            Some((state, Brought { destination: address_of(&vip.key), is_confined }))
        });
        // The row of an earlier connection from the same port may still be there.
        let (ended, open): (Vec<_>, Vec<_>) = flows.partition(|(state, _)| state.has_ended());
        let of = if open.is_empty() { ended } else { open };
        // If both are possible, what is safe.
        let confined = of.iter().find(|(_, brought)| brought.is_confined);
        confined.or(of.first()).map(|(_, brought)| *brought)
    }

    fn state(
        &self,
        salt: u16,
        vip: u16,
        client: SocketAddr,
        is_its: impl Fn(&bg_common::Flow) -> bool,
    ) -> Option<FlowState> {
        let port = Be16::new(client.port());
        let flow = match client.ip() {
            IpAddr::V4(ip) => {
                let bg_common::Addr([client, ..]) = IpAddr::V4(ip).into();
                find(self.flows4.all(), &self.hash, &FlowKey4 { client, port, vip }, salt)
            }
            IpAddr::V6(ip) => {
                let key = FlowKey6 { client: IpAddr::V6(ip).into(), reserved: 0, port, vip };
                find(self.flows6.all(), &self.hash, &key, salt)
            }
        };
        flow.filter(is_its).map(|flow| flow.state)
    }
}

fn find<K: Key>(words: &[AtomicU64], hash: &FlowHash, key: &K, salt: u16) -> Option<bg_common::Flow> {
    let memory = Keyed { words, hash };
    table::find(&memory, key, key.hash(salt, &memory), Match::Whole).map(|found| *found.flow())
}

/// A flow table with the keys of its hash.
struct Keyed<'a> {
    words: &'a [AtomicU64],
    hash: &'a FlowHash,
}

impl<'a, K: Key> Memory<K> for Keyed<'a> {
    type Words = Row<'a>;

    fn bucket(&self, index: u32) -> Option<Row<'a>> {
        let first = index as usize * FLOW_WAYS as usize * K::ROW;
        (first < self.words.len()).then_some(Row::new(self.words, first))
    }

    fn mask(&self) -> u32 {
        (self.words.len() / (FLOW_WAYS as usize * K::ROW)) as u32 - 1
    }

    fn hash_key(&self, index: usize) -> u64 {
        self.hash.0[index]
    }

    fn order(&self) {
        fence(Ordering::AcqRel);
    }
}
