//! Opening a flow: its colour, its backend, its row.

use crate::{
    flow::{
        key::{Key, Match},
        table::{WAYS, place, read},
    },
    hint::rolled,
    policy::{
        backend, colour,
        connection::{is_refused, shown_by_client},
        lifetime::{after_drain, is_open, is_past, limit, terms},
    },
    rows::{BackendRef, VipRef},
    wire::headers::Headers,
    world::{Flows, World},
};
use bg_common::{
    Colour, Flow, FlowBackend, FlowState, LiveFlags, LiveWord, MAX_CHAIN, ServiceRow, TableSpan, endpoint_hash,
};

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
    /// In: the flow's key.
    pub key: V::Key,
    /// In: the key's hash.
    pub hash: u32,
    /// In: row of `vips` that the packet was sent to.
    pub vip: u32,
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
    /// Out of the colour's choice: where its backends stand.
    pub backends: TableSpan,
    /// Out of the colour's choice: chooses among them.
    pub tuple_hash: u32,
    /// Out of both choices: the flow.
    pub flow: Flow,
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
    let Some(vip) = world.vip(call.vip).map(VipRef) else { return Chosen::MissingRow };
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
    /// The backend could not tell the flow from another one of the client that is open.
    LooksLikeAnother,
    /// A row is missing. The instance is damaged.
    MissingRow,
}

impl Placed {
    const LOOKS_LIKE_ANOTHER: u32 = u32::MAX;
    const MISSING_ROW: u32 = u32::MAX - 1;

    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(placed: u32) -> Self {
        match placed {
            Self::LOOKS_LIKE_ANOTHER => Self::LooksLikeAnother,
            Self::MISSING_ROW => Self::MissingRow,
            slot => Self::At(slot),
        }
    }

    /// For the call to return.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::At(slot) => slot,
            Self::LooksLikeAnother => Self::LOOKS_LIKE_ANOTHER,
            Self::MissingRow => Self::MISSING_ROW,
        }
    }
}

/// Chooses the backend at the hash.
#[inline(always)]
pub fn choose_backend<V: Flows, W: World>(call: &mut Opening<V>, world: &W) -> Placed {
    let Some(chosen) = backend::at(call.backends, call.tuple_hash, world) else { return Placed::MissingRow };
    call.flow.backend = chosen.name;
    if looks_like_another(call, chosen.backend, world) {
        return Placed::LooksLikeAnother;
    }
    Placed::At(chosen.name.slot())
}

/// Whether the backend could not tell the flow from another one of the client: one by another virtual address, at a backend
/// with the same address, port and protocol. It stands in the bucket of this flow, unless services that share
/// a backend have different salts: so the buckets of all of them are looked at.
#[inline(always)]
fn looks_like_another<V: Flows, W: World>(call: &Opening<V>, backend: BackendRef, world: &W) -> bool {
    let (address, port, protocol) = (backend.address::<V>(), backend.port(), call.headers.protocol);
    let mut link = world.backend_head(endpoint_hash(&V::widen(address), port, protocol as u8));
    for _ in 0..rolled(MAX_CHAIN) {
        if link == 0 {
            return false;
        }
        let Some(node) = world.backend(link.wrapping_sub(1)).map(BackendRef) else { return false };
        if node.is_at::<V>(address, port, protocol) && is_taken(call, backend, node.salt(), world) {
            return true;
        }
        link = node.next();
    }
    false
}

/// Whether an open flow of the client to this backend by another virtual address stands in the buckets of a salt.
#[inline(always)]
fn is_taken<V: Flows, W: World>(call: &Opening<V>, backend: BackendRef, salt: u16, world: &W) -> bool {
    let flows = V::flows(world);
    let hash = call.key.hash(salt, flows);
    for nth in 0..rolled(2 * WAYS) {
        let Some(row) = place::<V::Key, _>(flows, hash, nth) else { return false };
        let Some(flow) = read(flows, row, &call.key, Match::Client) else { continue };
        let Some(its) = world.backend(flow.backend().slot()).map(BackendRef) else { continue };
        let is_ours = u32::from(flow.vip()) == call.vip;
        if !is_ours
            && its.is(flow.backend())
            && its.is_at::<V>(backend.address::<V>(), backend.port(), call.headers.protocol)
            && world
                .deployment(its.deployment())
                .is_some_and(|row| is_open(flow.flow(), call.headers.protocol, row, call.now))
        {
            return true;
        }
    }
    false
}
