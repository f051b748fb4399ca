//! When a flow is over: its connection ended, it went silent, its backend is gone, or a switch ended it.

use crate::{
    flow_ref::{BackendRef, FlowRef},
    headers::{Headers, IpVersion},
    tables::Tables,
    unlikely,
};
use bg_common::{Colour, DeploymentRow, FlowState, LiveFlags, LiveWord, Protocol};

/// Whether a tick is reached. Zero never is.
#[inline(always)]
pub const fn is_past(tick: u32, now: u32) -> bool {
    tick != 0 && now.wrapping_sub(tick) < u32::MAX / 2
}

/// Whether the live word takes the flow's colour away from it: by a cut, by a drain's deadline, or
/// because a tester's flow would be on the live colour (invariant: testers never meet it).
#[inline(always)]
pub fn ended_by_switch(flow: &FlowRef, backend: BackendRef, word: LiveWord, tables: &impl Tables, now: u32) -> bool {
    if !unlikely(flow.state().has(FlowState::IDLE_ONLY) || word.flags() != LiveFlags::NONE) {
        return false;
    }
    let colour = backend.colour();
    let on_live = colour == word.live() as u8;
    if on_live && flow.state().has(FlowState::IDLE_ONLY) {
        return true;
    }
    if word.flags() == LiveFlags::NONE {
        return false;
    }
    let Some(terms) = tables.terms(backend.deployment(), word.terms_slot()) else { return false };
    let floor = match Colour::from_u8(colour) {
        Colour::Blue => terms.ended_before[0],
        Colour::Green => terms.ended_before[1],
    };
    let cut = word.flags().has(LiveFlags::CUT) && flow.flow().generation < floor;
    let drained = word.flags().has(LiveFlags::DRAINING)
        && !on_live
        && flow.flow().generation < word.generation()
        && is_past(terms.drain_deadline, now);
    cut || drained
}

/// Ticks that a direction of a flow may be silent. `established` is what the client's end has shown.
#[inline(always)]
pub const fn limit(row: &DeploymentRow, protocol: Protocol, established: bool) -> u32 {
    match (protocol, established) {
        (Protocol::Udp, _) => row.udp_idle,
        (Protocol::Tcp, true) => row.tcp_idle,
        (Protocol::Tcp, false) => row.tcp_opening,
    }
}

/// Whether one direction has been silent for longer than its deployment lets a flow be. `established` is what
/// the client's end has shown.
#[inline(always)]
pub fn is_silent(direction: &FlowRef, established: bool, deployment: u16, tables: &impl Tables, now: u32) -> bool {
    let idle = direction.idle(now);
    if idle == 0 {
        return false;
    }
    let Some(row) = tables.deployment(deployment) else { return true };
    idle > limit(row, direction.state().protocol(), established)
}

/// Whether a flow is still open, by both its entries: its connection has not ended and one of its directions
/// is not silent.
#[inline(always)]
pub fn is_open(forward: &FlowRef, reply: &FlowRef, deployment: u16, tables: &impl Tables, now: u32) -> bool {
    let established = forward.is_established();
    let shows = |flow| !is_silent(flow, established, deployment, tables, now);
    !forward.state().has_ended() && (shows(forward) || shows(reply))
}

/// Notes what a segment has shown of its sender's end. One that goes beyond the SYN also gives the entry the time
/// of an established connection.
#[inline(always)]
pub fn note(flow: &mut FlowRef, bits: u32, deployment: u16, tables: &impl Tables) {
    if flow.state().has(bits) {
        return;
    }
    let mut state = flow.state().with(bits);
    if bits & FlowState::ESTABLISHED != 0
        && !flow.is_established()
        && let Some(row) = tables.deployment(deployment)
    {
        state = state.with_limit(row.tcp_idle);
    }
    flow.become_state(state);
}

/// Whether a SYN on a known five-tuple opens another connection, rather than being sent again.
///
/// It does if the old one has ended, or never came to be and this is not its SYN. Inside an established
/// connection a SYN may be forged, and a backend that is alive answers it with a challenge (RFC 5961), which
/// makes an honest client reset the old connection. So such a SYN is only noted; if it comes again and the
/// backend has said nothing since, nobody is there to answer.
#[inline(always)]
pub fn is_reused_by<V: IpVersion>(flow: &mut FlowRef, reply: Option<FlowRef>, headers: &Headers<V>, now: u32) -> bool {
    if flow.state().has_ended() {
        return true;
    }
    let is_same_syn = flow.syn() == headers.sequence;
    if !flow.is_established() {
        return !is_same_syn;
    }
    if !is_same_syn {
        flow.set_note(headers.sequence);
        return false;
    }
    reply.is_none_or(|reply| reply.idle(now) > flow.idle(now))
}
