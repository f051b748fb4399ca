//! What a packet of the client says of its flow.

use crate::{
    flow::{memory::RawWords, row::FlowRef},
    hint::unlikely,
    policy::{
        connection::{Syn, is_refused, judge_syn, shown_by_client},
        freeze::is_frozen,
        lifetime::{ended_by_switch, is_silent, limit},
        trips,
    },
    step::Step,
    wire::headers::{Transport, tcp_flags},
    world::{EXPLAINS, World, note},
};
use bg_common::{Colour, Flow, FlowState, LiveWord, Protocol};

/// A packet of a flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Refreshing {
    /// The flow, as it was found.
    pub flow: Flow,
    /// The packet.
    pub transport: Transport,
    /// The live word that it has read.
    pub word: LiveWord,
    /// Index of the flow's deployment.
    pub deployment: u16,
    /// Colour of the flow's backend.
    pub colour: Colour,
    /// The tick.
    pub now: u32,
    /// Whether the backend replies to clients directly.
    pub is_direct: bool,
}

/// Whether a flow takes a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// No: it is over, by a switch, by a long silence, or because the packet belongs to another connection.
    Over = 0,
    /// Yes, and what it says has been noted.
    Yes = 1,
    /// No: a switch or a command has ended it, and both ends are to hear that by a reset.
    Reset = 2,
    /// Yes, but the deployment is frozen, and others of the flow may be held.
    Frozen = 3,
}

impl Stay {
    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(stay: u32) -> Self {
        match stay {
            1 => Self::Yes,
            2 => Self::Reset,
            3 => Self::Frozen,
            _ => Self::Over,
        }
    }
}

/// Judges the packet and notes what it says. The flow's row stands at `row`.
#[inline(always)]
pub fn run(row: RawWords, call: &mut Refreshing, world: &impl World) -> Stay {
    let (segment, protocol, now) = (&call.transport, call.transport.protocol, call.now);
    let mut flow = FlowRef::new(row, 0, call.flow);
    if flow.state().is_ended_by_command() && matches!(protocol, Protocol::Tcp) {
        note!(world, Step::EndedByCommand {});
        return of_ended(&mut flow, segment);
    }
    let is_refused = is_refused(flow.state()) && !segment.opens_connection();
    if EXPLAINS && is_refused {
        world.note(Step::Refused {});
    }
    if is_refused {
        return Stay::Over;
    }
    if ended_by_switch(flow.flow(), call.colour, call.deployment, call.word, world, now) {
        return of_ended(&mut flow, segment);
    }
    let Some(row) = world.deployment(call.deployment) else { return Stay::Over };
    let is_silent = is_silent(flow.flow(), protocol, row, now);
    let silent = Step::Silent { last_seen: flow.flow().last_seen.into() };
    let (mut state, mut note) = (flow.state(), flow.flow().note);
    match protocol {
        Protocol::Udp => {
            if is_silent {
                note!(world, silent);
                return Stay::Over;
            }
            if state.has(FlowState::QUEUED) {
                if is_frozen(call.deployment, call.word, world) {
                    return Stay::Frozen;
                }
                state = state.without(FlowState::QUEUED);
            }
            if state.has(FlowState::ANSWERED) {
                state = state.with(FlowState::CONFIRMED);
            }
        }
        Protocol::Tcp => {
            if segment.opens_connection() {
                match judge_syn(flow.flow(), segment.sequence, now) {
                    Syn::Opens => {
                        note!(world, Step::Reopens {});
                        return Stay::Over;
                    }
                    _ if is_silent => {
                        note!(world, silent);
                        return Stay::Over;
                    }
                    Syn::Belongs => {
                        if unlikely(trips::is_awaited(flow.flow())) {
                            let (generation, colour) = (flow.flow().generation, call.colour as u8);
                            let group = trips::Group { deployment: call.deployment, generation, colour };
                            trips::sent_again(group, &mut flow, now, world);
                        }
                    }
                    Syn::Doubtful(doubtful) => {
                        note!(world, Step::SynInside {});
                        state = state.with(FlowState::DOUBTFUL);
                        note = doubtful.0;
                    }
                }
            }
            state = state.with(shown_by_client(segment));
            if unlikely(call.is_direct) {
                (state, note) = of_both_ends(state, note);
            }
        }
    }
    if state.0 & !flow.state().0 & FlowState::CONFIRMED != 0 {
        state = state.with_limit(limit(row, protocol, state));
    }
    flow.see(now);
    flow.change(state, note);
    Stay::Yes
}

/// The state of a connection whose backend replies to the client directly: what the client says shows what the backend must have said. Who acknowledges
/// its SYN has heard from it. The client's FIN is the last segment that is sure to pass here, so the connection counts as ended, though its
/// segments still go to the backend.
#[inline(always)]
const fn of_both_ends(state: FlowState, note: u32) -> (FlowState, u32) {
    let answered = if note != 0 && state.has(FlowState::CONFIRMED) { FlowState::ANSWERED } else { 0 };
    let state = state.with(answered);
    if !state.has(FlowState::CLIENT_FIN) {
        return (state, note);
    }
    // Of a SYN that has come inside of the connection nothing is to be known any more.
    let note = if state.has(FlowState::DOUBTFUL) { 0 } else { note };
    (state.without(FlowState::DOUBTFUL).with(FlowState::BACKEND_FIN), note)
}

/// What comes of a packet of the client on a flow that a switch or a command has ended.
#[inline(always)]
fn of_ended(flow: &mut FlowRef, segment: &Transport) -> Stay {
    if segment.can_be_reset() {
        return Stay::Reset;
    }
    if segment.has(tcp_flags::RST) {
        // It ends the connection at the backend, which no other packet of the client reaches.
        flow.set(FlowState::CLIENT_RESET);
        return Stay::Yes;
    }
    Stay::Over
}
