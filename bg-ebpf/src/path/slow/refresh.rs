//! What a packet of the client says of its flow.

use crate::{
    flow::{memory::RawWords, row::FlowRef},
    hint::unlikely,
    policy::{
        connection::{Syn, is_refused, judge_syn, judge_syn_unheard, of_both_ends, shown_by_client},
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
    let (mut state, mut note, mut new_limit) = (flow.state(), flow.flow().note, 0);
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
                let judged = if unlikely(call.is_direct) {
                    let is_live = call.colour as u8 == call.word.live() as u8;
                    judge_syn_unheard(flow.flow(), segment.sequence, is_live, now)
                } else {
                    judge_syn(flow.flow(), segment.sequence, now)
                };
                match judged {
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
                (state, note, new_limit) = of_both_ends(state, note, segment, row);
            }
        }
    }
    if new_limit == 0 && state.0 & !flow.state().0 & FlowState::CONFIRMED != 0 {
        new_limit = limit(row, protocol, state);
    }
    if new_limit != 0 {
        state = state.with_limit(new_limit);
    }
    flow.see(now);
    flow.change(state, note);
    Stay::Yes
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
