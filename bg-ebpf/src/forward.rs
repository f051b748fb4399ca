//! Client to backend.

use crate::{
    Action, Direction, Hook, Verdict,
    choice::{self, Chosen},
    desk::{Desk, desk},
    flow_ref::{BackendRef, FlowRef},
    flow_table::{Stored, rolled},
    headers::{Headers, IpVersion, ports, tcp_flags},
    lifetime,
    next_hop::{self, Exit},
    rewrite::{Edit, End, Rewritable, Writer},
    tables::{Aside, FlowTable, Tables},
    unlikely,
};
use bg_common::{Be16, Event, Flow, FlowState, LiveFlags, LiveWord, Mode, Protocol, Role, ServiceKey, ServiceRow};

/// How many places of a Maglev table are tried for a flow whose reply would look like another's.
const CHOICES: u32 = 3;

/// Where a packet goes, and whether it has opened its flow.
#[derive(Clone, Copy)]
pub struct Target {
    backend: BackendRef,
    opened: bool,
}

/// The live word that a packet has read, and whose it is. A packet reads it once.
#[derive(Clone, Copy)]
pub struct LiveReading {
    /// Index of the deployment; of no deployment if nothing has been read.
    deployment: u32,
    word: LiveWord,
}

impl LiveReading {
    /// Nothing has been read.
    pub const NONE: Self = Self { deployment: u32::MAX, word: LiveWord(0) };
}

/// The target of a packet. Most have a flow that stands, and nothing to tell of it: these are done here. The others
/// are looked at more closely, in a call.
#[inline(always)]
pub fn target<V: IpVersion, T: Tables + FlowTable<V::Key> + Aside<V>>(
    headers: &Headers<V>,
    there: Option<FlowRef>,
    direction: Direction,
    tables: &T,
    now: u32,
) -> Result<Target, Verdict> {
    let mut standing = None;
    let mut reading = LiveReading::NONE;
    if let Some(flow) = there {
        // Such a SYN is noted, and the second one means something else. So one hook alone must see it.
        if direction == Direction::Early
            && unlikely(headers.opens_connection() && flow.is_established() && !flow.state().has_ended())
        {
            return Err(Verdict::DEFER);
        }
        if let Some(backend) = tables.backend(flow.backend().slot()).map(BackendRef)
            && backend.is(flow.backend())
            && let Some(word) = tables.live(backend.deployment())
        {
            if !unlikely(!is_plain(headers, &flow, word, now)) {
                return Ok(Target { backend, opened: false });
            }
            reading = LiveReading { deployment: backend.deployment().into(), word };
            if !unlikely(lifetime::ended_by_switch(&flow, backend, word, tables, now)) {
                if !unlikely(!has_no_news(headers, flow, backend, tables, now)) {
                    return Ok(Target { backend, opened: false });
                }
                standing = Some(backend);
            }
        }
    } else if unlikely(!tables.may_be_service(choice::filter_hash(&choice::service_key(headers)))) {
        return Err(Verdict::PASS);
    }
    let Some(desk) = desk::<V>(tables) else { return Err(Verdict::PASS) };
    // SAFETY: it is this CPU's, and the packet's that the CPU is at.
    let desk = unsafe { &mut *desk };
    (desk.headers, desk.now, desk.reading, desk.is_known) = (*headers, now, reading, there.is_some());
    desk.key = V::key(headers.src, headers.dst, headers.ports, headers.protocol);
    desk.is_own = tables.is_own();
    if let Some(backend) = standing {
        desk.other_key = reply_key(headers, backend);
        let stay = tables.stay(desk);
        if stay == Stay::WithoutReply as u32 {
            // Lost under pressure. Without it the backend's answers would bear the backend's address.
            tables.store(&desk.other_key, &desk.new_other, false, now);
        }
        if stay != Stay::Over as u32 {
            return Ok(Target { backend, opened: false });
        }
    }
    open(desk, tables)
}

/// Whether this is what most packets are: of an established flow of a user, under a word that asks nothing of open flows,
/// seen in this tick already, and neither the beginning nor the end of anything.
#[inline(always)]
fn is_plain<V: IpVersion>(headers: &Headers<V>, flow: &FlowRef, word: LiveWord, now: u32) -> bool {
    const STATE: u32 = FlowState::ESTABLISHED | FlowState::PREVIEW | FlowState::IDLE_ONLY;
    flow.state().0 & STATE == FlowState::ESTABLISHED
        && headers.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) == 0
        && flow.was_seen_at(now)
        && word.flags() == LiveFlags::NONE
}

/// Whether a packet of a flow that no switch has ended says nothing new of it but that it is there, which is noted.
#[inline(always)]
fn has_no_news<V: IpVersion>(
    headers: &Headers<V>,
    mut flow: FlowRef,
    backend: BackendRef,
    tables: &impl Tables,
    now: u32,
) -> bool {
    let state = flow.state();
    if unlikely(headers.opens_connection() || !state.has(shown_by_client(headers)) || state.has(FlowState::PREVIEW)) {
        return false;
    }
    if !unlikely(!flow.was_seen_at(now)) {
        return true;
    }
    if flow.is_first_in_span(now)
        || lifetime::is_silent(&flow, flow.is_established(), backend.deployment(), tables, now)
    {
        return false;
    }
    flow.seen(now);
    true
}

/// The target of the packet on the desk, which opens a flow if its destination is a virtual address.
#[inline(always)]
fn open<V: IpVersion, T: Tables + FlowTable<V::Key> + Aside<V>>(
    desk: &mut Desk<V>,
    tables: &T,
) -> Result<Target, Verdict> {
    let choice = tables.choose_colour(desk);
    if choice == ColourFound::MissingRow as u32 {
        return Err(Verdict::drop(tables, Event::MissingRow));
    }
    if choice != ColourFound::Yes as u32 {
        return Err(Verdict::PASS);
    }
    for _ in 0..rolled(CHOICES) {
        let Some(backend) = tables.backend(tables.choose_backend(desk)).map(BackendRef) else {
            return Err(Verdict::drop(tables, Event::MissingRow));
        };
        let target = Target { backend, opened: true };
        // The end of a connection that nobody remembers is passed on, not remembered either.
        if desk.headers.flags & tcp_flags::RST != 0 {
            return Ok(Target { opened: false, ..target });
        }
        match remember(desk, tables) {
            Remembered::Yes => return Ok(target),
            Remembered::No => {
                tables.count(Event::Unpinned);
                return Ok(target);
            }
            // Another place of the table. The step (the golden ratio's) is no multiple of any table's length.
            Remembered::LooksLikeAnother => desk.hash = desk.hash.wrapping_add(0x9e37_79b9),
        }
    }
    Err(Verdict::drop(tables, Event::ReplyCollision))
}

/// Whether a flow takes a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// No: it is over.
    Over,
    /// Yes.
    Yes,
    /// Yes, and its reply entry, which is on the desk, is to be stored again.
    WithoutReply,
}

/// Whether a flow that no switch has ended takes the packet. It is over for a reason of its own by long silence, by
/// a SYN that opens another connection, or because the preview address that it came by is none any more.
///
/// News of the connection's end are noted in the reply's entry too.
#[inline(always)]
pub fn stay<V: IpVersion, T: Tables + FlowTable<V::Key>>(desk: &mut Desk<V>, tables: &T) -> Stay {
    let (headers, now) = (&desk.headers, desk.now);
    let Some(mut flow) = tables.flow_slowly(&desk.key) else { return Stay::Over };
    let Some(backend) = tables.backend(flow.backend().slot()).map(BackendRef) else { return Stay::Over };
    if is_other_preview(headers, &flow, backend, tables) {
        return Stay::Over;
    }
    let there = tables.flow_slowly(&desk.other_key);
    // Another flow of this client may have taken the place. What happens here is no news of it.
    let mut reply = there.filter(|reply| reply.is_reply_of(&flow));
    let deployment = backend.deployment();
    let bits = shown_by_client(headers);
    if let Some(reply) = &mut reply {
        reply.note(bits & ENDS);
    }
    let silent = lifetime::is_silent(&flow, flow.is_established(), deployment, tables, now)
        && !reply.is_some_and(|reply| lifetime::is_open(&flow, &reply, deployment, tables, now));
    let over = match headers.protocol {
        Protocol::Udp => silent,
        Protocol::Tcp => {
            headers.opens_connection() && (silent || lifetime::is_reused_by(&mut flow, reply, headers, now))
        }
    };
    if over {
        return Stay::Over;
    }
    flow.seen(now);
    lifetime::note(&mut flow, bits, deployment, tables);
    if there.is_some() {
        return Stay::Yes;
    }
    desk.new_other = Flow { ports: reply_ports(headers, backend), ..flow.other_direction() };
    Stay::WithoutReply
}

/// Whether the address that the flow came by has ceased to be its service's preview address.
#[inline(always)]
fn is_other_preview<V: IpVersion>(
    headers: &Headers<V>,
    flow: &FlowRef,
    backend: BackendRef,
    tables: &impl Tables,
) -> bool {
    flow.state().has(FlowState::PREVIEW)
        && tables.vip(vip_row(flow, backend)).is_none_or(|vip| *vip != choice::service_key(headers))
}

/// Whether a colour was found for a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ColourFound {
    /// No: its destination is no virtual address.
    NoService,
    /// No: the deployment of its service is not there.
    MissingRow,
    /// Yes.
    Yes,
}

/// Chooses the colour of the packet on the desk, which opens a flow if its destination is a virtual address.
#[inline(always)]
pub fn choose_colour<V: IpVersion, T: Tables>(desk: &mut Desk<V>, tables: &T) -> ColourFound {
    let (headers, now, reading) = (&desk.headers, desk.now, desk.reading);
    let Some(row) = tables.service(&choice::service_key(headers)) else { return ColourFound::NoService };
    let word = if reading.deployment == u32::from(row.deployment) {
        reading.word
    } else if let Some(word) = tables.live(row.deployment) {
        word
    } else {
        return ColourFound::MissingRow;
    };
    desk.hash = V::hash(headers);
    let choice = choice::colour(headers, desk.hash, row, word, tables, now);
    desk.backends = choice::table(row, choice.colour);
    let bits = shown_by_client(headers);
    let limit = tables
        .deployment(row.deployment)
        .map_or(0, |deployment| lifetime::limit(deployment, headers.protocol, bits & FlowState::ESTABLISHED != 0));
    let own = if desk.is_own { FlowState::OWN } else { 0 };
    let state = FlowState(FlowState::of_protocol(headers.protocol) | role(row, choice.idle_only) | own);
    desk.new_flow = Flow {
        ports: headers.ports,
        state: state.with(bits).with_limit(limit),
        generation: choice.generation,
        last_seen: now,
        note: if headers.opens_connection() { headers.sequence } else { 0 },
        ..Flow::default()
    };
    ColourFound::Yes
}

/// Chooses the backend at the hash on the desk, and lays out the reply's entry. Its slot, or one that there is not.
#[inline(always)]
pub fn choose_backend<V: IpVersion, T: Tables>(desk: &mut Desk<V>, tables: &T) -> u32 {
    let Some(Chosen { slot, name, backend }) = choice::backend(desk.backends, desk.hash, tables) else {
        return u32::MAX;
    };
    desk.new_flow.backend = name;
    desk.other_key = reply_key(&desk.headers, backend);
    let state = FlowState(desk.new_flow.state.0 & !FlowState::ESTABLISHED | FlowState::REPLY);
    desk.new_other = Flow { ports: reply_ports(&desk.headers, backend), state, note: 0, ..desk.new_flow };
    slot
}

enum Remembered {
    Yes,
    /// The table would not take it, or another CPU was at it.
    No,
    LooksLikeAnother,
}

/// Stores the entries of both directions, the reply's first: it decides whether the backend could tell
/// this flow from another one of the same client.
#[inline(always)]
fn remember<V: IpVersion, T: Tables + FlowTable<V::Key> + Aside<V>>(desk: &mut Desk<V>, tables: &T) -> Remembered {
    let now = desk.now;
    // Twice at most: another CPU may store one between the look and the attempt.
    for _ in 0..rolled(2) {
        let reply = tables.reply_place(desk);
        if reply == ReplyPlace::Anothers as u32 {
            return Remembered::LooksLikeAnother;
        }
        let replaces = reply == ReplyPlace::Ours as u32;
        if stores(tables, &desk.other_key, &desk.new_other, replaces, now) {
            let stored = stores(tables, &desk.key, &desk.new_flow, desk.is_known, now);
            return if stored { Remembered::Yes } else { Remembered::No };
        }
    }
    Remembered::No
}

/// Stores an entry, and counts the flow that may have had to give way.
#[inline(always)]
fn stores<K, T: Tables + FlowTable<K>>(tables: &T, key: &K, flow: &Flow, replaces: bool, now: u32) -> bool {
    let stored = tables.store(key, flow, replaces, now);
    if stored == Stored::PushedOut {
        tables.count(Event::PushedOut);
    }
    stored != Stored::No
}

/// What stands where the reply's entry is to be.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReplyPlace {
    /// Nothing.
    Free,
    /// An entry of this service, or one that nobody needs.
    Ours,
    /// That of another flow that is still open: a backend could not tell the two apart.
    Anothers,
}

/// What stands where the reply's entry, which is on the desk, is to be.
#[inline(always)]
pub fn reply_place<V: IpVersion, T: Tables + FlowTable<V::Key>>(desk: &mut Desk<V>, tables: &T) -> ReplyPlace {
    let Some(reply) = tables.flow_slowly(&desk.other_key) else { return ReplyPlace::Free };
    let Some(its) = tables.backend(reply.backend().slot()).map(BackendRef) else { return ReplyPlace::Ours };
    if !its.is(reply.backend()) || reply.state().has_ended() {
        return ReplyPlace::Ours;
    }
    let Some(ours) = tables.backend(desk.new_other.backend.slot()).map(BackendRef) else { return ReplyPlace::Ours };
    let same_address = (reply.state().0 ^ desk.new_flow.state.0) & FlowState::PREVIEW == 0;
    if its.service() == ours.service() && same_address {
        return ReplyPlace::Ours;
    }
    let Some(vip) = tables.vip(vip_row(&reply, its)) else { return ReplyPlace::Ours };
    let headers = &desk.headers;
    desk.others_key = forward_key::<V>(headers.src, headers.src_port(), vip, headers);
    let is_open = tables.flow_slowly(&desk.others_key).is_some_and(|forward| {
        reply.is_reply_of(&forward) && lifetime::is_open(&forward, &reply, its.deployment(), tables, desk.now)
    });
    if is_open { ReplyPlace::Anothers } else { ReplyPlace::Ours }
}

/// Row of the virtual address that a flow's client sends to.
#[inline(always)]
pub fn vip_row(flow: &FlowRef, backend: BackendRef) -> u32 {
    2 * backend.service() as u32 + flow.state().has(FlowState::PREVIEW) as u32
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
    V::key(backend.address::<V>(), headers.src, reply_ports(headers, backend), headers.protocol)
}

#[inline(always)]
fn reply_ports<V: IpVersion>(headers: &Headers<V>, backend: BackendRef) -> u32 {
    ports(backend.port(), headers.src_port())
}

#[inline(always)]
fn role(row: &ServiceRow, idle_only: bool) -> u32 {
    let preview = if row.role == Role::Preview as u8 { FlowState::PREVIEW } else { 0 };
    if idle_only { preview | FlowState::IDLE_ONLY } else { preview }
}

/// What ends a connection, from either end.
pub const ENDS: u32 =
    FlowState::CLIENT_FIN | FlowState::CLIENT_RESET | FlowState::BACKEND_FIN | FlowState::BACKEND_RESET;

/// What a segment of the client shows of its end. A datagram shows that it is there, and never an end.
#[inline(always)]
fn shown_by_client<V: IpVersion>(headers: &Headers<V>) -> u32 {
    shown(headers, FlowState::CLIENT_FIN, FlowState::CLIENT_RESET)
}

/// What a segment of the backend shows of its end.
#[inline(always)]
pub fn shown_by_backend<V: IpVersion>(headers: &Headers<V>) -> u32 {
    shown(headers, FlowState::BACKEND_FIN, FlowState::BACKEND_RESET)
}

#[inline(always)]
fn shown<V: IpVersion>(headers: &Headers<V>, fin: u32, reset: u32) -> u32 {
    let bit = |flag: u8, bit: u32| if headers.flags & flag != 0 { bit } else { 0 };
    (bit(tcp_flags::SYN, FlowState::ESTABLISHED) ^ FlowState::ESTABLISHED)
        | bit(tcp_flags::FIN, fin)
        | bit(tcp_flags::RST, reset)
}

/// Rewrites the packet towards its target.
#[inline(always)]
pub fn send<V: Rewritable, T: Tables>(
    headers: &Headers<V>,
    target: Target,
    hook: Hook<'_, T, impl Writer>,
    now: u32,
) -> Verdict {
    let Target { backend, opened } = target;
    if opened {
        hook.tables.count_flow(backend.service(), backend.colour());
    }
    let address = backend.address::<V>();
    let is_local = backend.mode() == Mode::Local as u8;
    if hook.direction == Direction::Early && (is_local || headers.hop_limit <= 1) {
        return Verdict::DEFER;
    }
    let exit = if is_local {
        Exit::TO_STACK
    } else if headers.hop_limit <= 1 {
        // Untouched, so that what the host says of it names what the client has sent.
        hook.tables.count(Event::TtlExpired);
        return Verdict::PASS;
    } else {
        next_hop::to_backend(backend, headers, &hook, now)
    };
    if exit.action == Action::Defer {
        return Verdict::DEFER;
    }
    let edit = Edit { end: End::Destination, address, port: backend.port(), hop: exit.hop };
    if hook.writer.rewrite(headers, &edit).is_none() {
        return Verdict::drop(hook.tables, Event::Malformed);
    }
    hook.tables.count_packet(backend.service(), backend.colour(), hook.frame_len as u64);
    Verdict::out_of(exit)
}
