//! What the engine asks of the world around it: maps, clock and routes.
//!
//! In the kernel this is BPF maps and helpers (`kernel/`), on the host plain collections. The trait is
//! monomorphised, so the seam costs nothing.

use bg_common::{
    Backend, DeploymentRow, Event, Family, Flow, FlowKey4, FlowKey6, LiveWord, NextHop, ServiceKey, ServiceRow,
    SwitchTerms, TesterKey,
};

/// How a flow entry is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// Only if there is none under this key.
    IfAbsent,
    /// In place of whatever there is.
    Replace,
}

/// A route look-up's question.
#[derive(Clone, Copy)]
pub struct RouteQuery {
    /// Family of both addresses.
    pub family: Family,
    /// Source address of the packet.
    pub src: bg_common::Addr,
    /// Destination address of the packet.
    pub dst: bg_common::Addr,
}

/// A table of flows, for one kind of key.
///
/// Entries are shared with other CPUs and with user space, so they are handed out as pointers and
/// accessed through [`crate::flow_ref::FlowRef`] only.
pub trait FlowTable<K> {
    /// The entry under `key`.
    fn flow(&self, key: &K) -> Option<*mut Flow>;
    /// Stores an entry; false if the table would not take it.
    fn store(&self, key: &K, flow: &Flow, how: Insert) -> bool;
}

/// Everything else.
pub trait Tables: FlowTable<FlowKey4> + FlowTable<FlowKey6> {
    /// The live word of a deployment. Called once per packet: see `choice.rs`.
    fn live(&self, deployment: u16) -> Option<LiveWord>;
    /// The terms of the generation that uses `slot`.
    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms>;
    /// Settings of a deployment.
    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow>;
    /// The service at a virtual address.
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow>;
    /// Row `2 * service + role` of the virtual addresses.
    fn vip(&self, row: u32) -> Option<&ServiceKey>;
    /// Entry of the flat Maglev array: a backend's slot.
    fn maglev(&self, entry: u32) -> Option<u32>;
    /// A backend's row. Shared with user space, and with other CPUs that refresh its next hop.
    fn backend(&self, slot: u32) -> Option<*mut Backend>;
    /// Whether a tester prefix of the deployment covers the address.
    fn is_tester(&self, key: &TesterKey) -> bool;
    /// Asks the kernel's routes. `None`: the host's stack has to find the way.
    fn route(&self, query: &RouteQuery) -> Option<NextHop>;
    /// The coarse clock, see [`bg_common::TICK_SHIFT`].
    fn tick(&self) -> u32;
    /// Counts an event.
    fn count(&self, event: Event);
    /// Counts a packet of a service and colour.
    fn count_packet(&self, service: u16, colour: u8, bytes: u64, opened: bool);
}
