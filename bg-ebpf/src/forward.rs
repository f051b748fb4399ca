//! Client to backend.

use crate::{
    Hook, Verdict,
    choice::{self, Chosen},
    flow_ref::{BackendRef, FlowRef},
    headers::{Headers, IpVersion, ports, tcp_flags},
    lifetime, next_hop,
    rewrite::{Edit, End, Rewritable, Writer},
    tables::{FlowTable, Insert, Tables},
};
use bg_common::{
    Be16, Event, Flow, FlowRole, LiveWord, Mode, NextHop, Protocol, Role, ServiceKey, ServiceRow, TcpState,
};

/// How many places of a Maglev table are tried for a flow whose reply would look like another's.
const CHOICES: u32 = 3;

/// Where a packet goes, and what it counts as.
#[derive(Clone, Copy)]
pub struct Target {
    backend: BackendRef,
    service: u16,
    colour: u8,
    opened: bool,
}

/// The live word that a packet has read, and whose it is. A packet reads it once.
pub type LiveReading = Option<(u16, LiveWord)>;

/// The target of a packet whose flow has an entry; or, if that flow is over, the live word that said so.
#[inline(always)]
pub fn known<V: IpVersion, T: Tables + FlowTable<V::Key>>(
    headers: &Headers<V>,
    flow: FlowRef,
    tables: &T,
    now: u32,
) -> Result<Target, LiveReading> {
    let deployment = flow.deployment();
    let (Some(word), Some(backend)) = (tables.live(deployment), tables.backend(flow.backend())) else {
        return Err(None);
    };
    let backend = BackendRef(backend);
    let over = Err(Some((deployment, word)));
    if !backend.is(flow.epoch())
        || lifetime::ended_by_switch(flow, word, tables, now)
        || is_other_preview(headers, flow, tables)
    {
        return over;
    }
    if headers.opens_connection() || !flow.was_seen_at(now) {
        if is_over(headers, flow, backend, tables, now) {
            return over;
        }
        flow.seen(now);
    }
    flow.add_client_state(state_bits(headers));
    Ok(Target { backend, service: flow.service(), colour: flow.colour(), opened: false })
}

/// Whether the flow is over for a reason of its own: long silence, or a SYN that opens another connection. Asked
/// at a flow's first packet in a tick, and for a SYN; now and then it looks after the reply's entry.
#[inline(always)]
fn is_over<V: IpVersion, T: Tables + FlowTable<V::Key>>(
    headers: &Headers<V>,
    flow: FlowRef,
    backend: BackendRef,
    tables: &T,
    now: u32,
) -> bool {
    let silent = lifetime::is_silent(flow, headers.protocol, flow.is_established(), tables, now);
    if !silent && !headers.opens_connection() && !flow.is_first_in_span(now) {
        return false;
    }
    let key = reply_key(headers, backend);
    let reply = tables.flow(&key).map(FlowRef);
    let silent = silent && !reply.is_some_and(|reply| lifetime::is_open(flow, reply, headers.protocol, tables, now));
    let over = match headers.protocol {
        Protocol::Udp => silent,
        Protocol::Tcp => headers.opens_connection() && (silent || lifetime::is_reused_by(flow, reply, headers, now)),
    };
    if !over && reply.is_none() {
        // Lost under pressure. Without it the backend's answers would bear the backend's address.
        tables.store(&key, &flow.other_direction(), Insert::IfAbsent);
    }
    over
}

/// Whether the address that the flow came by has ceased to be its service's preview address.
#[inline(always)]
fn is_other_preview<V: IpVersion>(headers: &Headers<V>, flow: FlowRef, tables: &impl Tables) -> bool {
    flow.role() & FlowRole::PREVIEW != 0
        && tables.vip(vip_row(flow)).is_none_or(|vip| *vip != choice::service_key(headers))
}

/// The target of a packet that no valid entry covers: it opens a flow if its destination is a virtual
/// address.
#[inline(always)]
pub fn open<V: IpVersion, T: Tables + FlowTable<V::Key>>(
    headers: &Headers<V>,
    key: &V::Key,
    reading: LiveReading,
    tables: &T,
    now: u32,
) -> Result<Target, Verdict> {
    let Some(row) = tables.service(&choice::service_key(headers)) else { return Err(Verdict::PASS) };
    let word = match reading {
        Some((deployment, word)) if deployment == row.deployment => word,
        _ => tables.live(row.deployment).ok_or_else(|| Verdict::drop(tables, Event::MissingRow))?,
    };
    let mut hash = V::hash(headers);
    let choice = choice::colour(headers, hash, row, word, tables, now);
    let mut flow = Flow {
        generation: choice.generation,
        last_seen: now,
        isn: if headers.opens_connection() { headers.sequence } else { 0 },
        service: row.service,
        deployment: row.deployment,
        role: role(row, choice.idle_only),
        colour: choice.colour as u8,
        client_state: state_bits(headers),
        ..Flow::default()
    };
    for _ in 0..CHOICES {
        let Chosen { slot, epoch, backend } =
            choice::backend(row, choice.colour, hash, tables).map_err(|event| Verdict::drop(tables, event))?;
        (flow.backend, flow.epoch) = (slot, epoch);
        let target = Target { backend, service: row.service, colour: choice.colour as u8, opened: true };
        // The end of a connection that nobody remembers is passed on, not remembered either.
        if headers.flags & tcp_flags::RST != 0 {
            return Ok(Target { opened: false, ..target });
        }
        match remember(headers, key, &mut flow, backend, tables, now) {
            Remembered::Yes => return Ok(target),
            Remembered::TableFull => {
                tables.count(Event::Unpinned);
                return Ok(target);
            }
            // Another place of the table. The step (the golden ratio's) is no multiple of any table's length.
            Remembered::LooksLikeAnother => hash = hash.wrapping_add(0x9e37_79b9),
        }
    }
    Err(Verdict::drop(tables, Event::ReplyCollision))
}

enum Remembered {
    Yes,
    TableFull,
    LooksLikeAnother,
}

/// Stores the entries of both directions, the reply's first: it decides whether the backend could tell
/// this flow from another one of the same client.
#[inline(always)]
fn remember<V: IpVersion, T: Tables + FlowTable<V::Key>>(
    headers: &Headers<V>,
    key: &V::Key,
    flow: &mut Flow,
    backend: BackendRef,
    tables: &T,
    now: u32,
) -> Remembered {
    let reply_key = reply_key(headers, backend);
    // Twice at most: another CPU may store one between the look and the attempt.
    for _ in 0..2 {
        let there = tables.flow(&reply_key).map(FlowRef);
        if there.is_some_and(|there| belongs_to_another::<V, T>(there, flow, headers, tables, now)) {
            return Remembered::LooksLikeAnother;
        }
        let how = if there.is_some() { Insert::Replace } else { Insert::IfAbsent };
        flow.role |= FlowRole::REPLY;
        let stored = tables.store(&reply_key, flow, how);
        flow.role &= !FlowRole::REPLY;
        if stored {
            let stored = tables.store(key, flow, Insert::Replace);
            return if stored { Remembered::Yes } else { Remembered::TableFull };
        }
    }
    Remembered::TableFull
}

/// Whether a reply entry that is already there serves another flow that is still open.
#[inline(always)]
fn belongs_to_another<V: IpVersion, T: Tables + FlowTable<V::Key>>(
    reply: FlowRef,
    flow: &Flow,
    headers: &Headers<V>,
    tables: &T,
    now: u32,
) -> bool {
    let same_vip = reply.service() == flow.service && (reply.role() ^ flow.role) & FlowRole::PREVIEW == 0;
    if same_vip || reply.connection_ended() {
        return false;
    }
    let Some(vip) = tables.vip(vip_row(reply)) else { return false };
    let key = forward_key::<V>(headers.src, headers.src_port(), vip, headers);
    tables.flow(&key).map(FlowRef).is_some_and(|forward| {
        forward.is_flow_of(reply) && lifetime::is_open(forward, reply, headers.protocol, tables, now)
    })
}

/// Row of the virtual address that a flow's client sends to.
#[inline(always)]
pub fn vip_row(flow: FlowRef) -> u32 {
    let preview = flow.role() & FlowRole::PREVIEW != 0;
    2 * flow.service() as u32 + preview as u32
}

/// Key of the forward entry of a client's flow to `vip`.
#[inline(always)]
pub fn forward_key<V: IpVersion>(
    client: V::Address,
    client_port: Be16,
    vip: &ServiceKey,
    headers: &Headers<V>,
) -> V::Key {
    V::key(client, V::narrow(&vip.addr), ports(client_port, vip.port), headers.protocol)
}

/// Key of the reply entry: what the backend's answers look like.
#[inline(always)]
fn reply_key<V: IpVersion>(headers: &Headers<V>, backend: BackendRef) -> V::Key {
    V::key(backend.address::<V>(), headers.src, ports(backend.port(), headers.src_port()), headers.protocol)
}

#[inline(always)]
fn role(row: &ServiceRow, idle_only: bool) -> u8 {
    let preview = if row.role == Role::Preview as u8 { FlowRole::PREVIEW } else { 0 };
    if idle_only { preview | FlowRole::IDLE_ONLY } else { preview }
}

/// What a segment shows of its sender's end.
#[inline(always)]
pub fn state_bits<V: IpVersion>(headers: &Headers<V>) -> u8 {
    if headers.protocol == Protocol::Udp {
        return 0;
    }
    let mut bits = 0;
    if headers.flags & tcp_flags::SYN == 0 {
        bits |= TcpState::ESTABLISHED;
    }
    if headers.flags & tcp_flags::FIN != 0 {
        bits |= TcpState::FIN;
    }
    if headers.flags & tcp_flags::RST != 0 {
        bits |= TcpState::RESET;
    }
    bits
}

/// Rewrites the packet towards its target.
#[inline(always)]
pub fn send<V: Rewritable, T: Tables>(
    headers: &Headers<V>,
    target: Target,
    hook: Hook<'_, T, impl Writer>,
    now: u32,
) -> Verdict {
    let Target { backend, service, colour, opened } = target;
    let address = backend.address::<V>();
    let hop = if backend.mode() == Mode::Local as u8 {
        NextHop::NONE
    } else if headers.hop_limit <= 1 {
        // Untouched, so that what the host says of it names what the client has sent.
        hook.tables.count(Event::TtlExpired);
        return Verdict::PASS;
    } else {
        next_hop::towards::<V>(headers.src, address, headers, backend.next_hop(), &hook, now)
    };
    let edit = Edit { end: End::Destination, address, port: backend.port(), hop };
    if hook.writer.rewrite(headers, &edit).is_none() {
        return Verdict::drop(hook.tables, Event::Malformed);
    }
    hook.tables.count_packet(service, colour, hook.frame_len as u64, opened);
    Verdict::out_of(hop)
}
