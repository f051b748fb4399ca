//! What the engine asks of the world around it: maps, clock and routes.
//!
//! In the kernel this is BPF maps and helpers (`kernel/`), on the host plain collections. The trait is
//! monomorphised, so the seam costs nothing.

use crate::{
    desk::Desk,
    flow_ref::{FlowRef, RawWords},
    flow_table::Stored,
    forward,
    headers::IpVersion,
    reply,
};
use bg_common::{
    Backend, DeploymentRow, Event, Family, Flow, FlowKey4, FlowKey6, LiveWord, NextHop, ServiceKey, ServiceRow,
    SwitchTerms, TesterKey,
};

/// A route look-up's question.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouteQuery {
    /// Source address of the packet.
    pub src: bg_common::Addr,
    /// Destination address of the packet. The answer puts the next hop's address in its place.
    pub dst: bg_common::Addr,
    /// Family of the destination. An IPv4 packet may have a next hop that is told by an IPv6 address.
    pub family: Family,
}

/// A table of flows, for one kind of key.
///
/// Entries are shared with other CPUs and with user space: what is found is a copy, and where to note changes.
pub trait FlowTable<K> {
    /// The entry under `key`.
    fn flow(&self, key: &K) -> Option<FlowRef>;
    /// The same, for those who are in no hurry.
    fn flow_slowly(&self, key: &K) -> Option<FlowRef>;
    /// Stores an entry under `key`: in place of the one that is there, if it `replaces` one.
    fn store(&self, key: &K, flow: &Flow, replaces: bool, now: u32) -> Stored;
}

/// What is done aside: seldom, and in calls of their own, one after the other and not one inside another, so that each
/// has what a program has left of its stack to itself. The work is on the desk, and a number comes back: in the
/// kernel each is a global function, which the verifier looks at once and not at every call.
pub trait Aside<V: IpVersion>: Tables + FlowTable<V::Key> + Sized {
    /// [`forward::stay`].
    fn stay(&self, desk: &mut Desk<V>) -> u32 {
        forward::stay(desk, self) as u32
    }
    /// [`forward::choose_colour`].
    fn choose_colour(&self, desk: &mut Desk<V>) -> u32 {
        forward::choose_colour(desk, self) as u32
    }
    /// [`forward::choose_backend`].
    fn choose_backend(&self, desk: &mut Desk<V>) -> u32 {
        forward::choose_backend(desk, self)
    }
    /// [`forward::reply_place`].
    fn reply_place(&self, desk: &mut Desk<V>) -> u32 {
        forward::reply_place(desk, self) as u32
    }
    /// [`reply::answer`].
    fn answer(&self, desk: &mut Desk<V>) -> u32 {
        reply::answer(desk, self) as u32
    }
}

/// Everything else.
pub trait Tables: FlowTable<FlowKey4> + FlowTable<FlowKey6> {
    /// The live word of a deployment. Called once per packet: see `choice.rs`. Its terms are read by
    /// [`crate::lifetime::terms`].
    fn live(&self, deployment: u16) -> Option<LiveWord>;
    /// The terms of the generation that uses `slot`.
    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms>;
    /// Loads before it come before loads after it. Nothing, where one thread runs.
    fn order(&self) {}
    /// Settings of a deployment.
    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow>;
    /// Whether there may be a service at a virtual address of this hash; see [`crate::choice::filter_hash`].
    fn may_be_service(&self, hash: u32) -> bool;
    /// The service at a virtual address.
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow>;
    /// Row `2 * service + role` of the virtual addresses.
    fn vip(&self, row: u32) -> Option<&ServiceKey>;
    /// Entry of the flat Maglev array: a backend's slot.
    fn maglev(&self, entry: u32) -> Option<u32>;
    /// A backend's row. Shared with user space, and with other CPUs that refresh its next hop.
    fn backend(&self, slot: u32) -> Option<*mut Backend>;
    /// A row of the numbered next hops, as three words.
    fn numbered_hop(&self, number: u32) -> Option<RawWords>;
    /// Whether a tester prefix of the deployment covers the address.
    fn is_tester(&self, key: &TesterKey) -> bool;
    /// Whether a frame to this MAC address, met on the way in, is one that the host's stack would take.
    fn is_addressed_here(&self, destination: u64) -> bool;
    /// Asks the kernel's routes; see [`RouteQuery`] and [`NextHop::is_resolved`]. A hop that is left as it was: the host's
    /// stack has to find the way.
    fn route(&self, query: &mut RouteQuery, hop: &mut NextHop);
    /// Prepares that the frame leaves by an interface, if that takes redirected frames at this hook.
    fn prepare_redirect(&self, ifindex: u32) -> bool;
    /// Memory for the packet that this CPU is at, of [`crate::desk::WORDS`] words.
    fn desk(&self) -> Option<*mut u64>;
    /// Payload octets of each segment that the frame will be cut into, if it is a GSO frame; else zero.
    fn gso_size(&self) -> u32 {
        0
    }
    /// Whether the frame has a VLAN tag that is not among its bytes.
    fn is_tagged(&self) -> bool {
        false
    }
    /// Whether this host itself has sent the frame, which came by its loopback interface.
    fn is_own(&self) -> bool {
        false
    }
    /// The coarse clock, see [`bg_common::TICK_SHIFT`].
    fn tick(&self) -> u32;
    /// Counts an event.
    fn count(&self, event: Event);
    /// Counts a flow of a service and colour that a packet has opened.
    fn count_flow(&self, service: u16, colour: u8);
    /// Counts a packet of a service and colour.
    fn count_packet(&self, service: u16, colour: u8, bytes: u64);
}
