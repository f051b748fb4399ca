//! What a packet of the backend says of its flow.

use super::search;
use crate::{
    policy::{
        colour::second_chance,
        connection::{is_answer_to, is_on_trial, shown_by_backend},
        lifetime::is_open,
    },
    rows::BackendRef,
    wire::headers::{Headers, tcp_flags},
    world::{Flows, World},
};
use bg_common::{Colour, FlowState, Protocol};

/// A packet of a backend to the client of a flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Answering<V: Flows> {
    /// The packet.
    pub headers: Headers<V>,
    /// Row of `vips` of its flow.
    pub vip: u16,
    /// The tick.
    pub now: u32,
    /// Room for the flow's key. On the stack it would take too much.
    pub key: V::Key,
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
}

impl Answer {
    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(answer: u32) -> Self {
        match answer {
            1 => Self::Ours,
            2 => Self::Refusal,
            _ => Self::Foreign,
        }
    }
}

#[inline(always)]
pub fn run<V: Flows, W: World>(call: &mut Answering<V>, world: &W) -> Answer {
    call.key = V::key(call.headers.dst, call.headers.dst_port(), call.vip);
    let found = search::by_key::<V, W>(&call.key, call.vip, world);
    let Some(mut flow) = found else { return Answer::Foreign };
    let (headers, now) = (&call.headers, call.now);
    let Some(backend) = world.backend(flow.backend().slot()).map(BackendRef) else { return Answer::Foreign };
    let Some(row) = world.deployment(backend.deployment()) else { return Answer::Foreign };
    let (mut state, mut note) = (flow.state(), flow.flow().note);
    if matches!(headers.protocol, Protocol::Tcp) {
        let is_syn = headers.flags & tcp_flags::SYN != 0;
        let belongs =
            is_answer_to(flow.flow(), headers) && (!is_syn || is_open(flow.flow(), headers.protocol, row, now));
        if !belongs {
            flow.set(FlowState::FOREIGN);
            return Answer::Foreign;
        }
        let is_refusal = headers.flags & tcp_flags::RST != 0
            && is_on_trial(flow.flow(), headers.protocol)
            && !state.has_any(FlowState::RETRIED | FlowState::IDLE_ONLY);
        if is_refusal
            && let Some(word) = world.live(backend.deployment())
            && second_chance(Colour::from_u8(backend.colour()), backend.deployment(), word, world, now).is_some()
        {
            flow.set(FlowState::RETRIED | FlowState::BACKEND_RESET);
            return Answer::Refusal;
        }
        if state.has(FlowState::DOUBTFUL) {
            note = if is_syn { u32::from_be(headers.acknowledgment).wrapping_sub(1).to_be() } else { 0 };
        }
        state = state.without(FlowState::FOREIGN | FlowState::DOUBTFUL);
    }
    flow.change(state.with(shown_by_backend(headers)), note);
    Answer::Ours
}
