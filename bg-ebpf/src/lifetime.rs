//! When a flow is over: its connection ended, it went silent, its backend is gone, or a switch ended it.

use crate::{
    flow_ref::FlowRef,
    headers::{Headers, IpVersion},
    tables::Tables,
};
use bg_common::{Colour, DeploymentRow, FlowRole, LiveFlags, LiveWord, Protocol, SwitchTerms, TcpState};

/// Whether the drain of this generation is past its deadline.
#[inline(always)]
pub fn drain_is_over(terms: &SwitchTerms, now: u32) -> bool {
    terms.drain_deadline != 0 && now.wrapping_sub(terms.drain_deadline) < u32::MAX / 2
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
        && drain_is_over(&terms, now);
    cut || drained
}

/// Ticks after which a silent flow is over.
#[inline(always)]
fn idle_limit(protocol: Protocol, established: bool, row: &DeploymentRow) -> u32 {
    match (protocol, established) {
        (Protocol::Udp, _) => row.udp_idle,
        (Protocol::Tcp, true) => row.tcp_idle,
        (Protocol::Tcp, false) => row.tcp_opening,
    }
}

/// Whether neither direction has shown a packet for the deployment's time-out. `reply` is the other
/// direction's entry, asked for only if this one is silent.
#[inline(always)]
pub fn is_silent(
    flow: FlowRef,
    reply: impl FnOnce() -> Option<FlowRef>,
    protocol: Protocol,
    tables: &impl Tables,
    now: u32,
) -> bool {
    let Some(row) = tables.deployment(flow.deployment()) else { return true };
    let limit = idle_limit(protocol, flow.states().0 & TcpState::ESTABLISHED != 0, row);
    if flow.idle(now) <= limit {
        return false;
    }
    reply().is_none_or(|reply| reply.idle(now) > limit)
}

/// Whether a SYN on a known five-tuple opens another connection, rather than being sent again: the
/// old one has ended, or never came to be and this is not its SYN. A SYN inside an established
/// connection decides nothing: it may be forged (RFC 5961).
#[inline(always)]
pub fn is_reused_by<V: IpVersion>(flow: FlowRef, headers: &Headers<V>) -> bool {
    let (client, _) = flow.states();
    flow.connection_ended() || (client & TcpState::ESTABLISHED == 0 && flow.isn() != headers.sequence)
}
