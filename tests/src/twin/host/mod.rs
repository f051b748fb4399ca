//! The engine on the host, with plain collections as maps.

mod world;

use super::{FlowMemory, FlowOf, Indexed, Outcome, Scenario, flows_of};
use crate::guarded;
use bg_common::{
    Addr, Backend, Colour, Event, Family, Flow, FlowKey4, FlowKey6, FlowState, LiveWord, MAX_NEXT_HOPS, NextHop,
    SwitchTerms, Timing, Traffic, Trips, Vip,
};
use bg_ebpf::{
    Action, Direction, Frame, Verdict,
    egress::reset::{Sequence, Turned},
    flow::{
        key::{Key, Match},
        row::FlowRef,
        table::{find, insert, replace},
    },
    path::{relay, slow::mark},
    process, process_direct, process_icmp, process_relayed, room_for_error, room_for_outer,
    step::Step,
    turn_into_error, turn_into_reset,
    wire::packet::Packet,
    world::{RouteCall, SCRATCH_WORDS, World},
    write_outer,
};
use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    net::IpAddr,
};

/// All maps, a clock that changes only when it is set, and routes that can be set.
pub struct Host {
    /// The loaded scenario. Rows may be changed between frames. [`Host::set_live`] changes words and terms.
    pub scenario: Scenario,
    /// The present tick.
    pub tick: Cell<u32>,
    live: Vec<Cell<LiveWord>>,
    terms: Vec<Cell<[SwitchTerms; 2]>>,
    timing: Vec<Cell<[Timing; 2]>>,
    trips: Vec<UnsafeCell<[Trips; 2]>>,
    /// By [`bg_common::ClockId`].
    clocks: Cell<[u64; 2]>,
    vip_heads: Vec<u32>,
    vips: Vec<Vip>,
    backend_heads: Vec<u32>,
    backends: Vec<UnsafeCell<Backend>>,
    flows4: FlowMemory<FlowKey4>,
    flows6: FlowMemory<FlowKey6>,
    events: RefCell<[u64; Event::COUNT as usize]>,
    traffic: RefCell<HashMap<(u16, u8), Traffic>>,
    /// The decisions that were noted for a receipt: the deployment, and whether the new word has decided.
    pub decisions: RefCell<Vec<(u16, bool)>>,
    /// The number of reads of each deployment's live word since the last frame began.
    live_reads: RefCell<HashMap<u16, u32>>,
    /// The number of reads of terms since the last frame began.
    terms_reads: Cell<u32>,
    /// The steps that were noted since the last frame began.
    notes: RefCell<Vec<Step>>,
    /// Steps of searches for a flow since the last frame began.
    steps: Cell<u32>,
    /// See [`Host::answer`].
    answer: RefCell<Vec<u8>>,
    scratch: UnsafeCell<[u64; SCRATCH_WORDS]>,
    route_call: UnsafeCell<RouteCall>,
    /// The action of another CPU between a packet's look-up and the read of the row that was found. It happens once.
    meanwhile: Cell<Option<Meanwhile>>,
    refusals: RefCell<HashMap<u32, u64>>,
    /// Whether this host itself sends the frames.
    pub is_own: Cell<bool>,
    next_hops: Box<[UnsafeCell<[u64; 3]>]>,
    /// What becomes of a packet that would open a flow of a frozen deployment. `None`: it goes on.
    pub holds: Cell<Option<Event>>,
    /// Whether the frames are held ones that are played back.
    pub is_played_back: Cell<bool>,
    /// The colours for which copies of the last frame were made.
    pub copies: RefCell<Vec<u8>>,
    /// Whether copies can be made.
    pub can_copy: Cell<bool>,
    /// Payload bytes of each segment that the frames will be cut into, or zero.
    pub gso_size: Cell<u32>,
    /// Whether ICMP errors may be sent, and those that tell what fits.
    pub may_send_errors: Cell<[bool; 2]>,
    /// [`World::copy_for`] of the next frame.
    copy_for: Cell<u32>,
    /// The MAC address of the interface at which frames arrive, with its first byte lowest.
    pub mac: Cell<u64>,
    /// The next hops of destinations. Nothing else has a route.
    pub routes: RefCell<HashMap<IpAddr, NextHop>>,
    /// The gateways of destinations that are not on a link.
    pub gateways: RefCell<HashMap<IpAddr, IpAddr>>,
    /// The interfaces to which XDP can redirect; `None` is all.
    pub egress: RefCell<Option<Vec<u32>>>,
}

/// Rows that take no time until they are used.
fn zeroed_rows(count: usize) -> Box<[UnsafeCell<[u64; 3]>]> {
    let rows = Box::into_raw(vec![[0_u64; 3]; count].into_boxed_slice());
    // SAFETY: a cell is laid out as what is in it, and nobody else has the rows.
    unsafe { Box::from_raw(rows as *mut [UnsafeCell<[u64; 3]>]) }
}

/// Has the engine work on a frame in guarded memory.
fn on<T>(frame: &mut Vec<u8>, work: impl FnOnce(&Packet<'_>, &mut Packet<'_>) -> T) -> T {
    guarded(frame, |start, end| {
        // SAFETY: the buffer outlives both, and the engine reads nothing through the first once it has written through the second.
        let (packet, mut writer) = unsafe { (Packet::new(start, end), Packet::new(start, end)) };
        work(&packet, &mut writer)
    })
}

fn reset(frame: &mut Vec<u8>, sequence: Sequence) -> Option<Turned> {
    let turned = on(frame, |packet, writer| turn_into_reset(packet, sequence, writer))?;
    frame.truncate(turned.len);
    Some(turned)
}

/// See [`Host::meanwhile`].
type Meanwhile = Box<dyn FnOnce(&Host)>;

impl Host {
    /// The number of heads of each index. It is small, so that lists are long.
    pub const HEADS: u32 = 16;

    /// Loads a scenario at a tick, with flow tables of 4,096 rows.
    pub fn load(scenario: Scenario, tick: u32) -> Self {
        Self::load_with_rows(scenario, tick, 4096)
    }

    /// Loads a scenario, with flow tables of this many rows each.
    pub fn load_with_rows(scenario: Scenario, tick: u32, rows: u32) -> Self {
        let Indexed { vip_heads, vips, backend_heads, backends } = scenario.indexed(Self::HEADS);
        let fresh = |backend: Backend| {
            let next_hop = NextHop { learned: tick, asked: tick.wrapping_sub(2), ..backend.next_hop };
            UnsafeCell::new(Backend { next_hop, ..backend })
        };
        let no_route = RouteCall { src: Addr([0; 4]), dst: Addr([0; 4]), family: Family::V4, hop: NextHop::NONE };
        Self {
            live: scenario.deployments.iter().map(|(_, word, _)| Cell::new(*word)).collect(),
            terms: scenario.deployments.iter().map(|(.., terms)| Cell::new(*terms)).collect(),
            timing: scenario.deployments.iter().map(|_| Cell::default()).collect(),
            trips: scenario.deployments.iter().map(|_| UnsafeCell::default()).collect(),
            clocks: Cell::default(),
            scenario,
            tick: Cell::new(tick),
            vip_heads,
            vips,
            backend_heads,
            backends: backends.into_iter().map(fresh).collect(),
            flows4: FlowMemory::new(rows),
            flows6: FlowMemory::new(rows),
            events: RefCell::default(),
            traffic: RefCell::default(),
            decisions: RefCell::default(),
            live_reads: RefCell::default(),
            terms_reads: Cell::default(),
            notes: RefCell::default(),
            steps: Cell::default(),
            answer: RefCell::default(),
            scratch: UnsafeCell::new([0; SCRATCH_WORDS]),
            route_call: UnsafeCell::new(no_route),
            meanwhile: Cell::new(None),
            refusals: RefCell::default(),
            is_own: Cell::new(false),
            next_hops: zeroed_rows(MAX_NEXT_HOPS as usize),
            holds: Cell::new(Some(Event::Held)),
            is_played_back: Cell::new(false),
            copies: RefCell::default(),
            can_copy: Cell::new(true),
            gso_size: Cell::default(),
            may_send_errors: Cell::new([true; 2]),
            copy_for: Cell::default(),
            mac: Cell::new(0),
            routes: RefCell::default(),
            gateways: RefCell::default(),
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

    /// Processes the copy of a frame, for a colour, as tc ingress does.
    pub fn copied(&self, frame: &[u8], colour: Colour) -> Outcome {
        self.copy_for.set(mark(colour));
        let outcome = self.ingress(frame);
        // Of a frame that is none for a virtual address, nobody has asked.
        self.copy_for.set(0);
        outcome
    }

    /// Processes a frame as tc egress does.
    pub fn egress(&self, frame: &[u8]) -> Outcome {
        self.process(frame, Direction::Egress)
    }

    fn process(&self, frame: &[u8], direction: Direction) -> Outcome {
        self.live_reads.borrow_mut().clear();
        self.terms_reads.set(0);
        self.steps.set(0);
        self.notes.borrow_mut().clear();
        self.copies.borrow_mut().clear();
        let mut bytes = frame.to_vec();
        let about = Frame { direction, len: frame.len() };
        let mut is_relayed = false;
        let verdict = on(&mut bytes, |packet, writer| match process(packet, about, self, writer) {
            Verdict::ICMP => match process_icmp(packet, about, self, writer) {
                Verdict::PASS if direction == Direction::Ingress => {
                    let verdict = process_relayed(packet, about, self);
                    is_relayed = verdict.action() == Action::Resolve;
                    verdict
                }
                verdict => verdict,
            },
            verdict => verdict,
        });
        let is_direct = verdict == Verdict::DIRECT;
        let verdict = if is_direct { on(&mut bytes, |packet, _| process_direct(packet, about, self)) } else { verdict };
        let action = verdict.action();
        self.note(Step::Verdict { action: action as u64, ifindex: verdict.ifindex().into() });
        let written = match action {
            Action::Reset => self.reset_both(&mut bytes),
            Action::Refuse => reset(&mut bytes, Sequence::Acknowledged).map(drop),
            Action::Redirect | Action::Resolve if is_direct => {
                bytes.splice(14..14, vec![0; room_for_outer(self).expect("it was decided on")]);
                on(&mut bytes, |packet, writer| write_outer(packet, self, writer))
            }
            _ if is_relayed => {
                let room = relay::room(self).expect("it was decided on");
                bytes.truncate(room.kept);
                bytes.splice(14..14, vec![0; room.inserted]);
                bytes.drain(14..14 + room.cut);
                on(&mut bytes, |packet, writer| relay::write(packet, self, writer))
            }
            Action::Unreachable | Action::TooBig | Action::TimeExceeded => {
                let room = on(&mut bytes, |packet, _| room_for_error(packet)).expect("it was read before");
                bytes.truncate(room.kept);
                bytes.splice(14..14, vec![0; room.inserted]);
                on(&mut bytes, |packet, writer| turn_into_error(packet, verdict.reason(), writer))
            }
            _ => Some(()),
        };
        // Frames to a group are not answered, but dropped. No frame may come from one (IEEE 802.3, section 3.2.3).
        assert!(written.is_some() || (frame[0] | frame[6]) & 1 != 0, "it was read before: {action:?} of {frame:02x?}");
        let action = if written.is_some() { action } else { Action::Drop };
        assert!(
            self.live_reads.borrow().values().all(|&reads| reads == 1),
            "a packet reads a live word once: {:?}",
            self.live_reads.borrow()
        );
        Outcome { action, frame: bytes }
    }

    /// Turns a segment into the reset that goes on, and keeps the one that goes back.
    fn reset_both(&self, bytes: &mut Vec<u8>) -> Option<()> {
        let back = reset(bytes, Sequence::Acknowledged)?;
        self.answer.replace(bytes.clone());
        reset(bytes, Sequence::Number(back.sequence)).map(drop)
    }

    /// The steps that the last frame has taken.
    pub fn notes(&self) -> Vec<Step> {
        self.notes.borrow().clone()
    }

    /// The live word of a deployment.
    pub fn word(&self, deployment: u16) -> LiveWord {
        self.live[usize::from(deployment)].get()
    }

    /// Both terms of a deployment.
    pub fn terms(&self, deployment: u16) -> [SwitchTerms; 2] {
        self.terms[usize::from(deployment)].get()
    }

    /// Both timings of a deployment.
    pub fn timings(&self, deployment: u16) -> [Timing; 2] {
        self.timing[usize::from(deployment)].get()
    }

    /// Stores the timing of a word, before [`set_live`](Self::set_live).
    pub fn set_timing(&self, deployment: u16, word: LiveWord, timing: Timing) {
        let mut both = self.timings(deployment);
        both[word.terms_slot()] = timing;
        self.timing[usize::from(deployment)].set(both);
    }

    /// Both slots of conditions of a deployment.
    pub fn trips(&self, deployment: u16) -> [Trips; 2] {
        // SAFETY: plain data, which nobody else uses while this thread is here.
        unsafe { *self.trips[usize::from(deployment)].get() }
    }

    /// Stores the conditions of a word, before [`set_live`](Self::set_live).
    pub fn set_trips(&self, deployment: u16, word: LiveWord, trips: Trips) {
        // SAFETY: as above.
        let both = unsafe { &mut *self.trips[usize::from(deployment)].get() };
        both[word.terms_slot()] = Trips { generation: word.generation(), ..trips };
    }

    /// Both clocks, by [`bg_common::ClockId`], in nanoseconds.
    pub fn clocks(&self) -> [u64; 2] {
        self.clocks.get()
    }

    /// Sets both clocks, by [`bg_common::ClockId`], in nanoseconds.
    pub fn set_clocks(&self, clocks: [u64; 2]) {
        self.clocks.set(clocks);
    }

    /// Switches: stores the terms of a word, then the word.
    pub fn set_live(&self, deployment: u16, word: LiveWord, terms: SwitchTerms) {
        let mut both = self.terms(deployment);
        both[word.terms_slot()] = terms;
        self.terms[usize::from(deployment)].set(both);
        self.live[usize::from(deployment)].set(word);
    }

    /// The number of reads of terms by the last frame.
    pub fn terms_reads(&self) -> u32 {
        self.terms_reads.get()
    }

    /// The reset that has gone back to the sender of the last segment that was answered with one.
    pub fn answer(&self) -> Vec<u8> {
        self.answer.borrow().clone()
    }

    /// How many steps of searches for a flow the last frame has needed.
    pub fn steps(&self) -> u32 {
        self.steps.get()
    }

    /// All flows.
    pub fn flows(&self) -> super::Flows {
        flows_of(self.flows4.rows(), self.flows6.rows())
    }

    /// A flow in the table, with its ticks.
    pub fn flow(&self, of: FlowOf) -> Option<Flow> {
        let in_v4 = of.key4().and_then(|key| self.find(&self.flows4, of, &key));
        let in_v6 = of.key6().and_then(|key| self.find(&self.flows6, of, &key));
        in_v4.or(in_v6).map(|found| *found.flow())
    }

    /// Stores an IPv4 flow, as another CPU may do at any time. It replaces the flow with this key, if there is one.
    pub fn store(&self, of: FlowOf, flow: &Flow) {
        let key = of.key4().expect("an IPv4 flow");
        match self.find(&self.flows4, of, &key) {
            Some(there) => replace(&self.flows4, there, flow),
            None => insert(&self.flows4, &key, self.hash(&self.flows4, of, &key), flow, self.tick.get()),
        };
    }

    fn hash<K: Key>(&self, flows: &FlowMemory<K>, of: FlowOf, key: &K) -> u32 {
        key.hash(self.vips[usize::from(of.vip)].salt, flows)
    }

    fn find<K: Key>(&self, flows: &FlowMemory<K>, of: FlowOf, key: &K) -> Option<FlowRef> {
        find(flows, key, self.hash(flows, of, key), Match::Whole)
    }

    /// Sets the action of another CPU between the next packet's look-up and the read of the flow that was found.
    pub fn meanwhile(&self, what: impl FnOnce(&Self) + 'static) {
        self.meanwhile.set(Some(Box::new(what)));
    }

    fn let_others_do(&self) {
        if let Some(what) = self.meanwhile.take() {
            what(self);
        }
    }

    /// Removes all flows.
    pub fn forget_flows(&self) {
        self.flows4.clear();
        self.flows6.clear();
    }

    /// Forgets which connections have been refused.
    pub fn forget_refusals(&self) {
        self.refusals.borrow_mut().clear();
    }

    /// Makes the flow tables refuse every flow, as if other CPUs were writing to all rows.
    pub fn refuse_flows(&self) {
        // Of a hash that no flow has, so that none seems to be one that is being opened.
        let busy = u64::from(FlowState::BUSY) | u64::from(u32::MAX) << 32;
        self.flows4.set_heads(busy);
        self.flows6.set_heads(busy);
    }

    /// The count of an event.
    pub fn events(&self, event: Event) -> u64 {
        self.events.borrow()[event as usize]
    }

    /// All events with their counts.
    pub fn all_events(&self) -> [u64; Event::COUNT as usize] {
        *self.events.borrow()
    }

    /// The traffic of a service and colour.
    pub fn traffic(&self, service: u16, colour: u8) -> Traffic {
        self.traffic.borrow().get(&(service, colour)).copied().unwrap_or_default()
    }

    /// Sets the clock, and makes all next hops fresh.
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

    /// Gives the virtual address of a row to another row, of another service, between frames. The old row stays as it is.
    pub fn pass_vip(&mut self, from: u32, to: u32) {
        let old = self.vips[from as usize];
        let links = self.vip_heads.iter_mut().chain(self.vips.iter_mut().map(|vip| &mut vip.next));
        links.filter(|link| **link == from + 1).for_each(|link| *link = to + 1);
        let Vip { key: taken_over, .. } = self.vips[to as usize];
        self.vips[to as usize] = Vip { key: old.key, next: old.next, ..self.vips[to as usize] };
        let services = &mut self.scenario.services;
        let (_, row) = *services.iter().find(|(key, _)| *key == taken_over).expect("a service");
        services.retain(|(key, _)| *key != old.key && *key != taken_over);
        services.push((old.key, row));
    }

    /// Removes a virtual address between frames.
    pub fn remove_vip(&mut self, row: u32) {
        let removed = self.vips[row as usize];
        self.scenario.services.retain(|(key, _)| *key != removed.key);
        let links = self.vip_heads.iter_mut().chain(self.vips.iter_mut().map(|vip| &mut vip.next));
        links.filter(|link| **link == row + 1).for_each(|link| *link = removed.next);
        self.vips[row as usize] = Vip::default();
    }
}
