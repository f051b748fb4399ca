//! The flow table's protocol: what CPUs and user space may do to it at once, under loom, and its rules one after the
//! other, against plain models of them.
//!
//! - `memory`: the memory that the table is in: loom's atomics, as a machine keeps them in order or does not.
//! - `cells`: the same for one thread.
//! - `races`: who reads, writes, notes and removes at the same time.
//! - `stopped`: a writer that is stopped half-way.
//! - `rules`: who gives way to whom; the table beside a map.
//! - `live_word`: the live word and its terms, which are read under the same rules.
//! - `spread`: how evenly five-tuples of all kinds are spread, and how seldom an open flow is pushed out.

mod cells;
mod live_word;
mod memory;
mod races;
mod rules;
mod spread;
mod stopped;

use bg_common::{Flow, FlowBackend, FlowState};
use bg_ebpf::flow_table::{Memory, Tuple};

/// A moment that is not the beginning of time.
const NOW: u32 = 1_000_000;

/// A tuple whose hash is what the test wants, with an address of two words, which may be torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    name: u32,
    ports: u32,
    udp: bool,
    hash: u32,
}

impl Name {
    /// One of TCP. Ports are the same for all: the tuples differ in their addresses alone.
    const fn tcp(name: u32, hash: u32) -> Self {
        Self { name, ports: 80, udp: false, hash }
    }

    /// A flow of it, each part of which tells whose it is and which.
    fn flow(&self, value: u32) -> Flow {
        let mark = self.name << 8 | value;
        Flow {
            ports: 0,
            state: FlowState(FlowState::ESTABLISHED).with_limit(1000),
            backend: FlowBackend(mark),
            generation: mark,
            last_seen: NOW,
            note: mark,
        }
    }

    /// Which flow of it this is. All parts must say the same.
    fn value_of(&self, flow: &Flow) -> u32 {
        let mark = flow.backend.0;
        assert_eq!((flow.generation, flow.note), (mark, mark), "torn: {flow:?}");
        assert_eq!(mark >> 8, self.name, "of another tuple: {flow:?}");
        assert!(flow.state.has(FlowState::LIVE | FlowState::ESTABLISHED), "torn: {flow:?}");
        mark & 0xff
    }
}

impl Tuple for Name {
    const ENTRY: usize = 5;
    const HEAD: usize = 2;

    fn address(&self, word: usize) -> u64 {
        u64::from(self.name) << 8 | word as u64
    }

    fn ports(&self) -> u32 {
        self.ports
    }

    fn protocol(&self) -> u32 {
        if self.udp { FlowState::UDP } else { 0 }
    }

    fn hash(&self, _memory: &impl Memory<Self>) -> u32 {
        self.hash
    }
}
