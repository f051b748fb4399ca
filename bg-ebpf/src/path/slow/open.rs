//! Opening a flow: its colour, its backend, its row.

use super::search::{self, Search, write_key};
use crate::{
    flow::{
        key::Key as _,
        memory::RawWords,
        row::FlowRef,
        table::{self, Place, Stored, Survey},
    },
    hint::{rolled, unlikely},
    policy::{
        backend, colour,
        connection::{half_closed, is_refused, shown_by_client},
        freeze::is_frozen,
        lifetime::{after_drain, is_past, limit, terms},
        refusals, trips,
    },
    rows::{BackendRef, VipRef},
    step::Step,
    wire::headers::{Transport, tcp_flags},
    world::{Flows, World, note},
};
use bg_common::{
    Be16, CachedHop, Colour, DeploymentRow, Flow, FlowBackend, FlowState, LiveFlags, LiveWord, Mode, Protocol,
    ServiceRow, TableSpan,
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
pub struct Opening {
    /// In: the client's end and the row of `vips` that it was sent to. Out of the backend's choice: looks for a flow that the
    /// backend could not tell from this one.
    pub search: Search,
    /// In: the packet that opens it.
    pub transport: Transport,
    /// In, and out of the colour's choice: the live word that the packet has read.
    pub reading: LiveReading,
    /// In: hash of the five-tuple. It chooses among the backends.
    pub tuple_hash: u32,
    /// In: state of the flow that has the key now; zero if there is none.
    pub old_state: FlowState,
    /// In: backend of that flow.
    pub old_backend: FlowBackend,
    /// In: whether there is such a flow.
    pub is_known: bool,
    /// In: whether the packet goes on although the deployment is frozen.
    pub is_released: bool,
    /// In: whether this host itself has sent the packet.
    pub is_own: bool,
    /// Out of the colour's choice: where its backends stand.
    pub backends: TableSpan,
    /// Out of both choices: the flow.
    pub flow: Flow,
    /// Out of the row's choice: where it is.
    pub place: Place,
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
    /// Not yet: the live word is timed. The caller settles it and asks again.
    Timed = 3,
    /// No: the deployment is frozen.
    Frozen = 4,
}

impl Chosen {
    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(chosen: u32) -> Self {
        match chosen {
            0 => Self::NoService,
            2 => Self::Yes,
            3 => Self::Timed,
            4 => Self::Frozen,
            _ => Self::MissingRow,
        }
    }
}

/// Chooses the colour.
#[inline(always)]
pub fn choose_colour<W: World>(call: &mut Opening, world: &W) -> Chosen {
    let (segment, now) = (&call.transport, call.search.now);
    let Some(vip) = world.vip(call.search.vip.into()).map(VipRef) else { return Chosen::MissingRow };
    let Some(row) = world.service(&vip.key()) else { return Chosen::NoService };
    let word = if call.reading.deployment == u32::from(row.deployment) {
        call.reading.word
    } else if let Some(word) = world.live(row.deployment) {
        call.reading = LiveReading { word, deployment: row.deployment.into() };
        if unlikely(word.flags().has(LiveFlags::TIMED)) {
            return Chosen::Timed;
        }
        word
    } else {
        return Chosen::MissingRow;
    };
    call.reading = LiveReading { word, deployment: row.deployment.into() };
    end_drain_if_past(row.deployment, word, world, now);
    let opens_flow = segment.opens_connection() || segment.protocol == Protocol::Udp;
    let mut is_retry = is_refused(call.old_state) && !segment.opens_connection();
    let choice = if is_retry { other_colour(call, row, word, world) } else { None };
    let choice = match choice {
        Some(choice) => choice,
        None => {
            let client = &call.search.client;
            let choice = colour::choose(client, call.tuple_hash, row, word, world);
            if unlikely(colour::may_be_of_other(word)) && !opens_flow && !choice.idle_only && !is_retry {
                let (vip, deployment) = (call.search.vip, row.deployment);
                let (choice, is_last) = refusals::instead(choice, client, vip, deployment, word, world, now);
                is_retry = is_last;
                choice
            } else {
                choice
            }
        }
    };
    if opens_flow && !choice.idle_only && !call.is_released && is_frozen(row.deployment, word, world) {
        return Chosen::Frozen;
    }
    call.backends = backend::table(row, choice.colour);
    let mut state = FlowState(shown_by_client(segment));
    if choice.idle_only {
        state = state.with(FlowState::IDLE_ONLY);
    }
    if call.is_own {
        state = state.with(FlowState::OWN);
    }
    if call.is_released && segment.protocol == Protocol::Udp {
        state = state.with(FlowState::QUEUED);
    }
    if is_retry {
        state = state.with(FlowState::RETRIED);
    }
    if call.is_known && opens_flow && !call.old_state.has(FlowState::FOREIGN) {
        state = state.with(FlowState::REUSED);
    }
    let settings = world.deployment(row.deployment);
    if unlikely(settings.is_some_and(|settings| settings.receipt != 0)) {
        note_decision(row.deployment, settings, word, choice, world);
    }
    let limit = settings.map_or(0, |row| limit(row, segment.protocol, state));
    // A UDP flow that goes on elsewhere may be past the point where its client expects an answer.
    let goes_on = call.is_known && segment.protocol == Protocol::Udp;
    let group = trips::Group { deployment: row.deployment, generation: choice.generation, colour: choice.colour as u8 };
    let counts = unlikely(word.flags().has(LiveFlags::TIMED))
        && opens_flow
        && !goes_on
        && !choice.idle_only
        && trips::count(group, world);
    call.flow = Flow {
        state: state.with_limit(limit),
        generation: choice.generation,
        last_seen: now,
        note: if segment.opens_connection() { segment.sequence } else { 0 },
        hop: if counts { trips::mark(now) } else { CachedHop::default() },
        ..Flow::from_words([0; 3])
    };
    Chosen::Yes
}

/// Gives a connection without a row, which was picked up in mid-stream, to the other colour if that may know it, and the chosen one takes nothing
/// because all of its backends are down. Of one that another backend has refused this is the last colour, so it stays.
#[inline(always)]
pub fn leave_down_colour<W: World>(call: &mut Opening, world: &W) -> u32 {
    let (Search { vip, now, .. }, word) = (call.search, call.reading.word);
    if call.flow.state.has_any(FlowState::IDLE_ONLY | FlowState::RETRIED)
        || !backend::is_refused(call.backends, call.tuple_hash, world)
    {
        return 0;
    }
    let Some(row) = world.vip(vip.into()).map(VipRef).and_then(|vip| world.service(&vip.key())) else { return 0 };
    let down = if backend::table(row, Colour::Blue) == call.backends { Colour::Blue } else { Colour::Green };
    let (client, deployment) = (&call.search.client, row.deployment);
    if let Some(choice) = refusals::instead_of_down(down, client, vip, deployment, word, world, now) {
        call.backends = backend::table(row, choice.colour);
        call.flow.generation = choice.generation;
    }
    0
}

/// The colour of a connection that was picked up in mid-stream and that a backend has refused.
#[inline(always)]
fn other_colour(call: &Opening, row: &ServiceRow, word: LiveWord, world: &impl World) -> Option<colour::ColourChoice> {
    let refused_by = BackendRef(world.backend(call.old_backend.slot())?);
    if !refused_by.is(call.old_backend) {
        return None;
    }
    colour::second_chance(Colour::from_u8(refused_by.colour()), row.deployment, word, world, call.search.now)
}

/// Notes when the flow was decided, for the receipt of the switch that is being made. Flows that never go by the live colour, and those
/// that their own history sends to the other one, say nothing about the switch.
#[inline(always)]
fn note_decision(
    deployment: u16,
    settings: Option<&DeploymentRow>,
    word: LiveWord,
    choice: colour::ColourChoice,
    world: &impl World,
) {
    let is_by_new_word = settings.is_some_and(|row| row.receipt == DeploymentRow::receipt_of(word.generation()));
    if !choice.idle_only && (!is_by_new_word || choice.colour as u8 == word.live() as u8) {
        world.note_decision(deployment, is_by_new_word);
    }
}

/// Clears the flag of a drain whose deadline has passed: whoever sees it first does.
#[inline(always)]
fn end_drain_if_past(deployment: u16, word: LiveWord, world: &impl World, now: u32) {
    if !word.flags().has(LiveFlags::DRAINING) {
        return;
    }
    let Some(terms) = terms(deployment, word, world) else { return };
    if is_past(terms.drain_deadline, now) {
        note!(world, Step::DrainOver { deployment: deployment.into() });
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
    /// The flow may only be on the idle colour, which has no backend for it.
    NotReady,
    /// All backends of the colour are down, and get no flow.
    AllDown,
    /// None of the backends that were tried could tell the flow from another open one of the client.
    Collision,
}

impl Placed {
    const MISSING_ROW: u32 = u32::MAX;
    const NOT_READY: u32 = u32::MAX - 1;
    const COLLISION: u32 = u32::MAX - 2;
    const ALL_DOWN: u32 = u32::MAX - 3;

    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(placed: u32) -> Self {
        match placed {
            Self::MISSING_ROW => Self::MissingRow,
            Self::NOT_READY => Self::NotReady,
            Self::COLLISION => Self::Collision,
            Self::ALL_DOWN => Self::AllDown,
            slot => Self::At(slot),
        }
    }

    /// For the call to return.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::At(slot) => slot,
            Self::MissingRow => Self::MISSING_ROW,
            Self::NotReady => Self::NOT_READY,
            Self::Collision => Self::COLLISION,
            Self::AllDown => Self::ALL_DOWN,
        }
    }
}

/// Entries of a Maglev table that are tried for a flow that its backend could not tell from another one.
const CHOICES: u32 = 3;

/// Chooses the backend at the hash, or another one if that could not tell the flow from another open one of the client, by another virtual address.
#[inline(always)]
pub(super) fn choose_backend(call: &mut Opening, world: &impl World, step: impl Fn(&mut Search) -> u32) -> Placed {
    for _ in rolled(CHOICES) {
        let placed = at_hash(call, world);
        // The end of a connection that nobody remembers is passed on, not remembered either.
        if !matches!(placed, Placed::At(_))
            || call.transport.flags & tcp_flags::RST != 0
            // A backend that meets the virtual address itself tells all flows apart.
            || call.search.port == Be16(0)
            || search::run(&mut call.search, world, &step) == search::NOWHERE
        {
            return placed;
        }
        note!(world, Step::Rival {});
        // The step (the golden ratio's) is no multiple of any table's length.
        call.tuple_hash = call.tuple_hash.wrapping_add(0x9e37_79b9);
    }
    Placed::Collision
}

#[inline(always)]
fn at_hash(call: &mut Opening, world: &impl World) -> Placed {
    let Some(chosen) = backend::at(call.backends, call.tuple_hash, world) else {
        return if backend::is_refused(call.backends, call.tuple_hash, world) {
            Placed::AllDown
        } else if call.flow.state.has(FlowState::IDLE_ONLY) {
            // Never on the live colour instead (invariant 6).
            Placed::NotReady
        } else {
            Placed::MissingRow
        };
    };
    call.flow.backend = chosen.name;
    let search = &mut call.search;
    search.address = chosen.backend.whole_address();
    let is_direct = chosen.backend.mode() >= Mode::L2dsr as u8;
    if is_direct {
        // Its answer will not be heard, so it counts for no condition of a switch.
        call.flow.hop = CachedHop::default();
        if call.flow.state.has(FlowState::CLIENT_FIN)
            && let Some(row) = world.deployment(chosen.backend.deployment())
        {
            let (state, note, limit) = half_closed(call.flow.state, 0, &call.transport, row);
            (call.flow.state, call.flow.note) = (state.with_limit(limit), note);
        }
    }
    search.port = if is_direct { Be16(0) } else { chosen.backend.port() };
    Placed::At(chosen.name.slot())
}

/// Chooses the row that the flow gets if none has its key.
#[inline(always)]
pub(super) fn choose_row<V: Flows>(
    call: &mut Opening,
    world: &impl World,
    survey: impl Fn(u32, u32, u32, u32) -> u64,
) -> u32 {
    let Some(vip) = world.vip(call.search.vip.into()).map(VipRef) else { return 0 };
    let flows = V::flows(world);
    let Search { key, client, vip: number, now, .. } = &mut call.search;
    let (hash, now, generation) =
        (write_key::<V>(key, client, *number).hash(vip.salt(), flows), *now, call.flow.generation);
    let survey = |bucket| Survey::from_u64(survey(bucket, hash, now, generation));
    (call.search.hash, call.place) = (hash, table::choose(flows, hash, survey));
    0
}

/// Gives the flow that row.
#[inline(always)]
pub fn insert<V: Flows, W: World>(call: &mut Opening, world: &W) -> Stored {
    let Search { key, client, vip, now, hash, .. } = &mut call.search;
    let key = write_key::<V>(key, client, *vip);
    table::insert_at(V::flows(world), key, *hash, &call.flow, *now, call.place)
}

/// Counts the flow, which has a row, for the conditions of a switch.
#[inline(always)]
pub fn count_for_switch<W: World>(call: &mut Opening, world: &W) -> u32 {
    let Some(backend) = world.backend(call.flow.backend.slot()).map(BackendRef) else { return 0 };
    let (deployment, colour) = (call.reading.deployment as u16, backend.colour());
    let group = trips::Group { deployment, generation: call.flow.generation, colour };
    trips::opened(group, call.search.now, world);
    0
}

/// Gives the flow the row of the one that has its key.
#[inline(always)]
pub fn replace<W: World>(row: RawWords, call: &mut Opening, world: &W) -> Stored {
    let old = Flow { state: call.old_state, backend: call.old_backend, ..Flow::from_words([0; 3]) };
    table::replace(world.flows4(), FlowRef::new(row, 0, old), &call.flow)
}
