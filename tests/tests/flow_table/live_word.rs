//! The live word and its terms: a packet that has read the word finds the terms that were written before it.

use crate::{
    NOW,
    memory::{MACHINES, Machine},
    races::model,
};
use bg_common::{
    Backend, Colour, DeploymentRow, Event, Flow, FlowKey4, FlowKey6, LiveFlags, LiveWord, NextHop, ServiceKey,
    ServiceRow, SwitchTerms, TesterKey,
};
use bg_ebpf::{
    flow_ref::{BackendRef, FlowRef, RawWords},
    flow_table::Stored,
    lifetime,
    tables::{FlowTable, RouteQuery, Tables},
};
use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
    thread,
};

/// `live` and `terms`, as a machine's memory shows them.
struct Maps {
    machine: Machine,
    live: AtomicU64,
    terms: [[AtomicU64; 2]; 2],
}

impl Maps {
    fn load(&self, word: &AtomicU64) -> u64 {
        word.load(if self.machine == Machine::Strong { Acquire } else { Relaxed })
    }

    /// The switch, as user space makes it (`switch.rs`).
    fn switch(&self, old: LiveWord, new: LiveWord, terms: SwitchTerms) {
        let words: [u64; 2] = bytemuck::cast(terms);
        for (word, value) in self.terms[new.terms_slot()].iter().zip(words) {
            word.store(value, Release);
        }
        self.live.compare_exchange(old.0, new.0, SeqCst, SeqCst).expect("nobody else switches");
    }
}

fn a_cut_is_seen_whole(machine: Machine) {
    let before = LiveWord::new(1, LiveFlags::NONE, 0, 0);
    let after = LiveWord::new(2, LiveFlags::CUT, 0, Colour::Green.full_share());
    let terms = SwitchTerms { ended_before: [2, 0], ..SwitchTerms::default() };
    let live = AtomicU64::new(before.0);
    let maps =
        Arc::new(Maps { machine, live, terms: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))) });
    let switching = Arc::clone(&maps);
    let switching = thread::spawn(move || switching.switch(before, after, terms));

    let mut row = Backend::default();
    let flow = FlowRef::new(RawWords::NONE, Flow { generation: 1, ..Flow::default() });
    let word = maps.live(0).expect("a word");
    let has_ended = lifetime::ended_by_switch(&flow, BackendRef(&mut row), word, &*maps, NOW);
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

macro_rules! no_flows {
    ($($key:ty),*) => {
        $(impl FlowTable<$key> for Maps {
            fn flow(&self, _key: &$key) -> Option<FlowRef> {
                None
            }

            fn flow_slowly(&self, _key: &$key) -> Option<FlowRef> {
                None
            }

            fn store(&self, _key: &$key, _flow: &Flow, _replaces: bool, _now: u32) -> Stored {
                Stored::No
            }
        })*
    };
}

no_flows!(FlowKey4, FlowKey6);

impl Tables for Maps {
    fn live(&self, _deployment: u16) -> Option<LiveWord> {
        Some(LiveWord(self.load(&self.live)))
    }

    fn order(&self) {
        match self.machine {
            Machine::Weak | Machine::LooseExchange => fence(AcqRel),
            Machine::Strong | Machine::Mistaken => {}
        }
    }

    fn terms(&self, _deployment: u16, slot: usize) -> Option<SwitchTerms> {
        let [low, high] = &self.terms[slot];
        Some(bytemuck::cast([self.load(low), self.load(high)]))
    }

    fn deployment(&self, _deployment: u16) -> Option<&DeploymentRow> {
        None
    }

    fn may_be_service(&self, _hash: u32) -> bool {
        false
    }

    fn service(&self, _key: &ServiceKey) -> Option<&ServiceRow> {
        None
    }

    fn vip(&self, _row: u32) -> Option<&ServiceKey> {
        None
    }

    fn maglev(&self, _entry: u32) -> Option<u32> {
        None
    }

    fn backend(&self, _slot: u32) -> Option<*mut Backend> {
        None
    }

    fn numbered_hop(&self, _number: u32) -> Option<RawWords> {
        None
    }

    fn is_tester(&self, _key: &TesterKey) -> bool {
        false
    }

    fn is_addressed_here(&self, _destination: u64) -> bool {
        true
    }

    fn route(&self, _query: &mut RouteQuery, _hop: &mut NextHop) {}

    fn prepare_redirect(&self, _ifindex: u32) -> bool {
        true
    }

    fn desk(&self) -> Option<*mut u64> {
        None
    }

    fn tick(&self) -> u32 {
        NOW
    }

    fn count(&self, _event: Event) {}

    fn count_flow(&self, _service: u16, _colour: u8) {}

    fn count_packet(&self, _service: u16, _colour: u8, _bytes: u64) {}
}
