//! The engine on the host, with plain collections as maps.

use super::{FlowMemory, FlowOf, Indexed, Outcome, Scenario, flows_of};
use bg_common::{
    Addr, Backend, ClockId, Colour, Conditions, DeploymentRow, Event, Family, Flow, FlowKey4, FlowKey6, FlowState,
    LiveWord, MAX_NEXT_HOPS, NextHop, ServiceKey, ServiceRow, SwitchTerms, TesterKey, Timing, Traffic, Trips, Vip,
};
use bg_ebpf::{
    Action, Direction, Frame, Verdict,
    egress::reset::Sequence,
    flow::{
        key::{Key, Match},
        memory::{Memory, RawWords},
        row::FlowRef,
        table::{find, insert, replace},
    },
    path::slow::{Answering, Refreshing, Search, SlowPath, mark, run},
    policy::{timed, trips},
    process, process_icmp,
    step::Step,
    turn_into_reset,
    wire::packet::Packet,
    world::{Flows, Generations, Guard, RouteCall, SCRATCH_WORDS, World},
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
    /// By [`ClockId`].
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
    /// Whether this host itself sends the frames.
    pub is_own: Cell<bool>,
    next_hops: Vec<UnsafeCell<[u64; 3]>>,
    /// What becomes of a packet that would open a flow of a frozen deployment. `None`: it goes on.
    pub holds: Cell<Option<Event>>,
    /// The colours for which copies of the last frame were made.
    pub copies: RefCell<Vec<u8>>,
    /// Whether copies can be made.
    pub can_copy: Cell<bool>,
    /// [`World::copy_for`] of the next frame.
    copy_for: Cell<u32>,
    /// The MAC address of the interface at which frames arrive, with its first byte lowest.
    pub mac: Cell<u64>,
    /// The next hops of destinations. Nothing else has a route.
    pub routes: RefCell<HashMap<IpAddr, NextHop>>,
    /// The interfaces to which XDP can redirect; `None` is all.
    pub egress: RefCell<Option<Vec<u32>>>,
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
            is_own: Cell::new(false),
            next_hops: (0..MAX_NEXT_HOPS).map(|_| UnsafeCell::default()).collect(),
            holds: Cell::new(Some(Event::Held)),
            copies: RefCell::default(),
            can_copy: Cell::new(true),
            copy_for: Cell::default(),
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

    /// Processes the copy of a frame, for a colour, as tc ingress does.
    pub fn copied(&self, frame: &[u8], colour: Colour) -> Outcome {
        self.copy_for.set(mark(colour));
        self.ingress(frame)
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
        let range = bytes.as_mut_ptr_range();
        // SAFETY: the buffer outlives both, and the engine reads nothing through the first once it has
        // written through the second.
        let (packet, mut writer) =
            unsafe { (Packet::new(range.start, range.end), Packet::new(range.start, range.end)) };
        let about = Frame { direction, len: frame.len() };
        let verdict = match process(&packet, about, self, &mut writer) {
            Verdict::ICMP => process_icmp(&packet, about, self, &mut writer),
            verdict => verdict,
        };
        let action = verdict.action();
        self.note(Step::Verdict { action: action as u64, ifindex: verdict.ifindex().into() });
        if action == Action::Reset {
            let back = turn_into_reset(&packet, Sequence::Acknowledged, &mut writer).expect("it was read before");
            bytes.truncate(back.len);
            self.answer.replace(bytes.clone());
            turn_into_reset(&packet, Sequence::Number(back.sequence), &mut writer).expect("as before");
        } else if action == Action::Refuse {
            let back = turn_into_reset(&packet, Sequence::Acknowledged, &mut writer).expect("it was read before");
            bytes.truncate(back.len);
        }
        assert!(
            self.live_reads.borrow().values().all(|&reads| reads == 1),
            "a packet reads a live word once: {:?}",
            self.live_reads.borrow()
        );
        Outcome { action, frame: bytes }
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

    /// Both clocks, by [`ClockId`], in nanoseconds.
    pub fn clocks(&self) -> [u64; 2] {
        self.clocks.get()
    }

    /// Sets both clocks, by [`ClockId`], in nanoseconds.
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

impl<V: Flows> SlowPath<V> for Host {
    fn refresh(&self, row: RawWords, call: &mut Refreshing) -> u32 {
        self.let_others_do();
        run::refresh(row, call, self) as u32
    }

    fn answer(&self, row: RawWords, call: &mut Answering) -> u32 {
        self.let_others_do();
        run::answer(row, call, self) as u32
    }

    fn search(&self, search: &mut Search) -> u32 {
        self.steps.set(self.steps.get() + 1);
        run::search::<V, _>(search, self).to_u32()
    }
}

impl World for Host {
    fn flows4(&self) -> &impl Memory<FlowKey4, Words = RawWords> {
        &self.flows4
    }

    fn flows6(&self) -> &impl Memory<FlowKey6, Words = RawWords> {
        &self.flows6
    }

    fn live(&self, deployment: u16) -> Option<LiveWord> {
        *self.live_reads.borrow_mut().entry(deployment).or_default() += 1;
        self.live.get(usize::from(deployment)).map(Cell::get)
    }

    fn settle(&self, deployment: u16, word: LiveWord, judges: bool) -> LiveWord {
        timed::settle(deployment, word, judges, self)
    }

    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        self.terms_reads.set(self.terms_reads.get() + 1);
        self.terms.get(usize::from(deployment)).map(|terms| terms.get()[slot])
    }

    fn trips(&self, deployment: u16, slot: usize) -> Option<RawWords> {
        let row: *mut Trips = self.trips.get(usize::from(deployment))?.get().cast();
        // SAFETY: words that stay where they are.
        Some(unsafe { RawWords::new(row.add(slot).cast()) })
    }

    fn end_drain(&self, deployment: u16, word: LiveWord, settled: LiveWord, ended_before: [u32; 2]) {
        let mut terms = self.terms(deployment);
        terms[word.terms_slot()].ended_before = ended_before;
        self.terms[usize::from(deployment)].set(terms);
        if self.word(deployment) == word {
            self.live[usize::from(deployment)].set(settled);
        }
    }

    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(row, ..)| row)
    }

    fn vip_head(&self, hash: u32) -> u32 {
        self.vip_heads[(hash & (Self::HEADS - 1)) as usize]
    }

    fn vip(&self, row: u32) -> Option<*const Vip> {
        self.vips.get(row as usize).map(|vip| vip as *const Vip)
    }

    fn backend_head(&self, hash: u32) -> u32 {
        self.backend_heads[(hash & (Self::HEADS - 1)) as usize]
    }

    fn backend(&self, slot: u32) -> Option<*mut Backend> {
        self.backends.get(slot as usize).map(UnsafeCell::get)
    }

    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow> {
        self.scenario.services.iter().find(|(at, _)| at == key).map(|(_, row)| row)
    }

    fn maglev(&self, entry: u32) -> Option<u32> {
        self.scenario.maglev.get(entry as usize).copied()
    }

    fn numbered_hop(&self, number: u32) -> Option<RawWords> {
        // SAFETY: three words, which stay where they are.
        self.next_hops.get(number as usize).map(|row| unsafe { RawWords::new(row.get().cast()) })
    }

    fn is_tester(&self, key: &TesterKey) -> bool {
        self.scenario.covers(key)
    }

    fn is_addressed_here(&self, destination: u64) -> bool {
        destination == self.mac.get()
    }

    fn route(&self, call: &mut RouteCall) {
        if let Some(found) = self.routes.borrow().get(&call.dst.to_ip(call.family)) {
            call.hop = *found;
        }
    }

    fn prepare_redirect(&self, ifindex: u32) -> bool {
        self.egress.borrow().as_ref().is_none_or(|interfaces| interfaces.contains(&ifindex))
    }

    fn route_call(&self) -> Option<*mut RouteCall> {
        Some(self.route_call.get())
    }

    fn scratch(&self) -> Option<*mut u64> {
        Some(self.scratch.get().cast())
    }

    fn is_own(&self) -> bool {
        self.is_own.get()
    }

    fn hold_until(&self, deployment: u16, slot: usize) -> u64 {
        self.timing.get(usize::from(deployment)).map_or(0, |timing| timing.get()[slot].hold_until)
    }

    fn boot_ns(&self) -> u64 {
        self.clocks.get()[ClockId::Boot as usize]
    }

    fn end_hold(&self, deployment: u16, word: LiveWord, thawed: LiveWord) {
        if self.word(deployment) == word {
            self.live[usize::from(deployment)].set(thawed);
        }
    }

    fn copy_for(&self) -> u32 {
        self.copy_for.take()
    }

    fn copy(&self, colour: u8) -> bool {
        self.copies.borrow_mut().push(colour);
        self.can_copy.get()
    }

    fn count_copy(&self, service: u16, colour: u8) {
        self.traffic.borrow_mut().entry((service, colour)).or_default().mirrored += 1;
    }

    fn hold(&self, _deployment: u16) -> Option<Event> {
        self.holds.get()
    }

    fn tick(&self) -> u32 {
        self.tick.get()
    }

    fn note(&self, step: Step) {
        self.notes.borrow_mut().push(step);
    }

    fn note_decision(&self, deployment: u16, is_by_new_word: bool) {
        self.decisions.borrow_mut().push((deployment, is_by_new_word));
    }

    fn count(&self, event: Event) {
        self.note(Step::Counted { event: event as u64 });
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

impl Generations for Host {
    fn terms_of(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        self.terms.get(usize::from(deployment)).map(|terms| terms.get()[slot])
    }

    fn timing(&self, deployment: u16, slot: usize) -> Option<Timing> {
        self.timing.get(usize::from(deployment)).map(|timing| timing.get()[slot])
    }

    fn present_tick(&self) -> u32 {
        self.tick.get()
    }

    fn now(&self, clock: ClockId) -> u64 {
        self.clocks.get()[clock as usize]
    }

    fn holding(&self, deployment: u16, word: LiveWord) -> Conditions {
        let row = World::trips(self, deployment, word.terms_slot());
        row.map_or(Conditions::NONE, |row| trips::holding(row, word.generation(), self.tick.get(), || self.boot_ns()))
    }

    fn activate(&self, deployment: u16, slot: usize, drain: [u32; 2], guard: Option<Guard>) {
        let (mut terms, mut timing) = (self.terms(deployment), self.timings(deployment));
        [terms[slot].drain_deadline, terms[slot].drain_began] = drain;
        if let Some(guard) = guard {
            (timing[slot].revert_at, timing[slot].activate_at) = (guard.revert_at, 0);
            // SAFETY: as in `trips`.
            unsafe { (*self.trips[usize::from(deployment)].get())[slot].paused_until = guard.paused_until };
        }
        self.terms[usize::from(deployment)].set(terms);
        self.timing[usize::from(deployment)].set(timing);
    }

    fn prepare(&self, deployment: u16, slot: usize, terms: Option<&SwitchTerms>, timing: &Timing) {
        let (mut all_terms, mut all_timing) = (self.terms(deployment), self.timings(deployment));
        all_terms[slot] = terms.copied().unwrap_or(all_terms[slot]);
        all_timing[slot] = *timing;
        self.terms[usize::from(deployment)].set(all_terms);
        self.timing[usize::from(deployment)].set(all_timing);
    }

    fn exchange(&self, deployment: u16, old: LiveWord, new: LiveWord) -> LiveWord {
        let live = &self.live[usize::from(deployment)];
        if live.get() == old {
            live.set(new);
        }
        live.get()
    }
}
