//! A world for the engine that costs next to nothing itself, and the same each time.

use bg_common::{
    Backend, DeploymentRow, Event, Flow, FlowKey4, FlowKey6, LiveWord, NextHop, ServiceKey, ServiceRow, SwitchTerms,
    TesterKey, Traffic,
};
use bg_ebpf::tables::{FlowTable, Insert, RouteQuery, Tables};
use bg_tests::twin::Scenario;
use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    hash::{BuildHasherDefault, DefaultHasher, Hash},
    hint::black_box,
};

/// What the clock says, always: packets of an open flow come many a tick.
const NOW: u32 = 5_000;

type Entries<K> = RefCell<HashMap<K, Box<UnsafeCell<Flow>>, BuildHasherDefault<DefaultHasher>>>;

/// All maps: one service, its flows.
pub(crate) struct World {
    scenario: Scenario,
    backends: Vec<UnsafeCell<Backend>>,
    flows4: Entries<FlowKey4>,
    flows6: Entries<FlowKey6>,
    traffic: Cell<Traffic>,
    events: Cell<u64>,
}

impl World {
    /// Loads a scenario.
    pub(crate) fn load(scenario: Scenario) -> Self {
        let fresh = |backend: &Backend| {
            let next_hop = NextHop { learned: NOW, ..backend.next_hop };
            UnsafeCell::new(Backend { next_hop, ..*backend })
        };
        Self {
            backends: scenario.backends.iter().map(fresh).collect(),
            scenario,
            flows4: Entries::default(),
            flows6: Entries::default(),
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

fn find<K: Eq + Hash>(table: &Entries<K>, key: &K) -> Option<*mut Flow> {
    table.borrow().get(key).map(|entry| entry.get())
}

fn put<K: Eq + Hash + Copy>(table: &Entries<K>, key: &K, flow: &Flow, how: Insert) -> bool {
    let mut entries = table.borrow_mut();
    if how == Insert::IfAbsent && entries.contains_key(key) {
        return false;
    }
    entries.insert(*key, Box::new(UnsafeCell::new(*flow)));
    true
}

macro_rules! flow_table {
    ($key:ty, $table:ident) => {
        impl FlowTable<$key> for World {
            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<*mut Flow> {
                find(&self.$table, key)
            }

            #[inline(always)]
            fn store(&self, key: &$key, flow: &Flow, how: Insert) -> bool {
                put(&self.$table, key, flow, how)
            }
        }

        impl FlowTable<$key> for Twice<'_> {
            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<*mut Flow> {
                black_box(self.0.flow(black_box(key)));
                self.0.flow(key)
            }

            #[inline(always)]
            fn store(&self, key: &$key, flow: &Flow, how: Insert) -> bool {
                self.0.store(key, flow, how)
            }
        }
    };
}

flow_table!(FlowKey4, flows4);
flow_table!(FlowKey6, flows6);

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
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow> {
        self.scenario.services.iter().find(|(at, _)| at == key).map(|(_, row)| row)
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
    fn is_tester(&self, key: &TesterKey) -> bool {
        self.scenario.covers(key)
    }

    #[inline(always)]
    fn route(&self, _query: &RouteQuery) -> Option<NextHop> {
        Some(NextHop::pack(2, 1500, 0x0200_0000_0077, 0x0600_0000_0002, NOW))
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
    fn count_packet(&self, _service: u16, _colour: u8, bytes: u64, opened: bool) {
        let Traffic { packets, bytes: so_far, flows_opened, .. } = self.traffic.get();
        let flows_opened = flows_opened + u64::from(opened);
        self.traffic.set(Traffic { packets: packets + 1, bytes: so_far + bytes, flows_opened, ..Traffic::default() });
    }
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
    service(key: &ServiceKey) -> Option<&ServiceRow>;
    vip(row: u32) -> Option<&ServiceKey>;
    maglev(entry: u32) -> Option<u32>;
    backend(slot: u32) -> Option<*mut Backend>;
    is_tester(key: &TesterKey) -> bool;
    route(query: &RouteQuery) -> Option<NextHop>;
    tick() -> u32;
    count(event: Event);
    count_packet(service: u16, colour: u8, bytes: u64, opened: bool);
}
