//! A world for the engine that costs next to nothing itself, and the same each time. The flow table is the real one,
//! in plain memory, with a hash that is not keyed anew.

use bg_common::{
    Backend, DeploymentRow, Event, Flow, FlowHash, FlowKey4, FlowKey6, LiveWord, MAX_NEXT_HOPS, NextHop, ServiceKey,
    ServiceRow, SwitchTerms, TesterKey, Traffic,
};
use bg_ebpf::{
    choice::filter_hash,
    desk,
    flow_ref::{FlowRef, RawWords},
    flow_table::{self, Memory, Stored, Tuple, WAYS},
    headers::{V4, V6},
    tables::{Aside, FlowTable, RouteQuery, Tables},
};
use bg_tests::twin::Scenario;
use std::{
    cell::{Cell, UnsafeCell},
    hint::black_box,
    sync::atomic::{Ordering::SeqCst, compiler_fence},
};

/// What the clock says, always: packets of an open flow come many a tick. So near the beginning that no next hop is to be
/// left to tc yet.
const NOW: u32 = 3;

/// Buckets of a flow table: half of their entries are taken when [`crate::PACKETS`] flows are open both ways.
const BUCKETS: u32 = 4 * crate::PACKETS as u32 / WAYS;

/// Words that the engine changes, of all tables together.
type Words = Box<[UnsafeCell<u64>]>;

fn words(count: usize) -> Words {
    (0..count).map(|_| UnsafeCell::new(0)).collect()
}

/// All maps: one service, its flows.
pub(crate) struct World {
    scenario: Scenario,
    /// What [`Tables::may_be_service`] says yes to.
    vip_hash: u32,
    backends: Vec<UnsafeCell<Backend>>,
    flows4: Words,
    flows6: Words,
    next_hops: Words,
    desk: Words,
    traffic: Cell<Traffic>,
    events: Cell<u64>,
}

impl World {
    /// Loads a scenario of one service.
    pub(crate) fn load(scenario: Scenario) -> Self {
        let fresh = |backend: &Backend| {
            let next_hop = NextHop { learned: NOW, asked: NOW - 2, ..backend.next_hop };
            UnsafeCell::new(Backend { next_hop, ..*backend })
        };
        let entries = (BUCKETS * WAYS) as usize;
        Self {
            vip_hash: filter_hash(&scenario.services[0].0),
            backends: scenario.backends.iter().map(fresh).collect(),
            scenario,
            flows4: words(entries * FlowKey4::ENTRY),
            flows6: words(entries * FlowKey6::ENTRY),
            next_hops: words(3 * MAX_NEXT_HOPS as usize),
            desk: words(desk::WORDS),
            traffic: Cell::default(),
            events: Cell::default(),
        }
    }

    /// Flows opened.
    pub(crate) fn opened(&self) -> u64 {
        self.traffic.get().flows_opened
    }

    /// Events counted, of all kinds.
    pub(crate) fn events(&self) -> u64 {
        self.events.get()
    }
}

/// The memory of a flow table.
struct Buckets<'a>(&'a Words);

impl<K: Tuple> Memory<K> for Buckets<'_> {
    type Words = RawWords;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<RawWords> {
        let first = self.0.get(index as usize * WAYS as usize * K::ENTRY)?;
        // SAFETY: a bucket of words begins here, which are accessed by the table only, on one thread.
        Some(unsafe { RawWords::new(first.get()) })
    }

    #[inline(always)]
    fn mask(&self) -> u32 {
        black_box(BUCKETS - 1)
    }

    #[inline(always)]
    fn hash_key(&self, index: usize) -> u64 {
        // Loaded each time, as in the kernel, where it is drawn by the loader.
        // SAFETY: a constant's address.
        unsafe { (&raw const HASH.0[index]).read_volatile() }
    }

    #[inline(always)]
    fn order(&self) {
        // As on x86-64, which keeps loads and stores in order by itself.
        compiler_fence(SeqCst);
    }
}

static HASH: FlowHash = FlowHash::PUBLIC;

macro_rules! flow_table {
    ($key:ty, $table:ident, $find_slowly:ident, $store:ident) => {
        // As in the kernel, what is seldom needed is a call.
        #[inline(never)]
        fn $find_slowly(memory: &Buckets<'_>, key: &$key) -> Option<FlowRef> {
            flow_table::find_slowly(memory, key)
        }

        #[inline(never)]
        fn $store(memory: &Buckets<'_>, key: &$key, flow: &Flow, replaces: bool, now: u32) -> Stored {
            flow_table::store(memory, key, flow, replaces, now)
        }

        impl FlowTable<$key> for World {
            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<FlowRef> {
                flow_table::find(&Buckets(&self.$table), key)
            }

            #[inline(always)]
            fn flow_slowly(&self, key: &$key) -> Option<FlowRef> {
                $find_slowly(&Buckets(&self.$table), key)
            }

            #[inline(always)]
            fn store(&self, key: &$key, flow: &Flow, replaces: bool, now: u32) -> Stored {
                $store(&Buckets(&self.$table), key, flow, replaces, now)
            }
        }

        impl FlowTable<$key> for Twice<'_> {
            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<FlowRef> {
                black_box(self.0.flow(black_box(key)));
                self.0.flow(key)
            }

            #[inline(always)]
            fn flow_slowly(&self, key: &$key) -> Option<FlowRef> {
                self.0.flow_slowly(key)
            }

            #[inline(always)]
            fn store(&self, key: &$key, flow: &Flow, replaces: bool, now: u32) -> Stored {
                self.0.store(key, flow, replaces, now)
            }
        }
    };
}

flow_table!(FlowKey4, flows4, find_slowly4, store4);
flow_table!(FlowKey6, flows6, find_slowly6, store6);

impl Aside<V4> for World {}
impl Aside<V6> for World {}
impl Aside<V4> for Twice<'_> {}
impl Aside<V6> for Twice<'_> {}

impl Tables for World {
    #[inline(always)]
    fn live(&self, deployment: u16) -> Option<LiveWord> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(_, word, _)| *word)
    }

    #[inline(always)]
    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(_, _, terms)| terms[slot])
    }

    #[inline(always)]
    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(row, ..)| row)
    }

    #[inline(always)]
    fn may_be_service(&self, hash: u32) -> bool {
        hash == self.vip_hash
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow> {
        self.scenario.services.iter().find(|(at, _)| same(at, key)).map(|(_, row)| row)
    }

    #[inline(always)]
    fn vip(&self, row: u32) -> Option<&ServiceKey> {
        self.scenario.vips.iter().find(|(at, _)| *at == row).map(|(_, key)| key)
    }

    #[inline(always)]
    fn maglev(&self, entry: u32) -> Option<u32> {
        self.scenario.maglev.get(entry as usize).copied()
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<*mut Backend> {
        self.backends.get(slot as usize).map(UnsafeCell::get)
    }

    #[inline(always)]
    fn numbered_hop(&self, number: u32) -> Option<RawWords> {
        let first = self.next_hops.get(3 * number as usize)?;
        // SAFETY: three words begin here, which are accessed in no other way, on one thread.
        Some(unsafe { RawWords::new(first.get()) })
    }

    #[inline(always)]
    fn is_tester(&self, key: &TesterKey) -> bool {
        self.scenario.covers(key)
    }

    #[inline(always)]
    fn is_addressed_here(&self, destination: u64) -> bool {
        destination == 0
    }

    #[inline(always)]
    fn prepare_redirect(&self, ifindex: u32) -> bool {
        ifindex == 2 || ifindex == 3
    }

    #[inline(always)]
    fn route(&self, _query: &mut RouteQuery, hop: &mut NextHop) {
        *hop = NextHop::pack(2, 1500, 0x0200_0000_0077, 0x0600_0000_0002, NOW);
    }

    #[inline(always)]
    fn desk(&self) -> Option<*mut u64> {
        self.desk.first().map(UnsafeCell::get)
    }

    #[inline(always)]
    fn tick(&self) -> u32 {
        NOW
    }

    #[inline(always)]
    fn count(&self, _event: Event) {
        self.events.set(self.events.get() + 1);
    }

    #[inline(always)]
    fn count_flow(&self, _service: u16, _colour: u8) {
        let traffic = self.traffic.get();
        self.traffic.set(Traffic { flows_opened: traffic.flows_opened + 1, ..traffic });
    }

    #[inline(always)]
    fn count_packet(&self, _service: u16, _colour: u8, bytes: u64) {
        let Traffic { packets, bytes: so_far, flows_opened } = self.traffic.get();
        self.traffic.set(Traffic { packets: packets + 1, bytes: so_far + bytes, flows_opened });
    }
}

/// Word by word: of `==` the compiler makes a call of the C library, which differs from system to system.
#[inline(always)]
fn same(one: &ServiceKey, other: &ServiceKey) -> bool {
    let words = |key: &ServiceKey| -> [u64; 2] {
        [0, 2].map(|at| u64::from(key.addr.0[at]) | u64::from(key.addr.0[at + 1]) << 32)
    };
    let rest = |key: &ServiceKey| u32::from(key.port.0) | u32::from(key.protocol) << 16 | u32::from(key.family) << 24;
    let ([a, b], [c, d]) = (words(one), words(other));
    (a ^ c) | (b ^ d) | u64::from(rest(one) ^ rest(other)) == 0
}

/// A world whose flows are looked up twice: what a careless change of the engine would do.
pub(crate) struct Twice<'a>(pub(crate) &'a World);

macro_rules! passed_on {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        impl Tables for Twice<'_> {
            $(#[inline(always)]
            fn $name(&self, $($argument: $type),*) $(-> $result)? {
                self.0.$name($($argument),*)
            })*
        }
    };
}

passed_on! {
    live(deployment: u16) -> Option<LiveWord>;
    terms(deployment: u16, slot: usize) -> Option<SwitchTerms>;
    deployment(deployment: u16) -> Option<&DeploymentRow>;
    may_be_service(hash: u32) -> bool;
    service(key: &ServiceKey) -> Option<&ServiceRow>;
    vip(row: u32) -> Option<&ServiceKey>;
    maglev(entry: u32) -> Option<u32>;
    backend(slot: u32) -> Option<*mut Backend>;
    numbered_hop(number: u32) -> Option<RawWords>;
    is_tester(key: &TesterKey) -> bool;
    is_addressed_here(destination: u64) -> bool;
    route(query: &mut RouteQuery, hop: &mut NextHop);
    prepare_redirect(ifindex: u32) -> bool;
    desk() -> Option<*mut u64>;
    tick() -> u32;
    count(event: Event);
    count_flow(service: u16, colour: u8);
    count_packet(service: u16, colour: u8, bytes: u64);
}
