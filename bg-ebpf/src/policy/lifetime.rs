//! When a flow is over: its connection has ended, it went silent, or a switch has ended it. User space asks the same
//! functions when it counts open flows.

use crate::{
    flow::row::idle,
    hint::unlikely,
    step::Step,
    world::{EXPLAINS, World},
};
use bg_common::{Colour, DeploymentRow, Flow, FlowState, LiveFlags, LiveWord, Protocol, SwitchTerms};

/// Whether a tick is reached. Zero never is.
#[inline(always)]
pub const fn is_past(tick: u32, now: u32) -> bool {
    tick != 0 && now.wrapping_sub(tick) < u32::MAX / 2
}

/// Ticks that a flow may be silent.
#[inline(always)]
pub const fn limit(row: &DeploymentRow, protocol: Protocol, state: FlowState) -> u32 {
    // It depends on what the client has said since.
    if matches!(protocol, Protocol::Tcp) && state.may_have_ended() {
        state.limit()
    } else {
        limit_open(row, protocol, state)
    }
}

#[inline(always)]
const fn limit_open(row: &DeploymentRow, protocol: Protocol, state: FlowState) -> u32 {
    match (protocol, state.has(FlowState::CONFIRMED)) {
        (Protocol::Udp, _) => row.udp_idle,
        (Protocol::Tcp, true) => row.tcp_idle,
        (Protocol::Tcp, false) => row.tcp_opening,
    }
}

/// Ticks that a connection may be silent whose client has sent FIN, if nobody here hears whether the backend has: 32 seconds, a quarter of what a
/// handshake may take. Six retransmissions in a row last 25 seconds (RFC 6298, from 0.2 seconds on), and a client that waits for an answer is silent, too.
#[inline(always)]
pub const fn limit_half_closed(row: &DeploymentRow) -> u32 {
    row.tcp_opening >> 2
}

/// The same once the client has acknowledged one byte more, as the backend's FIN is, and nothing since: 4 seconds.
#[inline(always)]
pub const fn limit_closed(row: &DeploymentRow) -> u32 {
    row.tcp_opening >> 5
}

/// Whether a flow was silent for longer than its deployment allows.
#[inline(always)]
pub const fn is_silent(flow: &Flow, protocol: Protocol, row: &DeploymentRow, now: u32) -> bool {
    let idle = idle(flow.last_seen, now);
    idle != 0 && idle > limit(row, protocol, flow.state)
}

/// The same of a flow that is not [`FlowState::may_have_ended`].
#[inline(always)]
pub const fn is_silent_open(flow: &Flow, protocol: Protocol, row: &DeploymentRow, now: u32) -> bool {
    let idle = idle(flow.last_seen, now);
    idle != 0 && idle > limit_open(row, protocol, flow.state)
}

/// Whether a flow goes on, whatever a switch says of it: its connection has not ended, and it is not silent.
#[inline(always)]
pub const fn is_open(flow: &Flow, protocol: Protocol, row: &DeploymentRow, now: u32) -> bool {
    !flow.state.has_ended() && !is_silent(flow, protocol, row, now)
}

/// Whether a flow that is confined to the idle colour is at a backend of the live one, since a switch.
#[inline(always)]
pub const fn is_confined_to_live(state: FlowState, colour: Colour, word: LiveWord) -> bool {
    state.has(FlowState::IDLE_ONLY) && colour as u8 == word.live() as u8
}

/// Whether the word's terms have to be asked about a flow of this generation. They say nothing about flows of the word's own.
#[inline(always)]
pub const fn depends_on_terms(generation: u32, word: LiveWord) -> bool {
    word.flags().0 != LiveFlags::NONE.0 && generation != word.generation()
}

/// Whether the terms end a flow: by a cut, or by a drain's deadline.
#[inline(always)]
pub const fn ended_by_terms(generation: u32, colour: Colour, word: LiveWord, terms: &SwitchTerms, now: u32) -> bool {
    let floor = match colour {
        Colour::Blue => terms.ended_before[0],
        Colour::Green => terms.ended_before[1],
    };
    let is_cut = word.flags().has(LiveFlags::CUT) && generation < floor;
    let is_drained = word.flags().has(LiveFlags::DRAINING)
        && colour as u8 != word.live() as u8
        && generation < word.generation()
        && is_past(terms.drain_deadline, now);
    is_cut || is_drained
}

/// Whether a switch has ended a flow, by the word and its terms.
#[inline(always)]
pub const fn ended_by(flow: &Flow, colour: Colour, word: LiveWord, terms: &SwitchTerms, now: u32) -> bool {
    is_confined_to_live(flow.state, colour, word) || ended_by_terms(flow.generation, colour, word, terms, now)
}

/// [`ended_by`], where the terms are read only if they matter.
#[inline(always)]
pub fn ended_by_switch(
    flow: &Flow,
    colour: Colour,
    deployment: u16,
    word: LiveWord,
    world: &impl World,
    now: u32,
) -> bool {
    let is_ended = is_ended_by_switch(flow, colour, deployment, word, world, now);
    if EXPLAINS && is_ended {
        world.note(Step::EndedBySwitch {
            colour: colour as u64,
            generation: flow.generation.into(),
            word: word.0,
            is_confined: is_confined_to_live(flow.state, colour, word).into(),
        });
    }
    is_ended
}

#[inline(always)]
fn is_ended_by_switch(
    flow: &Flow,
    colour: Colour,
    deployment: u16,
    word: LiveWord,
    world: &impl World,
    now: u32,
) -> bool {
    if unlikely(is_confined_to_live(flow.state, colour, word)) {
        return true;
    }
    depends_on_terms(flow.generation, word)
        && terms(deployment, word, world)
            .is_some_and(|terms| ended_by_terms(flow.generation, colour, word, &terms, now))
}

/// The terms that belong to a live word.
///
/// They were written before the word. A processor that is free to load them early would find what was there before them:
/// the slot is chosen by a branch, which orders no loads.
#[inline(always)]
pub fn terms(deployment: u16, word: LiveWord, world: &impl World) -> Option<SwitchTerms> {
    world.order();
    world.terms(deployment, word.terms_slot())
}

/// The word and [`SwitchTerms::ended_before`] once the drain of `word` is over: the flows that it has ended stay ended, and
/// a new flow's packets need not ask any more.
#[inline(always)]
pub const fn after_drain(word: LiveWord, terms: &SwitchTerms) -> (LiveWord, [u32; 2]) {
    let [blue, green] = if word.flags().has(LiveFlags::CUT) { terms.ended_before } else { [0; 2] };
    let ended_before = match word.live() {
        Colour::Blue => [blue, word.generation()],
        Colour::Green => [word.generation(), green],
    };
    (word.with_flags(word.flags().without(LiveFlags::DRAINING).with(LiveFlags::CUT)), ended_before)
}
