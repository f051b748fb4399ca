//! What a packet of the client says of its flow.

use super::search;
use crate::{
    policy::{
        connection::{Syn, judge_syn, shown_by_client},
        lifetime::{is_silent, limit},
    },
    rows::BackendRef,
    wire::headers::Headers,
    world::{Flows, World},
};
use bg_common::{FlowState, Protocol};

/// A packet of a flow that no switch has ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Refreshing<V: Flows> {
    /// The packet.
    pub headers: Headers<V>,
    /// Row of `vips` that it was sent to.
    pub vip: u16,
    /// The tick.
    pub now: u32,
    /// Room for the flow's key. On the stack it would take too much.
    pub key: V::Key,
}

/// Whether a flow takes a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// No: it is over, by a long silence or by a SYN that opens another connection.
    Over = 0,
    /// Yes, and what it says has been noted.
    Yes = 1,
}

impl Stay {
    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(stay: u32) -> Self {
        if stay == Self::Yes as u32 { Self::Yes } else { Self::Over }
    }
}

#[inline(always)]
pub fn run<V: Flows, W: World>(call: &mut Refreshing<V>, world: &W) -> Stay {
    call.key = V::key(call.headers.src, call.headers.src_port(), call.vip);
    let found = search::by_key::<V, W>(&call.key, call.vip, world);
    let Some(mut flow) = found else { return Stay::Over };
    let (headers, now) = (&call.headers, call.now);
    let Some(backend) = world.backend(flow.backend().slot()).map(BackendRef) else { return Stay::Over };
    let Some(row) = world.deployment(backend.deployment()) else { return Stay::Over };
    let is_silent = is_silent(flow.flow(), headers.protocol, row, now);
    let mut state = flow.state();
    let mut note = flow.flow().note;
    match headers.protocol {
        Protocol::Udp => {
            if is_silent {
                return Stay::Over;
            }
            if state.has(FlowState::ANSWERED) {
                state = state.with(FlowState::CONFIRMED);
            }
        }
        Protocol::Tcp => {
            if headers.opens_connection() {
                match judge_syn(flow.flow(), headers.sequence, now) {
                    Syn::Opens => return Stay::Over,
                    _ if is_silent => return Stay::Over,
                    Syn::Belongs => {}
                    Syn::Doubtful(doubtful) => {
                        state = state.with(FlowState::DOUBTFUL);
                        note = doubtful.0;
                    }
                }
            }
            state = state.with(shown_by_client(headers));
        }
    }
    if state.0 & !flow.state().0 & FlowState::CONFIRMED != 0 {
        state = state.with_limit(limit(row, headers.protocol, state));
    }
    flow.see(now);
    flow.change(state, note);
    Stay::Yes
}
