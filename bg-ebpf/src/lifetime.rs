//! When a flow is over: its connection ended, it went silent, its backend is gone, or a switch ended it.

use crate::{
    flow_ref::FlowRef,
    headers::{Headers, IpVersion},
    tables::Tables,
};
use bg_common::{Colour, FlowRole, LiveFlags, LiveWord, Protocol};

/// Whether a tick is reached. Zero never is.
#[inline(always)]
pub const fn is_past(tick: u32, now: u32) -> bool {
    tick != 0 && now.wrapping_sub(tick) < u32::MAX / 2
}

/// Whether the live word takes the flow's colour away from it: by a cut, by a drain's deadline, or
/// because a tester's flow would be on the live colour (invariant: testers never meet it).
#[inline(always)]
pub fn ended_by_switch(flow: FlowRef, word: LiveWord, tables: &impl Tables, now: u32) -> bool {
    let on_live = flow.colour() == word.live() as u8;
    if on_live && flow.role() & FlowRole::IDLE_ONLY != 0 {
        return true;
    }
    if word.flags() == LiveFlags::NONE {
        return false;
    }
    let Some(terms) = tables.terms(flow.deployment(), word.terms_slot()) else { return false };
    let floor = match Colour::from_u8(flow.colour()) {
        Colour::Blue => terms.ended_before[0],
        Colour::Green => terms.ended_before[1],
    };
    let cut = word.flags().has(LiveFlags::CUT) && flow.generation() < floor;
    let drained = word.flags().has(LiveFlags::DRAINING)
        && !on_live
        && flow.generation() < word.generation()
        && is_past(terms.drain_deadline, now);
    cut || drained
}

/// Whether one direction has been silent for longer than the deployment lets a flow be. `established` is what
/// the client's end has shown.
#[inline(always)]
pub fn is_silent(direction: FlowRef, protocol: Protocol, established: bool, tables: &impl Tables, now: u32) -> bool {
    let idle = direction.idle(now);
    if idle == 0 {
        return false;
    }
    let Some(row) = tables.deployment(direction.deployment()) else { return true };
    idle > match (protocol, established) {
        (Protocol::Udp, _) => row.udp_idle,
        (Protocol::Tcp, true) => row.tcp_idle,
        (Protocol::Tcp, false) => row.tcp_opening,
    }
}

/// Whether a flow is still open, by both its entries: its connection has not ended and one of its directions
/// is not silent.
#[inline(always)]
pub fn is_open(forward: FlowRef, reply: FlowRef, protocol: Protocol, tables: &impl Tables, now: u32) -> bool {
    let established = forward.is_established();
    let shows = |flow| !is_silent(flow, protocol, established, tables, now);
    !forward.connection_ended() && (shows(forward) || shows(reply))
}

/// Whether a SYN on a known five-tuple opens another connection, rather than being sent again.
///
/// It does if the old one has ended, or never came to be and this is not its SYN. Inside an established
/// connection a SYN may be forged, and a backend that is alive answers it with a challenge (RFC 5961), which
/// makes an honest client reset the old connection. So such a SYN is only noted; if it comes again and the
/// backend has said nothing since, nobody is there to answer.
#[inline(always)]
pub fn is_reused_by<V: IpVersion>(flow: FlowRef, reply: Option<FlowRef>, headers: &Headers<V>, now: u32) -> bool {
    if flow.connection_ended() {
        return true;
    }
    let is_same_syn = flow.isn() == headers.sequence;
    if !flow.is_established() {
        return !is_same_syn;
    }
    if !is_same_syn {
        flow.note_syn(headers.sequence);
        return false;
    }
    reply.is_none_or(|reply| reply.idle(now) > flow.idle(now))
}
