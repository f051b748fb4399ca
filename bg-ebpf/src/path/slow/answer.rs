//! What a packet of the backend says of its flow.

use crate::{
    flow::{memory::RawWords, row::FlowRef},
    hint::unlikely,
    policy::{
        colour::second_chance,
        connection::{is_answer_to, is_on_trial, shown_by_backend},
        lifetime::is_open,
        trips,
    },
    wire::headers::{Transport, tcp_flags},
    world::World,
};
use bg_common::{Colour, Flow, FlowState, LiveWord, Protocol};

/// A packet of a backend to the client of a flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Answering {
    /// The flow, as it was found.
    pub flow: Flow,
    /// The packet.
    pub transport: Transport,
    /// The live word in force, if it has been read.
    pub word: Option<LiveWord>,
    /// Index of the flow's deployment.
    pub deployment: u16,
    /// Colour of its backend.
    pub colour: Colour,
    /// The tick.
    pub now: u32,
}

/// Whose an answer is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Of a connection without the virtual address.
    Foreign = 0,
    /// Of the flow, and what it says has been noted.
    Ours = 1,
    /// Of the flow, which was picked up in mid-stream: a refusal that the client shall not hear, since its
    /// connection may be one of the other colour.
    Refusal = 2,
    /// That depends on the live word. The caller reads it and asks again. Nothing has been noted.
    NeedsWord = 3,
}

impl Answer {
    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(answer: u32) -> Self {
        match answer {
            1 => Self::Ours,
            2 => Self::Refusal,
            3 => Self::NeedsWord,
            _ => Self::Foreign,
        }
    }
}

/// Judges the packet and notes what it says. The flow's row stands at `row`.
#[inline(always)]
pub fn run(row: RawWords, call: &mut Answering, world: &impl World) -> Answer {
    let (segment, protocol, now) = (&call.transport, call.transport.protocol, call.now);
    let mut flow = FlowRef::new(row, 0, call.flow);
    let (mut state, mut note) = (flow.state(), flow.flow().note);
    if matches!(protocol, Protocol::Tcp) && state.is_ended_by_command() {
        flow.set(shown_by_backend(segment));
        return Answer::Ours;
    }
    if matches!(protocol, Protocol::Tcp) {
        let Some(row) = world.deployment(call.deployment) else { return Answer::Foreign };
        let is_syn = segment.has(tcp_flags::SYN);
        if !is_answer_to(flow.flow(), segment) || (is_syn && !is_open(flow.flow(), protocol, row, now)) {
            flow.set(FlowState::FOREIGN);
            return Answer::Foreign;
        }
        if segment.has(tcp_flags::RST) && may_be_refusal(call) {
            let Some(word) = call.word else { return Answer::NeedsWord };
            if second_chance(call.colour, call.deployment, word, world, now).is_some() {
                flow.set(FlowState::RETRIED | FlowState::BACKEND_RESET);
                return Answer::Refusal;
            }
        }
        if state.has(FlowState::DOUBTFUL) {
            note = if is_syn { u32::from_be(segment.acknowledgment).wrapping_sub(1).to_be() } else { 0 };
        }
        state = state.without(FlowState::FOREIGN | FlowState::DOUBTFUL);
    }
    flow.change(state.with(shown_by_backend(segment)), note);
    if unlikely(trips::is_awaited(&call.flow)) {
        let (deployment, colour) = (call.deployment, call.colour as u8);
        let group = trips::Group { deployment, generation: call.flow.generation, colour };
        trips::answered(group, &call.flow, segment.has(tcp_flags::RST), world);
    }
    Answer::Ours
}

/// Whether a reset refuses a connection that was picked up in mid-stream, if the other colour may know it.
#[inline(always)]
fn may_be_refusal(call: &Answering) -> bool {
    let state = call.flow.state;
    // Several segments may have been on the way: until the next one goes to the other colour, each of them is refused.
    let is_first_trial = !state.has(FlowState::RETRIED) || state.has(FlowState::BACKEND_RESET);
    is_on_trial(&call.flow, call.transport.protocol) && is_first_trial && !state.has(FlowState::IDLE_ONLY)
}
