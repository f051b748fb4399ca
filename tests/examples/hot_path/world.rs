//! A world for the engine that costs next to nothing itself, and the same each time. The flow table is the real one,
//! in plain memory, with a hash that is not keyed anew.

use bg_common::{
    Addr, Backend, DeploymentRow, Event, Family, FlowKey4, FlowKey6, LiveWord, MAX_NEXT_HOPS, NextHop, ServiceKey,
    ServiceRow, SwitchTerms, TesterKey, Traffic, Vip,
};
use bg_ebpf::{
    egress::next_hop::number_of,
    flow::{
        bucket::{WAYS, row},
        key::Key,
        memory::{Memory, RawWords, Words as _},
    },
    path::slow::{Answering, Opening, Refreshing, Search, SlowPath, run},
    world::{self, Flows, RouteCall, SCRATCH_WORDS},
};
use bg_tests::twin::{FlowMemory, Indexed, Scenario};
use std::{
    cell::{Cell, UnsafeCell},
    hint::black_box,
};

/// What the clock says, always: packets of an open flow come many a tick. So near the beginning that no next hop is to be
/// left to tc yet.
const NOW: u32 = 3;

/// Rows of a flow table: half of them are taken when [`crate::PACKETS`] flows are open.
const ROWS: u32 = 2 * crate::PACKETS as u32;

/// Heads of an index: as in an instance that has room for much more than there is.
const HEADS: u32 = 1024;

/// Words that the engine changes, of all rows together.
type Words = Box<[UnsafeCell<u64>]>;

fn words(count: usize) -> Words {
    (0..count).map(|_| UnsafeCell::new(0)).collect()
}

/// All maps: one service, its flows.
pub(crate) struct World {
    scenario: Scenario,
    vip_heads: Vec<u32>,
    vips: Vec<Vip>,
    backend_heads: Vec<u32>,
    backends: Vec<UnsafeCell<Backend>>,
    flows4: FlowMemory<FlowKey4>,
    flows6: FlowMemory<FlowKey6>,
    next_hops: Words,
    scratch: Words,
    route_call: UnsafeCell<RouteCall>,
    traffic: Cell<Traffic>,
    events: Cell<u64>,
}

impl World {
    /// Loads a scenario of one service.
    pub(crate) fn load(scenario: Scenario) -> Self {
        let Indexed { vip_heads, vips, backend_heads, backends } = scenario.indexed(HEADS);
        let fresh = |backend: Backend| {
            let next_hop = NextHop { learned: NOW, asked: NOW - 2, ..backend.next_hop };
            UnsafeCell::new(Backend { next_hop, ..backend })
        };
        let no_route = RouteCall { src: Addr([0; 4]), dst: Addr([0; 4]), family: Family::V4, hop: NextHop::NONE };
        Self {
            scenario,
            vip_heads,
            vips,
            backend_heads,
            backends: backends.into_iter().map(fresh).collect(),
            flows4: FlowMemory::new(ROWS),
            flows6: FlowMemory::new(ROWS),
            next_hops: words(3 * MAX_NEXT_HOPS as usize),
            scratch: words(SCRATCH_WORDS),
            route_call: UnsafeCell::new(no_route),
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

/// As in the kernel, a call of the slow path is a call.
macro_rules! slow_path {
    ($world:ty) => {
        impl<V: Flows> SlowPath<V> for $world {
            #[inline(never)]
            fn refresh(&self, row: RawWords, call: &mut Refreshing) -> u32 {
                run::refresh(row, call, self) as u32
            }

            #[inline(never)]
            fn answer(&self, row: RawWords, call: &mut Answering) -> u32 {
                run::answer(row, call, self) as u32
            }

            #[inline(never)]
            fn choose_colour(&self, call: &mut Opening) -> u32 {
                run::choose_colour(call, self) as u32
            }

            #[inline(never)]
            fn choose_backend(&self, call: &mut Opening) -> u32 {
                run::choose_backend::<V>(call, self).to_u32()
            }

            #[inline(never)]
            fn insert(&self, call: &mut Opening) -> u32 {
                run::insert::<V, _>(call, self) as u32
            }

            #[inline(never)]
            fn replace(&self, row: RawWords, call: &mut Opening) -> u32 {
                run::replace(row, call, self) as u32
            }

            #[inline(never)]
            fn search(&self, search: &mut Search) -> u32 {
                run::search::<V>(search, self)
            }

            #[inline(never)]
            fn search_step(&self, search: &mut Search) -> u32 {
                run::search_step::<V, _>(search, self).to_u32()
            }
        }
    };
}

slow_path!(World);
slow_path!(Twice<'_>);

impl world::World for World {
    #[inline(always)]
    fn flows4(&self) -> &impl Memory<FlowKey4, Words = RawWords> {
        &self.flows4
    }

    #[inline(always)]
    fn flows6(&self) -> &impl Memory<FlowKey6, Words = RawWords> {
        &self.flows6
    }

    #[inline(always)]
    fn live(&self, deployment: u16) -> Option<LiveWord> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(_, word, _)| *word)
    }

    #[inline(always)]
    fn settle(&self, _deployment: u16, _word: LiveWord, _judges: bool) -> LiveWord {
        unreachable!("no word is timed");
    }

    #[inline(always)]
    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(_, _, terms)| terms[slot])
    }

    #[inline(always)]
    fn end_drain(&self, _deployment: u16, _word: LiveWord, _settled: LiveWord, _ended_before: [u32; 2]) {
        unreachable!("no path drains");
    }

    #[inline(always)]
    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow> {
        self.scenario.deployments.get(usize::from(deployment)).map(|(row, ..)| row)
    }

    #[inline(always)]
    fn vip_head(&self, hash: u32) -> u32 {
        self.vip_heads[(hash & (HEADS - 1)) as usize]
    }

    #[inline(always)]
    fn vip(&self, row: u32) -> Option<*const Vip> {
        self.vips.get(row as usize).map(|vip| vip as *const Vip)
    }

    #[inline(always)]
    fn backend_head(&self, hash: u32) -> u32 {
        self.backend_heads[(hash & (HEADS - 1)) as usize]
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<*mut Backend> {
        self.backends.get(slot as usize).map(UnsafeCell::get)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow> {
        self.scenario.services.iter().find(|(at, _)| same(at, key)).map(|(_, row)| row)
    }

    #[inline(always)]
    fn maglev(&self, entry: u32) -> Option<u32> {
        self.scenario.maglev.get(entry as usize).copied()
    }

    #[inline(always)]
    fn numbered_hop(&self, number: u32) -> Option<RawWords> {
        let first = self.next_hops.get(3 * number as usize)?;
        // SAFETY: three words begin here, which are accessed in no other way, on one thread.
        Some(unsafe { RawWords::new(first.get()) })
    }

    #[inline(never)]
    fn hop_number(&self, ifindex_and_dmac: u64, mtu_and_smac: u64) -> u32 {
        number_of(ifindex_and_dmac, mtu_and_smac, self)
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
    fn route(&self, call: &mut RouteCall) {
        call.hop = NextHop::pack(2, 1500, 0x0200_0000_0077, 0x0600_0000_0002, NOW);
    }

    #[inline(always)]
    fn prepare_redirect(&self, ifindex: u32) -> bool {
        ifindex == 2 || ifindex == 3
    }

    #[inline(always)]
    fn route_call(&self) -> Option<*mut RouteCall> {
        Some(self.route_call.get())
    }

    #[inline(always)]
    fn scratch(&self) -> Option<*mut u64> {
        self.scratch.first().map(UnsafeCell::get)
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
        let Traffic { packets, bytes: so_far, .. } = self.traffic.get();
        self.traffic.set(Traffic { packets: packets + 1, bytes: so_far + bytes, ..self.traffic.get() });
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

/// A world where everything is looked up twice: what a careless change of the engine would do.
pub(crate) struct Twice<'a> {
    world: &'a World,
    flows4: Again<'a, FlowKey4>,
    flows6: Again<'a, FlowKey6>,
}

impl<'a> Twice<'a> {
    /// Of a world.
    pub(crate) fn new(world: &'a World) -> Self {
        Self { world, flows4: Again(&world.flows4), flows6: Again(&world.flows6) }
    }
}

/// A flow table, each bucket of which is read once more.
struct Again<'a, K>(&'a FlowMemory<K>);

impl<K: Key> Memory<K> for Again<'_, K> {
    type Words = RawWords;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<RawWords> {
        let bucket = self.0.bucket(index)?;
        for turn in 0..WAYS {
            let row = row::<K, _>(bucket, black_box(index), turn);
            if black_box(row.load(K::HEAD - 1)) == u64::MAX {
                return None;
            }
        }
        Some(bucket)
    }

    #[inline(always)]
    fn mask(&self) -> u32 {
        self.0.mask()
    }

    #[inline(always)]
    fn hash_key(&self, index: usize) -> u64 {
        self.0.hash_key(index)
    }

    #[inline(always)]
    fn order(&self) {
        Memory::<K>::order(self.0);
    }
}

macro_rules! passed_on {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        impl world::World for Twice<'_> {
            #[inline(always)]
            fn flows4(&self) -> &impl Memory<FlowKey4, Words = RawWords> {
                &self.flows4
            }

            #[inline(always)]
            fn flows6(&self) -> &impl Memory<FlowKey6, Words = RawWords> {
                &self.flows6
            }

            #[inline(always)]
            fn vip_head(&self, hash: u32) -> u32 {
                black_box(self.world.vip_head(black_box(hash)));
                self.world.vip_head(hash)
            }

            #[inline(always)]
            fn backend_head(&self, hash: u32) -> u32 {
                black_box(self.world.backend_head(black_box(hash)));
                self.world.backend_head(hash)
            }

            $(#[inline(always)]
            fn $name(&self, $($argument: $type),*) $(-> $result)? {
                self.world.$name($($argument),*)
            })*
        }
    };
}

passed_on! {
    live(deployment: u16) -> Option<LiveWord>;
    settle(deployment: u16, word: LiveWord, judges: bool) -> LiveWord;
    hop_number(ifindex_and_dmac: u64, mtu_and_smac: u64) -> u32;
    terms(deployment: u16, slot: usize) -> Option<SwitchTerms>;
    end_drain(deployment: u16, word: LiveWord, settled: LiveWord, ended_before: [u32; 2]);
    deployment(deployment: u16) -> Option<&DeploymentRow>;
    vip(row: u32) -> Option<*const Vip>;
    backend(slot: u32) -> Option<*mut Backend>;
    service(key: &ServiceKey) -> Option<&ServiceRow>;
    maglev(entry: u32) -> Option<u32>;
    numbered_hop(number: u32) -> Option<RawWords>;
    is_tester(key: &TesterKey) -> bool;
    is_addressed_here(destination: u64) -> bool;
    route(call: &mut RouteCall);
    prepare_redirect(ifindex: u32) -> bool;
    route_call() -> Option<*mut RouteCall>;
    scratch() -> Option<*mut u64>;
    tick() -> u32;
    count(event: Event);
    count_flow(service: u16, colour: u8);
    count_packet(service: u16, colour: u8, bytes: u64);
}
