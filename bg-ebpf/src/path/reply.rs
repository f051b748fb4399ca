//! Backend to client: the source that the client knows is restored.

use super::{
    classify::Found,
    forward::note_flow,
    slow::{self, Answer, Answering, Search, SlowPath},
};
use crate::{
    egress::{
        next_hop,
        rewrite::{Edit, End, Rewritable, Writer},
    },
    flow::{
        bucket::place,
        key::{Key as _, Match},
        memory::RawWords,
        row::FlowRef,
        table::{find_row, read},
    },
    hint::{cold, opaque, unlikely},
    hook::{Direction, Hook},
    policy::{
        backend,
        colour::Client,
        lifetime::{ended_by_switch, is_silent},
        timed,
    },
    rows::{BackendRef, VipRef},
    step::Step,
    verdict::{Action, Exit, Verdict},
    wire::headers::{Headers, tcp_flags},
    world::{EXPLAINS, Flows, World, note},
};
use bg_common::{Colour, Event, FlowState, Protocol};

/// Restores the source of a packet from `source`, a backend. `None`: it is no reply of a flow.
#[inline(always)]
pub fn restore<V: Flows + Rewritable, W: SlowPath<V>>(
    headers: &Headers<V>,
    source: Found,
    hook: &Hook<'_, W>,
    writer: &mut impl Writer,
) -> Option<Verdict> {
    let (world, now) = (hook.world, hook.now);
    let flows = V::flows(world);
    let key = V::key(headers.dst, headers.dst_port(), 0);
    // Not an `Option`, for the reason told at [`Found`].
    let mut row = find_row(flows, &key, key.hash(source.salt, flows), Match::Client).unwrap_or(RawWords::NONE);
    // Nothing, unless services that share this backend have different salts.
    note!(world, Step::FromBackend { slot: source.number.into() });
    if row.is_none() && source.next == 0 {
        return None;
    }
    // Of 64 bits, for the reason told at [`rolled`](crate::hint::rolled).
    let mut is_searched = 0;
    let (mut flow, backend) = loop {
        if !row.is_none()
            && let Some(flow) = read(flows, row, &key, Match::Client)
            && let Some(backend) =
                backend::of_flow_at::<V>(&flow, headers.src, headers.src_port(), headers.protocol(), world)
            && !is_over(&flow, backend, headers, hook)
        {
            break (flow, backend);
        }
        if is_searched != 0 {
            return None;
        }
        is_searched = opaque(1);
        // Out of the way, so that a jump leads back: see `the_way_back_in_a_loop_is_a_jump` in tests/tests/old_kernels.rs.
        cold();
        let address = V::widen(headers.src);
        let search = Search::of_reply(client_of(headers), address, headers.src_port(), headers.protocol(), now);
        let Some((hash, nth)) = slow::search(world, search) else {
            let is_to_copy = headers.protocol() == Protocol::Udp && slow::answers_copy(world);
            return is_to_copy.then(|| Verdict::drop(world, Event::MirrorAnswer));
        };
        row = place::<V::Key, _>(flows, hash, nth).unwrap_or(RawWords::NONE);
    };
    note_flow(&flow, world);
    let is_syn = headers.transport.has(tcp_flags::SYN);
    if unlikely(flow.state().has(FlowState::FOREIGN) && !is_syn) {
        note!(world, Step::Foreign {});
        return None;
    }
    let vip = VipRef(world.vip(flow.vip().into())?);
    // The preview address that the client sent to is none any more.
    if vip.is_none() {
        note!(world, Step::VipGone {});
        return None;
    }
    let deployment = backend.deployment();
    let is_udp = headers.protocol() == Protocol::Udp;
    let colour = Colour::from_u8(backend.colour());
    let has_news = has_news(headers, flow.state());
    if unlikely(has_news) {
        let call = Answering { flow: *flow.flow(), transport: headers.transport, word: None, deployment, colour, now };
        match slow::answer(world, flow.words(), call, || client_of(headers), flow.vip())? {
            Answer::Ours | Answer::NeedsWord => {}
            Answer::Foreign => {
                note!(world, Step::Foreign {});
                return None;
            }
            Answer::Refusal => {
                note!(world, Step::Refusal {});
                return Some(Verdict::drop(world, Event::SecondChance));
            }
        }
        if flow.state().is_ended_by_command() && headers.transport.can_be_reset() {
            note!(world, Step::EndedByCommand {});
            return Some(Verdict::reset(hook.direction, world));
        }
    }
    // What a cut has ended must not be heard of again. A TCP client must: what it answers ends the connection at both ends. A
    // segment with news may have no answer. A packet that is no reply may open a flow, and reads the live word then: so it is
    // read only now.
    if is_udp || (unlikely(has_news) && headers.transport.can_be_reset()) {
        let Some(word) = timed::read(deployment, false, world) else {
            return Some(Verdict::drop(world, Event::MissingRow));
        };
        if ended_by_switch(flow.flow(), colour, deployment, word, world, now) {
            return Some(if is_udp {
                Verdict::drop(world, Event::EndedFlow)
            } else {
                Verdict::reset(hook.direction, world)
            });
        }
    }
    Some(send(headers, &mut flow, vip, hook, writer))
}

/// The client's end, of a packet to it.
#[inline(always)]
fn client_of<V: Flows>(headers: &Headers<V>) -> Client {
    Client { address: V::widen(headers.dst), port: headers.dst_port(), family: V::FAMILY }
}

/// Whether a datagram came after a long silence. The client may talk to the backend itself, from a port that it once used for the VIP.
#[inline(always)]
fn is_over<V: Flows>(flow: &FlowRef, backend: BackendRef, headers: &Headers<V>, hook: &Hook<'_, impl World>) -> bool {
    if headers.protocol() != Protocol::Udp || flow.was_seen_at(hook.now) {
        return false;
    }
    let settings = hook.world.deployment(backend.deployment());
    let is_over = settings.is_none_or(|row| is_silent(flow.flow(), Protocol::Udp, row, hook.now));
    if EXPLAINS && is_over {
        hook.world.note(Step::Silent { last_seen: flow.flow().last_seen.into() });
    }
    is_over
}

/// Whether the packet may say something new of its flow.
#[inline(always)]
fn has_news<V: Flows>(headers: &Headers<V>, state: FlowState) -> bool {
    match headers.protocol() {
        Protocol::Udp => !state.has(FlowState::ANSWERED),
        Protocol::Tcp => {
            // Of a client that says nothing more, the backend alone can be heard, so that a switch ends the connection with its
            // next segment. And a tester is to hear nothing from the colour that is live.
            const STATE: u32 = FlowState::CONFIRMED
                | FlowState::ANSWERED
                | FlowState::IDLE_ONLY
                | FlowState::CLIENT_FIN
                | FlowState::FOREIGN
                | FlowState::DOUBTFUL;
            state.0 & STATE != FlowState::CONFIRMED | FlowState::ANSWERED
                || headers.transport.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0
        }
    }
}

/// Rewrites the packet towards the client.
#[inline(always)]
fn send<V: Flows + Rewritable, W: World>(
    headers: &Headers<V>,
    flow: &mut FlowRef,
    vip: VipRef,
    hook: &Hook<'_, W>,
    writer: &mut impl Writer,
) -> Verdict {
    let is_own = flow.state().has(FlowState::OWN);
    if EXPLAINS && is_own {
        hook.world.note(Step::Own {});
    }
    if EXPLAINS && hook.direction != Direction::Egress && headers.hop_limit <= 1 {
        hook.world.note(Step::TtlSpent {});
    }
    let exit = match hook.direction {
        Direction::Egress => Exit::TO_STACK,
        Direction::Early if headers.hop_limit <= 1 || is_own => Exit::DEFERRED,
        Direction::Ingress if is_own => Exit::TO_SELF,
        Direction::Early | Direction::Ingress => {
            if headers.hop_limit <= 1 {
                flow.see(hook.now);
                hook.world.count(Event::TtlExpired);
                return Verdict::PASS;
            }
            next_hop::to_client(flow, vip.address::<V>(), headers, hook)
        }
    };
    if exit.action == Action::Defer {
        return Verdict::DEFER;
    }
    flow.see(hook.now);
    if hook.direction == Direction::Ingress && exit.action == Action::Deliver {
        note!(hook.world, Step::ForEgress {});
        // Unmodified: the host would take a packet from its own VIP for a martian. It is restored by
        // the egress program of the interface that it leaves by.
        return Verdict::PASS;
    }
    note!(hook.world, Step::Restored { row: flow.vip().into() });
    let edit = Edit { end: End::Source, address: vip.address::<V>(), port: vip.port(), hop: exit.hop };
    if writer.rewrite(headers, &edit).is_none() {
        return Verdict::drop(hook.world, Event::Malformed);
    }
    Verdict::out_of(exit)
}
