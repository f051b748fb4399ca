//! The engine on the host: maps are plain collections.

use super::{Flows, Outcome, Scenario, comparable, key4, key6};
use bg_common::{
    Backend, DeploymentRow, Event, Flow, FlowKey4, FlowKey6, FlowState, LiveWord, MAX_NEXT_HOPS, NextHop, ServiceKey,
    ServiceRow, SwitchTerms, TesterKey, Traffic,
};
use bg_ebpf::{
    Direction, Frame,
    desk::Desk,
    flow_ref::{FlowRef, RawWords},
    flow_table::{Stored, Words as _},
    headers::{V4, V6},
    packet::Packet,
    process, reply,
    tables::{Aside, FlowTable, RouteQuery, Tables},
};
use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
};

/// A flow table of unlimited size, which shares nothing with the one under test. Entries stay where they are.
type Entries<K> = RefCell<HashMap<K, Box<UnsafeCell<[u64; 3]>>>>;

/// All maps, a clock that stands still until it is set, and routes that lead nowhere.
pub struct Host {
    /// What was loaded; words and terms may be changed between frames.
    pub scenario: Scenario,
    /// What the clock says.
    pub tick: Cell<u32>,
    backends: Vec<UnsafeCell<Backend>>,
    flows4: Entries<FlowKey4>,
    flows6: Entries<FlowKey6>,
    events: RefCell<[u64; Event::COUNT as usize]>,
    traffic: RefCell<HashMap<(u16, u8), Traffic>>,
    /// How often each deployment's live word was read since the last frame began.
    live_reads: RefCell<HashMap<u16, u32>>,
    desk: UnsafeCell<[u64; bg_ebpf::desk::WORDS]>,
    /// What another CPU does between an answer's look-up and the closer look at it, once.
    meanwhile: Cell<Option<Meanwhile>>,
    /// Whether this host itself sends the frames.
    pub is_own: Cell<bool>,
    next_hops: Vec<UnsafeCell<[u64; 3]>>,
    /// MAC address of the interface that frames come in by: first octet lowest.
    pub mac: Cell<u64>,
    /// What the kernel's routes say of each destination; nothing else has a route.
    pub routes: RefCell<HashMap<IpAddr, NextHop>>,
    /// Interfaces that XDP can redirect to; `None`: to all.
    pub egress: RefCell<Option<Vec<u32>>>,
}

/// See [`Host::meanwhile`].
type Meanwhile = Box<dyn FnOnce(&Host)>;

impl Host {
    /// Loads a scenario at a moment of the clock.
    pub fn load(scenario: Scenario, tick: u32) -> Self {
        let backends = scenario
            .backends
            .iter()
            .map(|backend| {
                let next_hop = NextHop { learned: tick, asked: tick.wrapping_sub(2), ..backend.next_hop };
                UnsafeCell::new(Backend { next_hop, ..*backend })
            })
            .collect();
        Self {
            scenario,
            tick: Cell::new(tick),
            backends,
            flows4: Entries::default(),
            flows6: Entries::default(),
            events: RefCell::default(),
            traffic: RefCell::default(),
            live_reads: RefCell::default(),
            desk: UnsafeCell::new([0; bg_ebpf::desk::WORDS]),
            meanwhile: Cell::new(None),
            is_own: Cell::new(false),
            next_hops: (0..MAX_NEXT_HOPS).map(|_| UnsafeCell::default()).collect(),
            mac: Cell::new(0),
            routes: RefCell::default(),
            egress: RefCell::default(),
        }
    }

    /// Processes a frame as XDP does.
    pub fn early(&self, frame: &[u8]) -> Outcome {
        self.process(frame, Direction::Early)
    }

    /// Processes a frame as tc ingress does.
    pub fn ingress(&self, frame: &[u8]) -> Outcome {
        self.process(frame, Direction::Ingress)
    }

    /// Processes a frame as tc egress does.
    pub fn egress(&self, frame: &[u8]) -> Outcome {
        self.process(frame, Direction::Egress)
    }

    fn process(&self, frame: &[u8], direction: Direction) -> Outcome {
        self.live_reads.borrow_mut().clear();
        let mut bytes = frame.to_vec();
        let range = bytes.as_mut_ptr_range();
        // SAFETY: the buffer outlives both, and the engine reads nothing through the first once it has
        // written through the second.
        let (packet, mut writer) =
            unsafe { (Packet::new(range.start, range.end), Packet::new(range.start, range.end)) };
        let about = Frame { direction, len: frame.len() };
        let action = process(&packet, about, self, &mut writer).action();
        assert!(
            self.live_reads.borrow().values().all(|&reads| reads == 1),
            "a packet reads a live word once: {:?}",
            self.live_reads.borrow()
        );
        Outcome { action, frame: bytes }
    }

    /// All flow entries.
    pub fn flows(&self) -> Flows {
        let flow = |cell: &UnsafeCell<[u64; 3]>| {
            // SAFETY: no frame is being processed.
            Flow::from_words(unsafe { *cell.get() })
        };
        let (flows4, flows6) = (self.flows4.borrow(), self.flows6.borrow());
        let of4 = flows4.iter().map(|(key, entry)| comparable(key4(key), flow(entry)));
        let of6 = flows6.iter().map(|(key, entry)| comparable(key6(key), flow(entry)));
        of4.chain(of6).collect()
    }

    /// Stores an entry of an IPv4 flow, as another CPU may do at any time.
    pub fn store(&self, key: &FlowKey4, flow: &Flow) {
        put(&self.flows4, key, flow, true);
    }

    /// What another CPU does while the next answer that needs a closer look is between its look-up and that.
    pub fn meanwhile(&self, what: impl FnOnce(&Self) + 'static) {
        self.meanwhile.set(Some(Box::new(what)));
    }

    /// Forgets all flows.
    pub fn forget_flows(&self) {
        self.flows4.borrow_mut().clear();
        self.flows6.borrow_mut().clear();
    }

    /// Forgets the entries of one direction, as a full table may.
    pub fn forget_direction(&self, replies: bool) {
        let keep = |entry: &mut Box<UnsafeCell<[u64; 3]>>| {
            Flow::from_words(*entry.get_mut()).state.has(FlowState::REPLY) != replies
        };
        self.flows4.borrow_mut().retain(|_, entry| keep(entry));
        self.flows6.borrow_mut().retain(|_, entry| keep(entry));
    }

    /// How often an event was counted.
    pub fn events(&self, event: Event) -> u64 {
        self.events.borrow()[event as usize]
    }

    /// All events that were counted.
    pub fn all_events(&self) -> [u64; Event::COUNT as usize] {
        *self.events.borrow()
    }

    /// Traffic of a service and colour.
    pub fn traffic(&self, service: u16, colour: u8) -> Traffic {
        self.traffic.borrow().get(&(service, colour)).copied().unwrap_or_default()
    }

    /// Moves the clock, and makes all next hops fresh.
    pub fn later(&mut self, tick: u32) {
        self.tick.set(tick);
        for backend in &mut self.backends {
            let hop = &mut backend.get_mut().next_hop;
            (hop.learned, hop.asked) = (tick, tick.wrapping_sub(2));
        }
    }

    /// Changes a backend's row between frames.
    pub fn change_backend(&mut self, slot: usize, change: impl FnOnce(&mut Backend)) {
        change(self.backends[slot].get_mut());
    }
}

fn find<K: Eq + Hash>(table: &Entries<K>, key: &K) -> Option<FlowRef> {
    table.borrow().get(key).map(|entry| {
        // SAFETY: three words, which stay where they are until flows are forgotten.
        let words = unsafe { RawWords::new(entry.get().cast()) };
        FlowRef::new(words, Flow::from_words([words.load(0), words.load(1), words.load(2)]))
    })
}

fn put<K: Eq + Hash + Copy>(table: &Entries<K>, key: &K, flow: &Flow, replaces: bool) -> Stored {
    let mut entries = table.borrow_mut();
    if !replaces && entries.contains_key(key) {
        return Stored::No;
    }
    // In place: who has found it may still look at it.
    let words = entries.entry(*key).or_default().get_mut();
    let version = Flow::from_words(*words).state.next(FlowState::LIVE);
    *words = Flow { state: FlowState(flow.state.0 & !FlowState::IDENTITY | version.0), ..*flow }.words();
    Stored::Yes
}

macro_rules! flow_table {
    ($key:ty, $entries:ident) => {
        impl FlowTable<$key> for Host {
            fn flow(&self, key: &$key) -> Option<FlowRef> {
                find(&self.$entries, key)
            }

            fn flow_slowly(&self, key: &$key) -> Option<FlowRef> {
                find(&self.$entries, key)
            }

            fn store(&self, key: &$key, flow: &Flow, replaces: bool, _now: u32) -> Stored {
                put(&self.$entries, key, flow, replaces)
            }
        }
    };
}

flow_table!(FlowKey4, flows4);
flow_table!(FlowKey6, flows6);

impl Aside<V4> for Host {
    fn answer(&self, desk: &mut Desk<V4>) -> u32 {
        if let Some(what) = self.meanwhile.take() {
            what(self);
        }
        reply::answer(desk, self) as u32
    }
}
impl Aside<V6> for Host {}

impl Tables for Host {
    fn live(&self, deployment: u16) -> Option<LiveWord> {
        *self.live_reads.borrow_mut().entry(deployment).or_default() += 1;
        self.scenario.deployments.get(usize::from(deployment)).map(|(_, word, _)| *word)
    }

    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(_, _, terms)| terms[slot])
    }

    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(row, ..)| row)
    }

    fn may_be_service(&self, hash: u32) -> bool {
        self.scenario.services.iter().any(|(key, _)| bg_ebpf::choice::filter_hash(key) == hash)
    }

    fn numbered_hop(&self, number: u32) -> Option<RawWords> {
        // SAFETY: three words, which stay where they are.
        self.next_hops.get(number as usize).map(|row| unsafe { RawWords::new(row.get().cast()) })
    }

    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow> {
        self.scenario.services.iter().find(|(at, _)| at == key).map(|(_, row)| row)
    }

    fn vip(&self, row: u32) -> Option<&ServiceKey> {
        self.scenario.vips.iter().find(|(at, _)| *at == row).map(|(_, key)| key)
    }

    fn maglev(&self, entry: u32) -> Option<u32> {
        self.scenario.maglev.get(entry as usize).copied()
    }

    fn backend(&self, slot: u32) -> Option<*mut Backend> {
        self.backends.get(slot as usize).map(UnsafeCell::get)
    }

    fn is_tester(&self, key: &TesterKey) -> bool {
        self.scenario.covers(key)
    }

    fn is_addressed_here(&self, destination: u64) -> bool {
        destination == self.mac.get()
    }

    fn route(&self, query: &mut RouteQuery, hop: &mut NextHop) {
        if let Some(found) = self.routes.borrow().get(&query.dst.to_ip(query.family)) {
            *hop = *found;
        }
    }

    fn prepare_redirect(&self, ifindex: u32) -> bool {
        self.egress.borrow().as_ref().is_none_or(|interfaces| interfaces.contains(&ifindex))
    }

    fn desk(&self) -> Option<*mut u64> {
        Some(self.desk.get().cast())
    }

    fn is_own(&self) -> bool {
        self.is_own.get()
    }

    fn tick(&self) -> u32 {
        self.tick.get()
    }

    fn count(&self, event: Event) {
        self.events.borrow_mut()[event as usize] += 1;
    }

    fn count_flow(&self, service: u16, colour: u8) {
        self.traffic.borrow_mut().entry((service, colour)).or_default().flows_opened += 1;
    }

    fn count_packet(&self, service: u16, colour: u8, bytes: u64) {
        let mut rows = self.traffic.borrow_mut();
        let row = rows.entry((service, colour)).or_default();
        row.packets += 1;
        row.bytes += bytes;
    }
}
