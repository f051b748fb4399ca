//! What the engine asks of its world, answered from the host's collections.

use super::Host;
use bg_common::{
    Backend, ClockId, Conditions, DeploymentRow, Event, FlowKey4, FlowKey6, LiveWord, REFUSAL_ROWS, ServiceKey,
    ServiceRow, SwitchTerms, TesterKey, Timing, Trips, Tunnel, Vip,
};
use bg_ebpf::{
    egress::next_hop::number_of,
    flow::memory::{Memory, RawWords},
    path::slow::{Answering, Refreshing, Search, SlowPath, run},
    policy::{timed, trips},
    step::Step,
    world::{Flows, Generations, Guard, RouteCall, World},
};
use std::cell::{Cell, UnsafeCell};

impl<V: Flows> SlowPath<V> for Host {
    fn refresh(&self, row: RawWords, call: &mut Refreshing) -> u32 {
        self.let_others_do();
        run::refresh(row, call, self) as u32
    }

    fn answer(&self, row: RawWords, call: &mut Answering) -> u32 {
        self.let_others_do();
        run::answer(row, call, self) as u32
    }

    fn search_step(&self, search: &mut Search) -> u32 {
        self.steps.set(self.steps.get() + 1);
        run::search_step::<V, _>(search, self).to_u32()
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

    fn refusals(&self, row: u32) -> u64 {
        assert!(row < REFUSAL_ROWS, "no row {row}");
        self.refusals.borrow().get(&row).copied().unwrap_or(0)
    }

    fn set_refusals(&self, row: u32, names: u64) {
        self.refusals.borrow_mut().insert(row, names);
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

    fn tunnel(&self, slot: u32) -> Option<*const Tunnel> {
        self.scenario.tunnels.get(slot as usize).map(|tunnel| tunnel as *const Tunnel)
    }

    fn gso_size(&self) -> u32 {
        self.gso_size.get()
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

    fn hop_number(&self, ifindex_and_dmac: u64, mtu_and_smac: u64) -> u32 {
        number_of(ifindex_and_dmac, mtu_and_smac, self)
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
            if let Some(gateway) = self.gateways.borrow().get(&call.dst.to_ip(call.family)) {
                call.dst = (*gateway).into();
            }
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

    fn is_played_back(&self, _deployment: u16) -> bool {
        self.is_played_back.get()
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

    fn may_send_error(&self, tells_size: bool) -> bool {
        self.may_send_errors.get()[usize::from(tells_size)]
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
            let trips = unsafe { &mut (*self.trips[usize::from(deployment)].get())[slot] };
            (trips.began_at, trips.paused_until) = (guard.began_at, guard.paused_until);
        }
        self.terms[usize::from(deployment)].set(terms);
        self.timing[usize::from(deployment)].set(timing);
    }

    fn prepare(&self, deployment: u16, slot: usize, terms: &SwitchTerms, timing: &Timing) {
        let (mut all_terms, mut all_timing) = (self.terms(deployment), self.timings(deployment));
        all_terms[slot] = *terms;
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
