//! Which connection a TCP segment belongs to, where a port of the client is used again.

use crate::{
    flow::row::idle,
    policy::lifetime::{limit_closed, limit_half_closed},
    wire::headers::{Transport, tcp_flags},
};
use bg_common::{DeploymentRow, Flow, FlowState, Protocol};

/// Ticks after which a SYN that came inside of a connection is answered by the backend, whatever it has answered before:
/// half a second and more. Linux answers one such SYN per connection in half a second (`tcp_invalid_ratelimit`).
const ANSWERED_AFTER: u32 = 10;

/// Ticks from the first of such SYNs after which a backend that has said nothing is dead: two seconds at 1,000 timer ticks a
/// second, eight at 250.
const DEAD_AFTER: u32 = 32;

/// A SYN that came inside of an established connection, as [`Flow::note`] keeps it: a part of its sequence number, and the
/// tick at which it first came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoubtfulSyn(pub u32);

impl DoubtfulSyn {
    const fn new(sequence: u32, now: u32) -> Self {
        Self(Self::part_of(sequence) << 16 | now & 0xffff)
    }

    const fn part_of(sequence: u32) -> u32 {
        (sequence ^ sequence >> 16) & 0xffff
    }

    /// Whether this is a SYN of this sequence number, as far as the note tells.
    const fn is(self, sequence: u32) -> bool {
        self.0 >> 16 == Self::part_of(sequence)
    }

    /// Ticks since it first came, modulo 65,536.
    const fn age(self, now: u32) -> u32 {
        now.wrapping_sub(self.0) & 0xffff
    }
}

/// What a SYN of the client on a known flow means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syn {
    /// It opens another connection.
    Opens,
    /// It is part of the connection: sent again, or noted before.
    Belongs,
    /// It has come inside an established connection, and is to be noted.
    Doubtful(DoubtfulSyn),
}

/// Judges a SYN of the client on a known flow that is not silent.
///
/// It opens another connection if the old one has ended, or never came to be and this is not its SYN. Inside an established
/// connection a SYN may be forged, and a backend that is alive answers it with a challenge (RFC 5961), which
/// makes an honest client reset the old connection. So such a SYN is only noted, and forgotten as soon as the backend says
/// anything. It opens another connection if the backend has said nothing for long enough, though the SYN came in between at
/// a time when the backend would have answered.
#[inline(always)]
pub const fn judge_syn(flow: &Flow, sequence: u32, now: u32) -> Syn {
    if flow.state.has_ended() {
        return Syn::Opens;
    }
    if !flow.state.has(FlowState::CONFIRMED) {
        return if flow.note == sequence { Syn::Belongs } else { Syn::Opens };
    }
    let doubtful = DoubtfulSyn(flow.note);
    if !flow.state.has(FlowState::DOUBTFUL) || !doubtful.is(sequence) {
        return Syn::Doubtful(DoubtfulSyn::new(sequence, now));
    }
    let (age, since_last) = (doubtful.age(now), idle(flow.last_seen, now));
    // An answer to the last one takes a moment.
    let was_owed_an_answer = since_last >= 2 && since_last.saturating_add(ANSWERED_AFTER) <= age;
    if age >= DEAD_AFTER && was_owed_an_answer { Syn::Opens } else { Syn::Belongs }
}

/// Judges a SYN of the client on a known flow that is not silent, whose backend replies to the client directly.
///
/// Its challenge is not heard here; but if the client resets the connection for it, that is. While new flows go to the other colour, a SYN
/// never opens another connection inside an established one: whoever forges it would move the client away from its backend.
/// Otherwise the connection would go the same way again, so only a dead backend is left by it.
#[inline(always)]
pub const fn judge_syn_unheard(flow: &Flow, sequence: u32, is_live: bool, now: u32) -> Syn {
    if flow.state.may_have_ended() {
        return Syn::Opens;
    }
    if !is_live && flow.state.has(FlowState::CONFIRMED) && !flow.state.has_ended() {
        return Syn::Belongs;
    }
    judge_syn(flow, sequence, now)
}

/// State, note and new limit (zero: the same as before) of a connection whose backend replies to the client directly, after a segment of the client that
/// belongs to it: what the client says shows what the backend must have said. Who acknowledges its SYN has heard from it, and who goes on with the
/// connection has not sent a SYN for another.
#[inline(always)]
pub const fn of_both_ends(
    state: FlowState,
    note: u32,
    segment: &Transport,
    row: &DeploymentRow,
) -> (FlowState, u32, u32) {
    let (state, note) = if state.has(FlowState::DOUBTFUL) {
        if segment.opens_connection() {
            return (state, note, 0);
        }
        (state.without(FlowState::DOUBTFUL), 0)
    } else {
        (state, note)
    };
    let has_answered = note != 0 && state.has(FlowState::CONFIRMED) && !state.has(FlowState::UNHEARD);
    let state = if has_answered { state.with(FlowState::ANSWERED) } else { state };
    if state.has(FlowState::CLIENT_FIN) { half_closed(state, note, segment, row) } else { (state, note, 0) }
}

/// The same once the client has sent FIN. That may be its last segment, or the backend may have much to say yet, so the connection is over when the client
/// was silent. From then on the note is what the client has acknowledged. The last that it acknowledges is the backend's FIN: one byte, most often alone.
#[inline(always)]
pub const fn half_closed(
    state: FlowState,
    note: u32,
    segment: &Transport,
    row: &DeploymentRow,
) -> (FlowState, u32, u32) {
    let acknowledged = segment.acknowledgment;
    let limit = if state.has(FlowState::UNHEARD) {
        match u32::from_be(acknowledged).wrapping_sub(u32::from_be(note)) {
            // Nothing new.
            0 | 0x8000_0000.. => return (state, note, 0),
            1 => limit_closed(row),
            _ => limit_half_closed(row),
        }
    } else {
        limit_half_closed(row)
    };
    (state.with(FlowState::UNHEARD), acknowledged, limit)
}

/// Whether a segment of the backend can belong to the flow. The backend of a connection that it has with this client
/// without the virtual address, from the same port, acknowledges something else: then the two connections look the same to
/// it, and what it says belongs to the one that was there first.
///
/// Segments with SYN are looked at, and all until the client has answered: the acknowledgment must lie just behind its
/// SYN, or behind the data that came with the SYN (RFC 7413). If an earlier connection of this port came by the virtual
/// address, the backend may still have that one, and challenges the new SYN (RFC 5961): the client has to hear that.
#[inline(always)]
pub const fn is_answer_to(flow: &Flow, segment: &Transport) -> bool {
    let is_syn = segment.flags & tcp_flags::SYN != 0;
    let is_confirmed = flow.state.has(FlowState::CONFIRMED);
    if flow.note == 0 || flow.state.has(FlowState::REUSED) || (is_confirmed && !is_syn) {
        return true;
    }
    let acknowledged = u32::from_be(segment.acknowledgment).wrapping_sub(1);
    segment.has(tcp_flags::ACK)
        && if flow.state.has(FlowState::DOUBTFUL) {
            DoubtfulSyn(flow.note).is(acknowledged.to_be())
        } else {
            acknowledged.wrapping_sub(u32::from_be(flow.note)) < 0x1_0000
        }
}

/// Whether a connection was picked up in mid-stream and its backend has not answered yet.
#[inline(always)]
pub const fn is_on_trial(flow: &Flow, protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tcp)
        && flow.note == 0
        && flow.state.0 & (FlowState::CONFIRMED | FlowState::ANSWERED) == FlowState::CONFIRMED
}

/// Whether its backend has refused a connection that was picked up in mid-stream, so that its next segment goes to the other
/// colour.
#[inline(always)]
pub const fn is_refused(state: FlowState) -> bool {
    state.0 & (FlowState::RETRIED | FlowState::BACKEND_RESET | FlowState::ANSWERED)
        == FlowState::RETRIED | FlowState::BACKEND_RESET
}

/// What a segment of the client shows.
#[inline(always)]
pub const fn shown_by_client(segment: &Transport) -> u32 {
    shown(segment.flags, FlowState::CLIENT_FIN, FlowState::CLIENT_RESET)
        | if segment.flags & tcp_flags::SYN == 0 && matches!(segment.protocol, Protocol::Tcp) {
            FlowState::CONFIRMED
        } else {
            0
        }
}

/// What a segment of the backend shows.
#[inline(always)]
pub const fn shown_by_backend(segment: &Transport) -> u32 {
    shown(segment.flags, FlowState::BACKEND_FIN, FlowState::BACKEND_RESET) | FlowState::ANSWERED
}

#[inline(always)]
const fn shown(flags: u8, fin: u32, reset: u32) -> u32 {
    let fin = if flags & tcp_flags::FIN != 0 { fin } else { 0 };
    let reset = if flags & tcp_flags::RST != 0 { reset } else { 0 };
    fin | reset
}
