//! Opening a flow: its colour, its backend, its row.

use super::search::{Search, Step};
use crate::{
    flow::key::Key as _,
    policy::{
        backend, colour,
        connection::{is_refused, shown_by_client},
        lifetime::{after_drain, is_open, is_past, limit, terms},
    },
    rows::{BackendRef, VipRef},
    wire::headers::Headers,
    world::{Flows, World},
};
use bg_common::{Colour, Flow, FlowBackend, FlowState, LiveFlags, LiveWord, ServiceRow, TableSpan};

/// The live word that a packet has read, and of which deployment. A packet reads it once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LiveReading {
    /// The word.
    pub word: LiveWord,
    /// Index of the deployment; of no deployment if nothing has been read.
    pub deployment: u32,
}

impl LiveReading {
    /// Nothing has been read.
    pub const NONE: Self = Self { word: LiveWord(0), deployment: u32::MAX };
}

/// A flow that is being opened.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Opening<V: Flows> {
    /// In: the packet that opens it.
    pub headers: Headers<V>,
    /// In: row of `vips` that the packet was sent to.
    pub vip: u16,
    /// In: the live word that the packet has read already.
    pub reading: LiveReading,
    /// In: the tick.
    pub now: u32,
    /// In: state of the flow that has the key now; zero if there is none.
    pub old_state: FlowState,
    /// In: backend of that flow.
    pub old_backend: FlowBackend,
    /// In: whether there is such a flow.
    pub is_known: bool,
    /// In: whether this host itself has sent the packet.
    pub is_own: bool,
    /// Out of the backend's choice: the flow's key.
    pub key: V::Key,
    /// Out of the backend's choice: the key's hash.
    pub hash: u32,
    /// Out of the colour's choice: where its backends stand.
    pub backends: TableSpan,
    /// Out of the colour's choice: chooses among them.
    pub tuple_hash: u32,
    /// Out of both choices: the flow.
    pub flow: Flow,
    /// Out of the backend's choice: looks for a flow that the backend could not tell from this one.
    pub rivals: Search<V>,
}

/// Whether a colour was chosen.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// No: the virtual address has just been taken away.
    NoService = 0,
    /// No: a row is missing. The instance is damaged.
    MissingRow = 1,
    /// Yes.
    Yes = 2,
}

impl Chosen {
    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(chosen: u32) -> Self {
        match chosen {
            0 => Self::NoService,
            2 => Self::Yes,
            _ => Self::MissingRow,
        }
    }
}

/// Chooses the colour.
#[inline(always)]
pub fn choose_colour<V: Flows, W: World>(call: &mut Opening<V>, world: &W) -> Chosen {
    let (headers, now) = (&call.headers, call.now);
    let Some(vip) = world.vip(call.vip.into()).map(VipRef) else { return Chosen::MissingRow };
    let Some(row) = world.service(&vip.key()) else { return Chosen::NoService };
    let word = if call.reading.deployment == u32::from(row.deployment) {
        call.reading.word
    } else if let Some(word) = world.live(row.deployment) {
        word
    } else {
        return Chosen::MissingRow;
    };
    end_drain_if_past(row.deployment, word, world, now);
    call.tuple_hash = V::tuple_hash(headers.src, headers.dst, headers.ports, headers.protocol);
    let is_retry = is_refused(call.old_state) && !headers.opens_connection();
    let choice = if is_retry { other_colour(call, row, word, world) } else { None };
    let choice = match choice {
        Some(choice) => choice,
        None => colour::choose::<V>(headers.src, call.tuple_hash, row, word, world),
    };
    call.backends = backend::table(row, choice.colour);
    let mut state = FlowState(shown_by_client(headers));
    if choice.idle_only {
        state = state.with(FlowState::IDLE_ONLY);
    }
    if call.is_own {
        state = state.with(FlowState::OWN);
    }
    if is_retry {
        state = state.with(FlowState::RETRIED);
    }
    if call.is_known && headers.opens_connection() && !call.old_state.has(FlowState::FOREIGN) {
        state = state.with(FlowState::REUSED);
    }
    let limit = world.deployment(row.deployment).map_or(0, |row| limit(row, headers.protocol, state));
    call.flow = Flow {
        state: state.with_limit(limit),
        generation: choice.generation,
        last_seen: now,
        note: if headers.opens_connection() { headers.sequence } else { 0 },
        ..Flow::from_words([0; 3])
    };
    Chosen::Yes
}

/// The colour of a connection that was picked up in mid-stream and that a backend has refused.
#[inline(always)]
fn other_colour<V: Flows>(
    call: &Opening<V>,
    row: &ServiceRow,
    word: LiveWord,
    world: &impl World,
) -> Option<colour::ColourChoice> {
    let refused_by = BackendRef(world.backend(call.old_backend.slot())?).colour();
    colour::second_chance(Colour::from_u8(refused_by), row.deployment, word, world, call.now)
}

/// Clears the flag of a drain whose deadline has passed: whoever sees it first does.
#[inline(always)]
fn end_drain_if_past(deployment: u16, word: LiveWord, world: &impl World, now: u32) {
    if !word.flags().has(LiveFlags::DRAINING) {
        return;
    }
    let Some(terms) = terms(deployment, word, world) else { return };
    if is_past(terms.drain_deadline, now) {
        let (settled, ended_before) = after_drain(word, &terms);
        world.end_drain(deployment, word, settled, ended_before);
    }
}

/// What has come of the choice of a backend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The backend in this slot.
    At(u32),
    /// A row is missing. The instance is damaged.
    MissingRow,
}

impl Placed {
    const MISSING_ROW: u32 = u32::MAX;

    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(placed: u32) -> Self {
        match placed {
            Self::MISSING_ROW => Self::MissingRow,
            slot => Self::At(slot),
        }
    }

    /// For the call to return.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::At(slot) => slot,
            Self::MissingRow => Self::MISSING_ROW,
        }
    }
}

/// Chooses the backend at the hash.
#[inline(always)]
pub fn choose_backend<V: Flows, W: World>(call: &mut Opening<V>, world: &W) -> Placed {
    let Some(chosen) = backend::at(call.backends, call.tuple_hash, world) else { return Placed::MissingRow };
    let Some(vip) = world.vip(call.vip.into()).map(VipRef) else { return Placed::MissingRow };
    call.key = V::key(call.headers.src, call.headers.src_port(), call.vip);
    call.hash = call.key.hash(vip.salt(), V::flows(world));
    call.flow.backend = chosen.name;
    call.rivals = Search::new(chosen.backend.address::<V>(), chosen.backend.port(), call.headers.protocol, world);
    Placed::At(chosen.name.slot())
}

/// Whether the backend could not tell the flow from another open one of the client, by another virtual address. It stands in
/// the bucket of this flow, unless services that share a backend have different salts: so the search goes on while it
/// says [`Step::Next`].
#[inline(always)]
pub fn find_rival<V: Flows, W: World>(call: &mut Opening<V>, world: &W) -> Step {
    let (key, vip, protocol, now) = (call.key, call.vip, call.headers.protocol, call.now);
    call.rivals.step(&key, world, |flow, backend| {
        flow.vip() != vip
            && world.deployment(backend.deployment()).is_some_and(|row| is_open(flow.flow(), protocol, row, now))
    })
}
