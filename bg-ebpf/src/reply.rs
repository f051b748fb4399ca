//! Backend to client: the source that the client knows is restored.

use crate::{
    Direction, Hook, Verdict,
    flow_ref::{BackendRef, FlowRef},
    forward::{forward_key, state_bits, vip_row},
    headers::{Headers, tcp_flags},
    lifetime, next_hop,
    rewrite::{Edit, End, Rewritable, Writer},
    tables::{FlowTable, Insert, Tables},
};
use bg_common::{Event, NextHop, Protocol};

/// A packet of a backend to a client whose flow has a reply entry.
#[inline(always)]
pub fn restore<V: Rewritable, T: Tables + FlowTable<V::Key>>(
    headers: &Headers<V>,
    flow: FlowRef,
    hook: Hook<'_, T, impl Writer>,
    now: u32,
) -> Verdict {
    let tables = hook.tables;
    let (Some(backend), Some(vip)) = (tables.backend(flow.backend()), tables.vip(vip_row(flow))) else {
        return Verdict::drop(tables, Event::MissingRow);
    };
    // A row of zeros: the preview address that the client sent to is none any more.
    if !BackendRef(backend).is(flow.epoch()) || flow.connection_ended() || vip.family == 0 {
        return Verdict::PASS;
    }
    if headers.protocol == Protocol::Udp {
        // What a cut has ended must not be heard of again. A TCP client must: its answer to this segment meets
        // the new colour, which resets it.
        let Some(word) = tables.live(flow.deployment()) else { return Verdict::drop(tables, Event::MissingRow) };
        if lifetime::ended_by_switch(flow, word, tables, now) {
            return Verdict::drop(tables, Event::EndedFlow);
        }
    }
    let silent = headers.protocol == Protocol::Udp && lifetime::is_silent(flow, Protocol::Udp, true, tables, now);
    // An answer that begins something, after a SYN or a long silence, may belong to a flow that never came by
    // the VIP: the client talks to the backend itself, by a port that it once used for the VIP.
    let begins = silent || headers.flags & tcp_flags::SYN != 0;
    let ends = headers.flags & (tcp_flags::FIN | tcp_flags::RST) != 0;
    if begins || ends || flow.is_first_in_span(now) {
        let key = forward_key::<V>(headers.dst, headers.dst_port(), vip, headers);
        match tables.flow(&key).map(FlowRef).filter(|forward| forward.is_flow_of(flow)) {
            Some(forward) if !begins || lifetime::is_open(forward, flow, headers.protocol, tables, now) => {
                if ends {
                    forward.add_backend_state(state_bits(headers));
                }
            }
            _ if begins => {
                flow.retire();
                return Verdict::PASS;
            }
            // Nothing to restore: an entry made by the end of a connection would look open.
            _ if ends => {}
            _ => {
                // Lost under pressure, unless the client's packets have gone elsewhere since.
                tables.store(&key, &flow.other_direction(), Insert::IfAbsent);
            }
        }
    }
    flow.seen(now);
    let hop = match hook.direction {
        Direction::Egress => NextHop::NONE,
        Direction::Ingress => {
            if headers.hop_limit <= 1 {
                tables.count(Event::TtlExpired);
                return Verdict::PASS;
            }
            let vip_address = V::narrow(&vip.addr);
            let hop = next_hop::towards::<V>(vip_address, headers.dst, headers, flow.next_hop(), &hook, now);
            if !hop.is_some() {
                // Untouched: the host would take a packet from its own VIP for a martian. It is restored by
                // the egress program of the interface that it leaves by.
                return Verdict::PASS;
            }
            hop
        }
    };
    let edit = Edit { end: End::Source, address: V::narrow(&vip.addr), port: vip.port, hop };
    if hook.writer.rewrite(headers, &edit).is_none() {
        return Verdict::drop(hook.tables, Event::Malformed);
    }
    Verdict::out_of(hop)
}
