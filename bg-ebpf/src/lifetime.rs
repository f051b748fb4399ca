//! When a flow is over: its connection ended, it went silent, its backend is gone, or a switch ended it.

use crate::{
    flow_ref::{BackendRef, FlowRef},
    headers::{Headers, IpVersion, tcp_flags},
    tables::Tables,
    unlikely,
};
use bg_common::{Colour, DeploymentRow, FlowState, LiveFlags, LiveWord, Protocol, SwitchTerms};

/// Whether a tick is reached. Zero never is.
#[inline(always)]
pub const fn is_past(tick: u32, now: u32) -> bool {
    tick != 0 && now.wrapping_sub(tick) < u32::MAX / 2
}

/// The terms that belong to a live word.
///
/// They were written before the word. A processor that is free to load them early would find what was there before them:
/// the slot is chosen by a branch, which orders no loads.
#[inline(always)]
pub fn terms(deployment: u16, word: LiveWord, tables: &impl Tables) -> Option<SwitchTerms> {
    tables.order();
    tables.terms(deployment, word.terms_slot())
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
    let Some(terms) = terms(backend.deployment(), word, tables) else { return false };
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

/// Ticks after which a SYN that came inside of a connection is answered by the backend, whatever it has answered before:
/// half a second and more. Linux answers one such SYN per connection in half a second (`tcp_invalid_ratelimit`).
const ANSWERED_AFTER: u32 = 10;

/// Ticks from the first of such SYNs after which a backend that has said nothing is dead: two seconds at 1,000 timer ticks a
/// second, eight at 250.
const DEAD_AFTER: u32 = 32;

/// A SYN that came inside of an established connection, as the forward entry's note keeps it: a part of its sequence
/// number, and the tick at which it first came.
#[derive(Clone, Copy)]
struct DoubtfulSyn(u32);

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

/// Whether a SYN on a known five-tuple opens another connection, rather than being sent again.
///
/// It does if the old one has ended, or never came to be and this is not its SYN. Inside an established
/// connection a SYN may be forged, and a backend that is alive answers it with a challenge (RFC 5961), which
/// makes an honest client reset the old connection. So such a SYN is only noted. It opens another connection if the
/// backend has said nothing since it first came, for long enough, and though it came in between at a time when the
/// backend would have answered.
#[inline(always)]
pub fn is_reused_by<V: IpVersion>(flow: &mut FlowRef, reply: Option<FlowRef>, headers: &Headers<V>, now: u32) -> bool {
    if flow.state().has_ended() {
        return true;
    }
    if !flow.is_established() {
        return flow.syn() != headers.sequence;
    }
    let doubtful = DoubtfulSyn(flow.syn());
    if !doubtful.is(headers.sequence) {
        flow.set_note(DoubtfulSyn::new(headers.sequence, now).0);
        return false;
    }
    let (age, since_last) = (doubtful.age(now), flow.idle(now));
    // An answer to the last one takes a moment.
    let was_owed_an_answer = since_last >= 2 && since_last.saturating_add(ANSWERED_AFTER) <= age;
    age >= DEAD_AFTER && was_owed_an_answer && reply.is_some_and(|reply| reply.idle(now) > age)
}

/// Whether a segment of the backend can belong to the connection that the client opened by the SYN of its forward entry.
/// The backend of a connection that it has with this client without the VIP, from the same port, acknowledges something
/// else: then the two connections look the same to it, and what it says belongs to the one that was there first.
///
/// Asked of segments with SYN, and until the client has answered: the acknowledgment must lie just behind its SYN, or
/// behind the data that came with the SYN (RFC 7413).
#[inline(always)]
pub fn is_answer_to<V: IpVersion>(forward: &FlowRef, headers: &Headers<V>) -> bool {
    let is_syn = headers.flags & tcp_flags::SYN != 0;
    if forward.syn() == 0 || (forward.is_established() && !is_syn) {
        return true;
    }
    let acknowledged = u32::from_be(headers.acknowledgment).wrapping_sub(1);
    let is_of_syn = acknowledged.wrapping_sub(u32::from_be(forward.syn())) < 0x1_0000;
    let is_of_doubtful = forward.is_established() && DoubtfulSyn(forward.syn()).is(acknowledged.to_be());
    headers.flags & tcp_flags::ACK != 0 && (is_of_syn || is_of_doubtful)
}
