//! Client to backend.

use super::{
    classify::Found,
    slow::{self, Chosen, LiveReading, Open, Opening, Placed, Refreshing, Search, SlowPath, Stay},
};
use crate::{
    egress::{
        next_hop,
        rewrite::{Edit, End, Rewritable, Writer},
    },
    flow::{
        key::{Key as _, Match},
        memory::RawWords,
        row::FlowRef,
        table::{Stored, find},
    },
    hint::{rolled, unlikely},
    hook::{Direction, Hook},
    policy::{
        colour::Client,
        connection::{is_refused, shown_by_client},
        lifetime::{depends_on_terms, ended_by_switch, is_silent},
    },
    rows::BackendRef,
    verdict::{Action, Exit, Verdict},
    wire::headers::{Headers, tcp_flags},
    world::{Flows, World},
};
use bg_common::{
    Addr, Be16, Colour, Event, Flow, FlowBackend, FlowKey6, FlowState, LiveWord, Mode, Protocol, TableSpan,
};

/// Entries of a Maglev table that are tried for a flow that its backend could not tell from another one.
const CHOICES: u32 = 3;

/// A packet on its way in: the virtual address that it was sent to, and its flow, if there are such. All fields have a value in
/// any case, as those of [`Found`].
#[derive(Clone, Copy)]
pub struct Arrival {
    is_to_vip: bool,
    is_known: bool,
    vip: u16,
    flow: FlowRef,
}

impl Arrival {
    /// Looks for the flow of a packet.
    #[inline(always)]
    pub fn new<V: Flows>(headers: &Headers<V>, vip: Found, world: &impl World) -> Self {
        let none = FlowRef::new(RawWords::NONE, 0, Flow::from_words([0; 3]));
        let number = vip.number as u16;
        let mut arrival = Self { is_to_vip: vip.is_some, is_known: false, vip: number, flow: none };
        if vip.is_some {
            let flows = V::flows(world);
            let key = V::key(headers.src, headers.src_port(), number);
            if let Some(flow) = find(flows, &key, key.hash(vip.salt, flows), Match::Whole) {
                (arrival.is_known, arrival.flow) = (true, flow);
            }
        }
        arrival
    }

    /// Whether it was sent to a virtual address.
    #[inline(always)]
    pub const fn is_to_vip(&self) -> bool {
        self.is_to_vip
    }

    /// Whether there is a flow.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.is_known
    }
}

/// Where a packet goes.
#[derive(Clone, Copy)]
struct Target {
    backend: BackendRef,
    /// Whether the packet has opened a flow.
    is_new: bool,
    /// Whether the flow table would not take that flow.
    is_unpinned: bool,
}

impl Target {
    const fn known(backend: BackendRef) -> Self {
        Self { backend, is_new: false, is_unpinned: false }
    }
}

/// Sends a packet to its backend.
#[inline(always)]
pub fn forward<V: Flows + Rewritable, W: SlowPath<V>>(
    headers: &Headers<V>,
    arrival: &Arrival,
    hook: &Hook<'_, W>,
    writer: &mut impl Writer,
) -> Verdict {
    match target(headers, arrival, hook) {
        Ok(target) => send(headers, target, hook, writer),
        Err(verdict) => verdict,
    }
}

/// The target of a packet. Most have a flow, and nothing to tell of it: these need no call.
#[inline(always)]
fn target<V: Flows, W: SlowPath<V>>(
    headers: &Headers<V>,
    arrival: &Arrival,
    hook: &Hook<'_, W>,
) -> Result<Target, Verdict> {
    let (world, now) = (hook.world, hook.now);
    let mut reading = LiveReading::NONE;
    let mut old = (FlowState(0), FlowBackend(0));
    if arrival.is_known {
        let mut flow = arrival.flow;
        old = (flow.state(), flow.backend());
        // Such a SYN is noted, and the second one means something else. So one hook alone must see it.
        if hook.direction == Direction::Early
            && unlikely(
                headers.transport.opens_connection()
                    && flow.state().has(FlowState::CONFIRMED)
                    && !flow.state().has_ended(),
            )
        {
            return Err(Verdict::DEFER);
        }
        if let Some(backend) = world.backend(flow.backend().slot()).map(BackendRef)
            && backend.is(flow.backend())
            && let Some(word) = world.live(backend.deployment())
        {
            if !unlikely(!is_plain(headers, &flow, word, now)) {
                return Ok(Target::known(backend));
            }
            let deployment = backend.deployment();
            reading = LiveReading { deployment: deployment.into(), word };
            let is_ended =
                ended_by_switch(flow.flow(), Colour::from_u8(backend.colour()), deployment, word, world, now);
            if !unlikely(is_ended || (is_refused(flow.state()) && !headers.transport.opens_connection())) {
                if !unlikely(!has_no_news(headers, &mut flow, deployment, world, now)) {
                    return Ok(Target::known(backend));
                }
                let call = Refreshing { flow: *flow.flow(), transport: headers.transport, deployment, now };
                match slow::refresh(world, flow.words(), call) {
                    Some(Stay::Over) => {}
                    Some(Stay::Yes) => return Ok(Target::known(backend)),
                    None => return Err(Verdict::drop(world, Event::MissingRow)),
                }
            }
        }
    }
    let call = Opening {
        search: Search {
            client: Client { address: V::widen(headers.src), port: headers.src_port(), family: V::FAMILY },
            address: Addr::default(),
            port: Be16(0),
            protocol: headers.protocol(),
            is_for_rivals: true,
            vip: arrival.vip,
            now,
            link: 0,
            hash: 0,
            key: FlowKey6::default(),
        },
        transport: headers.transport,
        reading,
        tuple_hash: V::tuple_hash(headers.src, headers.dst, headers.ports, headers.protocol()),
        old_state: old.0,
        old_backend: old.1,
        is_known: arrival.is_known,
        is_own: world.is_own(),
        backends: TableSpan::default(),
        flow: Flow::default(),
    };
    let Some(open) = Open::new(world, call) else { return Err(Verdict::drop(world, Event::MissingRow)) };
    open_flow(headers, arrival, open, world)
}

/// Whether this is what most packets are: of an established flow of a user, under a word that asks nothing of it,
/// seen in this tick already, and neither the beginning nor the end of anything.
#[inline(always)]
fn is_plain<V: Flows>(headers: &Headers<V>, flow: &FlowRef, word: LiveWord, now: u32) -> bool {
    const STATE: u32 = FlowState::CONFIRMED | FlowState::IDLE_ONLY | FlowState::BACKEND_RESET;
    flow.state().0 & STATE == FlowState::CONFIRMED
        && headers.transport.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) == 0
        && flow.was_seen_at(now)
        && !depends_on_terms(flow.flow().generation, word)
}

/// Whether a packet of a flow that no switch has ended says nothing new of it but that it is there, which is noted.
#[inline(always)]
fn has_no_news<V: Flows>(
    headers: &Headers<V>,
    flow: &mut FlowRef,
    deployment: u16,
    world: &impl World,
    now: u32,
) -> bool {
    let state = flow.state();
    let is_first_answered = headers.protocol() == Protocol::Udp
        && state.0 & (FlowState::ANSWERED | FlowState::CONFIRMED) == FlowState::ANSWERED;
    if unlikely(
        headers.transport.opens_connection() || !state.has(shown_by_client(&headers.transport)) || is_first_answered,
    ) {
        return false;
    }
    if !unlikely(!flow.was_seen_at(now)) {
        return true;
    }
    let Some(row) = world.deployment(deployment) else { return false };
    if is_silent(flow.flow(), headers.protocol(), row, now) {
        return false;
    }
    flow.see(now);
    true
}

/// Opens a flow.
#[inline(always)]
fn open_flow<V: Flows, W: SlowPath<V>>(
    headers: &Headers<V>,
    arrival: &Arrival,
    mut open: Open<'_, W>,
    world: &W,
) -> Result<Target, Verdict> {
    match open.choose_colour::<V>() {
        Chosen::Yes => {}
        Chosen::NoService => return Err(Verdict::PASS),
        Chosen::MissingRow => return Err(Verdict::drop(world, Event::MissingRow)),
    }
    for _ in rolled(CHOICES) {
        let slot = match open.choose_backend::<V>() {
            Placed::At(slot) => slot,
            Placed::MissingRow => return Err(Verdict::drop(world, Event::MissingRow)),
        };
        let Some(backend) = world.backend(slot).map(BackendRef) else {
            return Err(Verdict::drop(world, Event::MissingRow));
        };
        // The end of a connection that nobody remembers is passed on, not remembered either.
        if headers.transport.flags & tcp_flags::RST != 0 {
            return Ok(Target::known(backend));
        }
        if open.has_rival::<V>() {
            open.step();
            continue;
        }
        let stored = open.store::<V>(if arrival.is_known { Some(arrival.flow.words()) } else { None });
        if stored == Stored::Evicted {
            world.count(Event::PushedOut);
        }
        return Ok(Target { backend, is_new: true, is_unpinned: stored == Stored::No });
    }
    Err(Verdict::drop(world, Event::ReplyCollision))
}

/// Rewrites the packet towards its target.
#[inline(always)]
fn send<V: Rewritable, W: World>(
    headers: &Headers<V>,
    target: Target,
    hook: &Hook<'_, W>,
    writer: &mut impl Writer,
) -> Verdict {
    let (world, backend) = (hook.world, target.backend);
    let is_local = backend.mode() == Mode::Local as u8;
    let is_spent = !is_local && headers.hop_limit <= 1;
    let exit = if hook.direction == Direction::Early && (is_local || is_spent) {
        Exit::DEFERRED
    } else if is_local || is_spent {
        Exit::TO_STACK
    } else {
        next_hop::to_backend(backend, headers, hook)
    };
    // A flow that has a row is counted by the hook that has opened it, the others by the one that sends them on.
    if target.is_new && !(target.is_unpinned && exit.action == Action::Defer) {
        world.count_flow(backend.service(), backend.colour());
        if target.is_unpinned {
            world.count(Event::Unpinned);
        }
    }
    if exit.action == Action::Defer {
        return Verdict::DEFER;
    }
    if is_spent {
        // The stack has a route to the backend, which it may not have to a virtual address, and says so to the client. What it
        // says is translated on its way out.
        world.count(Event::TtlExpired);
    }
    let edit = Edit { end: End::Destination, address: backend.address::<V>(), port: backend.port(), hop: exit.hop };
    if writer.rewrite(headers, &edit).is_none() {
        return Verdict::drop(world, Event::Malformed);
    }
    world.count_packet(backend.service(), backend.colour(), hook.frame_len as u64);
    Verdict::out_of(exit)
}
