//! Client to backend.

use super::{
    classify::Found,
    direct,
    mirror::backend_of_copy,
    slow::{self, Chosen, LiveReading, Open, Opening, Placed, Refreshing, Search, SlowPath, Stay},
};
use crate::{
    egress::{
        next_hop,
        rewrite::{Edit, End, Rewritable, Writer},
    },
    flow::{
        key::{FlowVersion, Key as _, Match},
        memory::RawWords,
        row::FlowRef,
        table::{Place, Stored, find},
    },
    hint::unlikely,
    hook::{Direction, Hook},
    policy::{
        backend,
        colour::Client,
        lifetime::{ended_by_switch, is_silent_open},
        timed,
    },
    rows::BackendRef,
    step::Step,
    verdict::{Action, Exit, Verdict},
    wire::headers::{Headers, tcp_flags},
    world::{EXPLAINS, Flows, World, note},
};
use bg_common::{
    Addr, Be16, Colour, Event, Flow, FlowBackend, FlowKey6, FlowState, LiveWord, Mode, Protocol, TableSpan,
};

/// A packet on its way in: the virtual address that it was sent to, and its flow, if there are such. All fields have a value in
/// any case, as those of [`Found`].
#[derive(Clone, Copy)]
pub struct Arrival {
    is_to_vip: bool,
    /// Whether the virtual address has a mirror.
    is_mirrored: bool,
    /// [`World::copy_for`].
    copy_for: u32,
    is_known: bool,
    vip: u16,
    flow: FlowRef,
}

impl Arrival {
    /// Looks for the flow of a packet. A copy has none.
    #[inline(always)]
    pub fn new<V: Flows>(headers: &Headers<V>, vip: Found, hook: &Hook<'_, impl World>) -> Self {
        let world = hook.world;
        let none = FlowRef::new(RawWords::NONE, 0, Flow::from_words([0; 3]));
        let number = vip.number as u16;
        let is_at_tc = vip.is_some && hook.direction == Direction::Ingress;
        let copy_for = if is_at_tc { world.copy_for() } else { 0 };
        let mut arrival = Self {
            is_to_vip: vip.is_some,
            is_mirrored: is_at_tc && vip.is_mirrored,
            copy_for,
            is_known: false,
            vip: number,
            flow: none,
        };
        if vip.is_some && copy_for == 0 {
            let flows = V::flows(world);
            let key = V::key(headers.src, headers.src_port(), number);
            if let Some(flow) = find(flows, &key, key.hash(vip.salt, flows), Match::Whole) {
                note_flow(&flow, world);
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

    /// Whether it is a client's for sure: there is a flow, or it is a copy.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.is_known || self.copy_for != 0
    }
}

/// Notes the flow that was found.
#[inline(always)]
pub(super) fn note_flow(flow: &FlowRef, world: &impl World) {
    let Flow { backend, generation, state, last_seen, note, .. } = *flow.flow();
    note!(
        world,
        Step::Flow {
            backend: backend.0.into(),
            generation: generation.into(),
            state: state.0.into(),
            last_seen: last_seen.into(),
            note: note.into(),
        }
    );
}

/// Where a packet goes.
#[derive(Clone, Copy)]
struct Target {
    backend: BackendRef,
    /// Whether the packet has opened a flow that the flow table would not take. A flow that has a row is counted by the hook that
    /// opens it; this one is opened by each hook, and counted by the one that sends the packet on.
    is_unpinned: bool,
    /// The live word that the packet has read; of a copy, zero.
    word: LiveWord,
}

impl Target {
    const fn known(backend: BackendRef, word: LiveWord) -> Self {
        Self { backend, is_unpinned: false, word }
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
        Ok(target) => send(headers, arrival, target, hook, writer),
        Err(verdict) => verdict,
    }
}

/// The target of a packet.
#[inline(always)]
fn target<V: Flows, W: SlowPath<V>>(
    headers: &Headers<V>,
    arrival: &Arrival,
    hook: &Hook<'_, W>,
) -> Result<Target, Verdict> {
    let (world, now) = (hook.world, hook.now);
    let mut reading = LiveReading::NONE;
    if unlikely(arrival.copy_for != 0) {
        let backend = backend_of_copy(headers, arrival.vip, arrival.copy_for, hook);
        let backend = backend.ok_or_else(|| Verdict::drop(world, Event::MirrorLost))?;
        return Ok(Target::known(backend, LiveWord(0)));
    }
    if arrival.is_known {
        let mut flow = arrival.flow;
        let missing_row = || Verdict::drop(world, Event::MissingRow);
        if let Some(backend) = without_news(headers, &flow, hook) {
            let deployment = backend.deployment();
            let word = timed::read(deployment, judges(&flow), world).ok_or_else(missing_row)?;
            let colour = Colour::from_u8(backend.colour());
            if !unlikely(ended_by_switch(flow.flow(), colour, deployment, word, world, now)) {
                note!(world, Step::Continues {});
                flow.see(now);
                return Ok(Target::known(backend, word));
            }
            reading = LiveReading { deployment: deployment.into(), word };
        }
        if let Some(backend) = backend::of_flow(&flow, world) {
            // Such a SYN is noted, and the second one means something else. So one hook alone must see it.
            if hook.direction == Direction::Early
                && headers.transport.opens_connection()
                && flow.state().has(FlowState::CONFIRMED)
                && !flow.state().has_ended()
            {
                note!(world, Step::SynInside {});
                return Err(Verdict::DEFER);
            }
            let deployment = backend.deployment();
            let word = if reading.deployment == u32::from(deployment) {
                reading.word
            } else {
                let judges = judges(&flow) || headers.transport.opens_connection();
                timed::read(deployment, judges, world).ok_or_else(missing_row)?
            };
            let (row, colour) = (*flow.flow(), Colour::from_u8(backend.colour()));
            let is_direct = backend.mode() >= Mode::L2dsr as u8;
            let call = Refreshing { flow: row, transport: headers.transport, word, deployment, colour, now, is_direct };
            match slow::refresh(world, flow.words(), call).ok_or_else(missing_row)? {
                Stay::Yes => {
                    note!(world, Step::Continues {});
                    return Ok(Target::known(backend, word));
                }
                Stay::Frozen => {
                    wait(deployment, hook)?;
                    note!(world, Step::Continues {});
                    flow.see(now);
                    return Ok(Target::known(backend, word));
                }
                Stay::Reset => return Err(Verdict::reset(hook.direction, world)),
                Stay::Over => {}
            }
            reading = LiveReading { deployment: deployment.into(), word };
        } else {
            note!(world, Step::BackendGone {});
        }
    } else {
        note!(world, Step::NoFlow {});
    }
    open_flow(headers, arrival, reading, hook)
}

/// Whether a packet of the flow judges the conditions of a switch. One whose flow was answered need not: it stays where it is.
#[inline(always)]
fn judges(flow: &FlowRef) -> bool {
    !flow.state().has(FlowState::ANSWERED)
}

/// The backend of a flow of which the packet says nothing new, as most packets do: they need no call.
#[inline(always)]
fn without_news<V: Flows>(headers: &Headers<V>, flow: &FlowRef, hook: &Hook<'_, impl World>) -> Option<BackendRef> {
    // What follows a FIN that the backend does not answer here is news, too.
    const STATE: u32 = FlowState::CONFIRMED | FlowState::BACKEND_RESET | FlowState::DOUBTFUL | FlowState::UNHEARD;
    let (state, world, now) = (flow.state(), hook.world, hook.now);
    let is_unanswered = headers.protocol() == Protocol::Udp && !state.has_any(FlowState::ANSWERED | FlowState::QUEUED);
    if headers.transport.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0
        || unlikely(state.0 & STATE != FlowState::CONFIRMED && !is_unanswered)
    {
        return None;
    }
    let backend = backend::of_flow(flow, world)?;
    if unlikely(!flow.was_seen_at(now))
        && is_silent_open(flow.flow(), headers.protocol(), world.deployment(backend.deployment())?, now)
    {
        return None;
    }
    Some(backend)
}

/// Opens a flow.
#[inline(always)]
fn open_flow<V: Flows, W: SlowPath<V>>(
    headers: &Headers<V>,
    arrival: &Arrival,
    reading: LiveReading,
    hook: &Hook<'_, W>,
) -> Result<Target, Verdict> {
    let (world, now) = (hook.world, hook.now);
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
            place: 0,
            hash: 0,
            key: FlowKey6::default(),
        },
        transport: headers.transport,
        reading,
        tuple_hash: V::tuple_hash(headers.src, headers.dst, headers.ports, headers.protocol()),
        old_state: if arrival.is_known { arrival.flow.state() } else { FlowState(0) },
        old_backend: if arrival.is_known { arrival.flow.backend() } else { FlowBackend(0) },
        is_known: arrival.is_known,
        is_released: false,
        is_own: world.is_own(),
        backends: TableSpan::default(),
        flow: Flow::default(),
        place: Place::NONE,
    };
    let Some(mut open) = Open::new(world, call) else { return Err(Verdict::drop(world, Event::MissingRow)) };
    let mut chosen = open.choose_colour::<V>();
    if unlikely(chosen == Chosen::Frozen) {
        wait(open.deployment(), hook)?;
        open.release();
        chosen = open.choose_colour::<V>();
    }
    match chosen {
        Chosen::Yes => {}
        Chosen::NoService => return Err(Verdict::PASS),
        Chosen::MissingRow | Chosen::Timed | Chosen::Frozen => return Err(Verdict::drop(world, Event::MissingRow)),
    }
    let is_inside = headers.protocol() == Protocol::Tcp && !headers.transport.opens_connection();
    if unlikely(is_inside) {
        open.leave_down_colour::<V>();
    }
    let slot = match open.choose_backend::<V>() {
        Placed::At(slot) => slot,
        Placed::MissingRow => return Err(Verdict::drop(world, Event::MissingRow)),
        Placed::NotReady => return Err(Verdict::refuse(headers, hook, Event::IdleNotReady)),
        Placed::AllDown if !is_inside => return Err(Verdict::refuse(headers, hook, Event::AllDown)),
        // The connection may live at a backend that does not pass its checks, although its row was lost.
        Placed::AllDown => return Err(Verdict::drop(world, Event::AllDown)),
        Placed::Collision => return Err(Verdict::drop(world, Event::ReplyCollision)),
    };
    let Some(backend) = world.backend(slot).map(BackendRef) else {
        return Err(Verdict::drop(world, Event::MissingRow));
    };
    if unlikely(backend.mode() >= Mode::L2dsr as u8) && direct::is_tagged(headers.l3, world) {
        return Err(direct::pass_tagged(hook.direction, world));
    }
    if headers.transport.flags & tcp_flags::RST != 0 {
        note!(world, Step::Unremembered {});
        return Ok(Target::known(backend, open.word()));
    }
    let stored = open.store::<V>(if arrival.is_known { Some(arrival.flow.words()) } else { None });
    note!(world, Step::Opened { stored: stored as u64 });
    if stored == Stored::Evicted {
        world.count(Event::PushedOut);
    }
    let is_unpinned = stored == Stored::No;
    if !is_unpinned {
        open.count_for_switch::<V>();
        world.count_flow(backend.service(), backend.colour());
    }
    Ok(Target { backend, is_unpinned, word: open.word() })
}

/// Has a packet of a frozen deployment wait. `Ok`: it goes on.
#[inline(always)]
fn wait(deployment: u16, hook: &Hook<'_, impl World>) -> Result<(), Verdict> {
    note!(hook.world, Step::Waits { deployment: deployment.into() });
    // tc holds packets. It is behind XDP on each interface.
    if hook.direction == Direction::Early {
        return Err(Verdict::DEFER);
    }
    match hook.world.hold(deployment) {
        Some(kept) => Err(Verdict::drop(hook.world, kept)),
        None => Ok(()),
    }
}

/// Rewrites the packet towards its target.
#[inline(always)]
fn send<V: Rewritable + FlowVersion, W: World>(
    headers: &Headers<V>,
    arrival: &Arrival,
    target: Target,
    hook: &Hook<'_, W>,
    writer: &mut impl Writer,
) -> Verdict {
    let (world, backend) = (hook.world, target.backend);
    if unlikely(backend.mode() >= Mode::L2dsr as u8) {
        return direct::begin(headers, backend, target.is_unpinned, hook);
    }
    let is_copy = arrival.copy_for != 0;
    let is_local = backend.mode() == Mode::Local as u8;
    let is_spent = !is_local && headers.hop_limit <= 1;
    if EXPLAINS && is_local {
        world.note(Step::Local {});
    }
    if EXPLAINS && is_spent {
        world.note(Step::TtlSpent {});
    }
    let exit = if hook.direction == Direction::Early && (is_local || is_spent) {
        Exit::DEFERRED
    } else if is_local && unlikely(world.is_own()) && (is_copy || world.is_played_back(backend.deployment())) {
        // It has lost the route that it had from the loopback interface.
        Exit::TO_SELF
    } else if is_local || is_spent {
        Exit::TO_STACK
    } else {
        next_hop::to_backend(backend, headers, hook)
    };
    if exit.action == Action::Defer {
        return Verdict::DEFER;
    }
    if unlikely(target.is_unpinned) {
        world.count_flow(backend.service(), backend.colour());
        world.count(Event::Unpinned);
    }
    if is_spent {
        // The stack has a route to the backend, which it may not have to a virtual address, and says so to the client. What it
        // says is translated on its way out.
        world.count(Event::TtlExpired);
    }
    let live = target.word.live();
    if unlikely(arrival.is_mirrored) && !is_copy && backend.colour() == live as u8 && !is_spent {
        let idle = live.other() as u8;
        note!(world, Step::Mirror { colour: idle.into() });
        if !world.copy(idle) {
            world.count(Event::MirrorLost);
        }
    }
    let edit = Edit { end: End::Destination, address: backend.address::<V>(), port: backend.port(), hop: exit.hop };
    if writer.rewrite(headers, &edit).is_none() {
        return Verdict::drop(world, Event::Malformed);
    }
    if unlikely(is_copy) {
        world.count_copy(backend.service(), backend.colour());
    } else {
        world.count_packet(backend.service(), backend.colour(), hook.frame_len as u64);
    }
    Verdict::out_of(exit)
}
