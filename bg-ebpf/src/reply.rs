//! Backend to client: the source that the client knows is restored.

use crate::{
    Action, Direction, Hook, Verdict,
    desk::{Desk, desk},
    flow_ref::{BackendRef, FlowRef},
    forward::{ENDS, forward_key, shown_by_backend, vip_row},
    headers::{Headers, IpVersion, ports, tcp_flags},
    lifetime,
    next_hop::{self, Exit},
    rewrite::{Edit, End, Rewritable, Writer},
    tables::{Aside, FlowTable, Tables},
    unlikely,
};
use bg_common::{Event, FlowState, Protocol};

/// A packet of a backend to a client whose flow has a reply entry.
#[inline(always)]
pub fn restore<V: Rewritable, T: Tables + FlowTable<V::Key> + Aside<V>>(
    headers: &Headers<V>,
    mut flow: FlowRef,
    hook: Hook<'_, T, impl Writer>,
    now: u32,
) -> Verdict {
    let tables = hook.tables;
    let Some(backend) = tables.backend(flow.backend().slot()).map(BackendRef) else {
        return Verdict::drop(tables, Event::MissingRow);
    };
    let may_answer = !flow.state().has(FlowState::GONE) || headers.flags & tcp_flags::SYN != 0;
    if !backend.is(flow.backend()) || !may_answer {
        return Verdict::PASS;
    }
    let Some(vip) = tables.vip(vip_row(&flow, backend)) else { return Verdict::drop(tables, Event::MissingRow) };
    // A row of zeros: the preview address that the client sent to is none any more.
    if vip.family == 0 {
        return Verdict::PASS;
    }
    let deployment = backend.deployment();
    if headers.protocol == Protocol::Udp {
        // What a cut has ended must not be heard of again. A TCP client must: its answer to this segment meets
        // the new colour, which resets it.
        let Some(word) = tables.live(deployment) else { return Verdict::drop(tables, Event::MissingRow) };
        if lifetime::ended_by_switch(&flow, backend, word, tables, now) {
            return Verdict::drop(tables, Event::EndedFlow);
        }
    }
    let silent = headers.protocol == Protocol::Udp && lifetime::is_silent(&flow, true, deployment, tables, now);
    // An answer that begins something, after a SYN or a long silence, may belong to a flow that never came by
    // the VIP: the client talks to the backend itself, by a port that it once used for the VIP.
    let begins = silent || headers.flags & tcp_flags::SYN != 0;
    let bits = shown_by_backend(headers);
    // A datagram shows nothing new.
    let news = match headers.protocol {
        Protocol::Tcp => bits,
        Protocol::Udp => 0,
    };
    if unlikely(begins || !flow.state().has(news) || flow.is_first_in_span(now)) {
        let Some(desk) = desk::<V>(tables) else { return Verdict::PASS };
        // SAFETY: it is this CPU's, and the packet's that the CPU is at.
        let desk = unsafe { &mut *desk };
        (desk.headers, desk.now) = (*headers, now);
        desk.key = V::key(headers.src, headers.dst, headers.ports, headers.protocol);
        desk.other_key = forward_key::<V>(headers.dst, headers.dst_port(), vip, headers);
        (desk.begins, desk.identity) = (begins, flow.state().0 & FlowState::IDENTITY);
        let answer = tables.answer(desk);
        if answer == Answer::Foreign as u32 {
            return Verdict::PASS;
        }
        if answer == Answer::WithoutForward as u32 {
            // Lost under pressure, unless the client's packets have gone elsewhere since.
            desk.new_other.ports = ports(headers.dst_port(), vip.port);
            tables.store(&desk.other_key, &desk.new_other, false, now);
        }
    }
    let exit = match hook.direction {
        Direction::Egress => Exit::TO_STACK,
        Direction::Early if headers.hop_limit <= 1 || flow.state().has(FlowState::OWN) => return Verdict::DEFER,
        Direction::Ingress if flow.state().has(FlowState::OWN) => Exit::TO_SELF,
        Direction::Early | Direction::Ingress => {
            if headers.hop_limit <= 1 {
                flow.seen(now);
                tables.count(Event::TtlExpired);
                return Verdict::PASS;
            }
            next_hop::to_client(&mut flow, V::narrow(&vip.addr), headers, &hook, now)
        }
    };
    if exit.action == Action::Defer {
        return Verdict::DEFER;
    }
    lifetime::note(&mut flow, bits, deployment, tables);
    flow.seen(now);
    if hook.direction == Direction::Ingress && exit.action == Action::Deliver {
        // Untouched: the host would take a packet from its own VIP for a martian. It is restored by
        // the egress program of the interface that it leaves by.
        return Verdict::PASS;
    }
    let edit = Edit { end: End::Source, address: V::narrow(&vip.addr), port: vip.port, hop: exit.hop };
    if hook.writer.rewrite(headers, &edit).is_none() {
        return Verdict::drop(hook.tables, Event::Malformed);
    }
    Verdict::out_of(exit)
}

/// Whose an answer is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Of no flow that came by a virtual address.
    Foreign,
    /// Of a flow of ours.
    Ours,
    /// Of a flow of ours, whose forward entry, which is on the desk, is to be stored again.
    WithoutForward,
}

#[inline(always)]
fn is_answer<V: IpVersion>(forward: &FlowRef, desk: &Desk<V>) -> bool {
    desk.headers.protocol == Protocol::Udp || lifetime::is_answer_to(forward, &desk.headers)
}

/// Looks after the forward entry of the flow of the answer on the desk, and notes there how the connection ends.
#[inline(always)]
pub fn answer<V: IpVersion, T: Tables + FlowTable<V::Key>>(desk: &mut Desk<V>, tables: &T) -> Answer {
    let (begins, now) = (desk.begins, desk.now);
    let ends = shown_by_backend(&desk.headers) & ENDS;
    let Some(mut flow) = tables.flow_slowly(&desk.key) else { return Answer::Foreign };
    // Another CPU has just opened a flow in its place, and may not have stored the forward entry yet.
    if (flow.state().0 ^ desk.identity) & FlowState::IDENTITY != 0 {
        return Answer::Ours;
    }
    let Some(backend) = tables.backend(flow.backend().slot()).map(BackendRef) else { return Answer::Foreign };
    let forward = tables.flow_slowly(&desk.other_key);
    match forward.filter(|forward| flow.is_reply_of(forward)) {
        Some(mut forward)
            if is_answer(&forward, desk)
                && (!begins || lifetime::is_open(&forward, &flow, backend.deployment(), tables, now)) =>
        {
            forward.note(ends);
            // It was taken for another's, before the flow was opened or while the backend had the other one.
            flow.become_state(FlowState(flow.state().0 & !FlowState::GONE));
            Answer::Ours
        }
        // Stored in this tick: the forward entry, which comes second, may be on its way.
        None if begins && flow.idle(now) == 0 => Answer::Ours,
        forward if begins || forward.is_some_and(|forward| !is_answer(&forward, desk)) => {
            flow.note(FlowState::GONE);
            Answer::Foreign
        }
        // Nothing to restore: an entry made by the end of a connection would look open.
        _ if ends != 0 => Answer::Ours,
        // The five-tuple is another flow's now.
        Some(_) => Answer::Ours,
        None => {
            desk.new_other = flow.other_direction();
            Answer::WithoutForward
        }
    }
}
