//! The live word and its terms: a packet that has read the word finds the terms that were written before it.

use crate::{
    NOW,
    memory::{MACHINES, Machine, Shared},
    races::model,
};
use bg_common::{
    Backend, Colour, DeploymentRow, Event, Flow, FlowKey4, FlowKey6, LiveFlags, LiveWord, ServiceKey, ServiceRow,
    SwitchTerms, TesterKey, Vip,
};
use bg_ebpf::{
    flow::memory::{Memory, RawWords},
    policy::lifetime::{after_drain, ended_by_switch, terms},
    world::{RouteCall, World},
};
use loom::{sync::Arc, thread};

/// `live` and `terms`, as one CPU's memory shows them.
struct Maps {
    words: Arc<Both>,
    machine: Machine,
    cpu: usize,
}

struct Both {
    live: Shared,
    terms: [[Shared; 2]; 2],
}

impl Maps {
    /// For the first CPU.
    fn new(machine: Machine, word: LiveWord, terms: SwitchTerms) -> Self {
        let words: [u64; 2] = bytemuck::cast(terms);
        let slots: [_; 2] = std::array::from_fn(|slot| if slot == word.terms_slot() { words } else { [0; 2] });
        let words = Both { live: Shared::new(word.0), terms: slots.map(|words| words.map(Shared::new)) };
        Self { words: Arc::new(words), machine, cpu: 0 }
    }

    /// Runs on another CPU.
    fn on_cpu(&self, cpu: usize, run: impl FnOnce(&Self) + 'static) -> thread::JoinHandle<()> {
        let maps = Self { words: Arc::clone(&self.words), cpu, ..*self };
        thread::spawn(move || run(&maps))
    }

    /// The switch, as user space makes it (`switch.rs`): the terms, then the word. It begins anew if the word has changed.
    fn switch(&self, terms: SwitchTerms, change: impl Fn(LiveWord) -> LiveWord) {
        loop {
            let old = self.live(0).expect("a word");
            let new = change(old);
            let words: [u64; 2] = bytemuck::cast(terms);
            for (word, value) in self.words.terms[new.terms_slot()].iter().zip(words) {
                word.store(Machine::Strong, self.cpu, value);
            }
            // Of user space's exchange no more is asked than that it publishes.
            if self.words.live.exchange(Machine::LooseExchange, self.cpu, old.0, new.0) {
                return;
            }
        }
    }

    /// Whether a packet takes a flow of blue for one that a switch has ended, and the word by which it does.
    fn has_ended(&self, flow: &Flow) -> (bool, LiveWord) {
        let word = self.live(0).expect("a word");
        (ended_by_switch(flow, Colour::Blue, 0, word, self, NOW), word)
    }
}

const OPENED_IN_1: Flow = Flow { generation: 1, ..Flow::from_words([0; 3]) };

fn a_cut_is_seen_whole(machine: Machine) {
    let before = LiveWord::new(1, LiveFlags::NONE, 0, 0);
    let after = LiveWord::new(2, LiveFlags::CUT, 0, Colour::Green.full_share());
    let maps = Maps::new(machine, before, SwitchTerms::default());
    let terms = SwitchTerms { ended_before: [2, 0], ..SwitchTerms::default() };
    let switching = maps.on_cpu(1, move |maps| maps.switch(terms, |_| after));
    let (has_ended, word) = maps.has_ended(&OPENED_IN_1);
    assert_eq!(has_ended, word == after, "the terms are not those of the word");
    switching.join().expect("the switch");
}

#[test]
fn whoever_reads_a_word_finds_its_terms() {
    for machine in MACHINES {
        model(3, move || a_cut_is_seen_whole(machine));
    }
}

#[test]
#[should_panic(expected = "the terms are not those of the word")]
fn a_weak_machine_that_was_taken_for_a_strong_one_does_not() {
    model(3, || a_cut_is_seen_whole(Machine::Mistaken));
}

/// A drain whose deadline has passed.
const DRAINED: LiveWord = LiveWord::new(2, LiveFlags::DRAINING, 0, Colour::Green.full_share());
const OVER: SwitchTerms = SwitchTerms { ended_before: [0; 2], drain_deadline: NOW - 1, drain_began: 0 };

/// What a packet does that sees it.
fn end(maps: &Maps) {
    let word = maps.live(0).expect("a word");
    if !word.flags().has(LiveFlags::DRAINING) {
        return;
    }
    let (settled, ended_before) = after_drain(word, &terms(0, word, maps).expect("terms"));
    maps.end_drain(0, word, settled, ended_before);
}

fn packets_end_a_drain(machine: Machine) {
    let maps = Maps::new(machine, DRAINED, OVER);
    let packets = [1, 2].map(|cpu| maps.on_cpu(cpu, end));
    assert!(maps.has_ended(&OPENED_IN_1).0, "a flow that the drain has ended goes on");
    assert!(!maps.has_ended(&Flow { generation: 2, ..OPENED_IN_1 }).0, "a flow since the switch has ended");
    for packet in packets {
        packet.join().expect("a packet");
    }
    assert_eq!(maps.live(0), Some(DRAINED.with_flags(LiveFlags::CUT)));
}

#[test]
fn a_flow_that_a_drain_has_ended_stays_so_while_packets_end_the_drain() {
    for machine in MACHINES {
        model(3, move || packets_end_a_drain(machine));
    }
}

#[test]
#[should_panic(expected = "a flow that the drain has ended goes on")]
fn on_a_weak_machine_that_was_taken_for_a_strong_one_it_does_not() {
    model(3, || packets_end_a_drain(Machine::Mistaken));
}

/// A switch at the moment at which a packet ends the drain before it.
fn a_packet_ends_a_drain_during_a_switch(machine: Machine) {
    let maps = Maps::new(machine, DRAINED, OVER);
    let after = LiveWord::new(3, LiveFlags::CUT, Colour::Green.full_share(), 0);
    // Blue's flows of generation 1 are over, green's of generation 2 are cut.
    let cut = SwitchTerms { ended_before: [2, 3], ..SwitchTerms::default() };
    let packet = maps.on_cpu(1, end);
    let other =
        maps.on_cpu(2, |maps| assert!(maps.has_ended(&OPENED_IN_1).0, "a flow that the drain has ended goes on"));
    maps.switch(cut, |_| after);
    packet.join().expect("a packet");
    other.join().expect("another packet");
    assert_eq!(maps.live(0), Some(after), "the packet has undone the switch");
    assert_eq!(maps.terms(0, after.terms_slot()), Some(cut), "the packet has written into the terms of the switch");
}

#[test]
fn a_packet_that_ends_a_drain_leaves_a_switch_alone() {
    for machine in MACHINES {
        model(3, move || a_packet_ends_a_drain_during_a_switch(machine));
    }
}

/// Memory of a flow table that is not asked.
struct NoFlows;

impl<K> Memory<K> for NoFlows {
    type Words = RawWords;

    fn bucket(&self, _index: u32) -> Option<RawWords> {
        None
    }

    fn mask(&self) -> u32 {
        0
    }

    fn hash_key(&self, _index: usize) -> u64 {
        0
    }

    fn order(&self) {}
}

impl World for Maps {
    fn flows4(&self) -> &impl Memory<FlowKey4, Words = RawWords> {
        &NoFlows
    }

    fn flows6(&self) -> &impl Memory<FlowKey6, Words = RawWords> {
        &NoFlows
    }

    fn live(&self, _deployment: u16) -> Option<LiveWord> {
        Some(LiveWord(self.words.live.load(self.machine, self.cpu)))
    }

    fn settle(&self, _deployment: u16, _word: LiveWord, _judges: bool) -> LiveWord {
        unreachable!("no word is timed");
    }

    fn terms(&self, _deployment: u16, slot: usize) -> Option<SwitchTerms> {
        Some(bytemuck::cast(self.words.terms[slot].each_ref().map(|word| word.load(self.machine, self.cpu))))
    }

    /// As in the kernel: a plain store, then a compare-exchange, which orders everything.
    fn end_drain(&self, _deployment: u16, word: LiveWord, settled: LiveWord, ended_before: [u32; 2]) {
        let [floors, _] = &self.words.terms[word.terms_slot()];
        floors.store(self.machine, self.cpu, bytemuck::cast(ended_before));
        self.words.live.exchange(self.machine, self.cpu, word.0, settled.0);
    }

    fn order(&self) {
        self.machine.order();
    }

    fn deployment(&self, _deployment: u16) -> Option<&DeploymentRow> {
        None
    }

    fn vip_head(&self, _hash: u32) -> u32 {
        0
    }

    fn vip(&self, _row: u32) -> Option<*const Vip> {
        None
    }

    fn backend_head(&self, _hash: u32) -> u32 {
        0
    }

    fn backend(&self, _slot: u32) -> Option<*mut Backend> {
        None
    }

    fn service(&self, _key: &ServiceKey) -> Option<&ServiceRow> {
        None
    }

    fn maglev(&self, _entry: u32) -> Option<u32> {
        None
    }

    fn numbered_hop(&self, _number: u32) -> Option<RawWords> {
        None
    }

    fn hop_number(&self, _ifindex_and_dmac: u64, _mtu_and_smac: u64) -> u32 {
        0
    }

    fn is_tester(&self, _key: &TesterKey) -> bool {
        false
    }

    fn is_addressed_here(&self, _destination: u64) -> bool {
        true
    }

    fn route(&self, _call: &mut RouteCall) {}

    fn prepare_redirect(&self, _ifindex: u32) -> bool {
        true
    }

    fn route_call(&self) -> Option<*mut RouteCall> {
        None
    }

    fn scratch(&self) -> Option<*mut u64> {
        None
    }

    fn tick(&self) -> u32 {
        NOW
    }

    fn count(&self, _event: Event) {}

    fn count_flow(&self, _service: u16, _colour: u8) {}

    fn count_packet(&self, _service: u16, _colour: u8, _bytes: u64) {}
}
