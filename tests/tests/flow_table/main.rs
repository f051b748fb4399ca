//! The flow table's protocol: what CPUs and user space may do to it at once, under loom, and its rules one after the
//! other, against plain models of them.
//!
//! - `memory`: the memory that the table is in: loom's atomics, as a machine keeps them in order or does not.
//! - `cells`: the same for one thread.
//! - `races`: who reads, writes, notes and removes at the same time.
//! - `given_up`: a claim that is given up, and what others do meanwhile.
//! - `stopped`: a writer that is stopped half-way.
//! - `rules`: which flow is evicted for a new one; the table beside a map.
//! - `live_word`: the live word and its terms, which are read under the same rules.
//! - `spread`: how evenly clients of all kinds are spread, and how seldom an open flow is evicted.
//! - `shared_ports`: the same for a client that uses one port for many services.

mod cells;
mod given_up;
mod live_word;
mod memory;
mod races;
mod rules;
mod shared_ports;
mod spread;
mod stopped;

use bg_common::{Flow, FlowBackend, FlowState};
use bg_ebpf::flow::{
    bucket::{WAYS, place},
    key::{Key, Match, VIP_SHIFT},
    memory::Memory,
    row::FlowRef,
    table::{Stored, find, insert, read, replace},
};

/// A moment that is not the beginning of time.
const NOW: u32 = 1_000_000;

/// Both ends take part.
const ASSURED: u32 = FlowState::CONFIRMED | FlowState::ANSWERED;

/// A key whose hash is what the test wants, of two words, which may be torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    name: u32,
    port: u16,
    vip: u16,
    hash: u32,
}

impl Name {
    /// Ports and virtual addresses are the same for all: the keys differ in their names alone.
    const fn new(name: u32, hash: u32) -> Self {
        Self { name, port: 80, vip: 3, hash }
    }

    /// A flow of it, each part of which tells whose it is and which.
    fn flow(&self, value: u32) -> Flow {
        let mark = self.name << 8 | value;
        Flow {
            state: FlowState(ASSURED).with_limit(1000),
            note: mark,
            backend: FlowBackend(mark),
            generation: mark,
            last_seen: NOW,
            ..Flow::default()
        }
    }

    /// Which flow of it this is. All parts must say the same.
    fn value_of(&self, flow: &Flow) -> u32 {
        let mark = flow.backend.0;
        assert_eq!((flow.generation, flow.note), (mark, mark), "torn: {flow:?}");
        assert_eq!(mark >> 8, self.name, "of another client: {flow:?}");
        assert!(flow.state.has(FlowState::LIVE | ASSURED), "torn: {flow:?}");
        mark & 0xff
    }
}

impl Key for Name {
    const ROW: usize = 5;
    const HEAD: usize = 2;

    fn word(&self, index: usize) -> u64 {
        let name = u64::from(self.name) << 8 | index as u64;
        let last = u64::from(self.port) << 32 | u64::from(self.vip) << VIP_SHIFT;
        name | if index == Self::HEAD - 1 { last } else { 0 }
    }

    fn hash(&self, _salt: u16, _memory: &impl Memory<Self>) -> u32 {
        self.hash
    }
}

/// What a client's packet finds.
fn find_whole<M: Memory<Name>>(memory: &M, key: &Name) -> Option<FlowRef<M::Words>> {
    find(memory, key, key.hash, Match::Whole)
}

/// What a search of all places finds, which asks for the client's end alone.
fn find_slowly<M: Memory<Name>>(memory: &M, key: &Name) -> Option<FlowRef<M::Words>> {
    (0..2 * WAYS).find_map(|nth| read(memory, place::<Name, _>(memory, key.hash, nth)?, key, Match::Client))
}

/// Stores a flow as the engine does: in the row of the one that was found, if it `replaces` one.
fn store<M: Memory<Name>>(memory: &M, key: &Name, flow: &Flow, replaces: bool) -> Stored {
    match find_whole(memory, key).filter(|_| replaces) {
        Some(there) => replace(memory, there, flow),
        None => insert(memory, key, key.hash, flow, NOW),
    }
}
