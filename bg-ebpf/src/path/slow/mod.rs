//! The slow path: what few packets need. It opens flows and changes their state.
//!
//! Each operation is a call of its own, one after the other and not one inside another: the stack of a BPF program is
//! 512 bytes for a whole chain of calls. In the kernel each is a global function, which the verifier looks at once and not
//! at every call. A call's struct lies in the CPU's scratch buffer, and says what goes in and what comes out. The result is
//! a `u32`, which is converted here and nowhere else.

mod answer;
mod error;
mod mirror;
mod open;
mod refresh;
mod search;

pub use answer::{Answer, Answering};
pub use error::{Receiver, Translating};
pub use mirror::{Copying, mark};
pub use open::{Chosen, LiveReading, Opening, Placed};
pub use refresh::{Refreshing, Stay};
pub use search::{Search, Step};

use crate::{
    flow::{memory::RawWords, table::Stored},
    hint::{rolled, unlikely},
    policy::{colour::Client, refusals::Refusal, timed, trips},
    world::{Flows, SCRATCH_WORDS, World},
};
use bg_common::{LiveWord, Protocol};

/// The calls. A world may make them as it likes, as long as it comes to the same.
pub trait SlowPath<V: Flows>: World + Sized {
    /// Notes what a packet of the client says of its flow; see [`Refreshing`].
    fn refresh(&self, row: RawWords, call: &mut Refreshing) -> u32 {
        refresh::run(row, call, self) as u32
    }
    /// Notes what a packet of the backend says of its flow; see [`Answering`].
    fn answer(&self, row: RawWords, call: &mut Answering) -> u32 {
        answer::run(row, call, self) as u32
    }
    /// Remembers that a colour has refused a connection.
    fn remember(&self, refusal: &mut Refusal) -> u32 {
        refusal.remember(self);
        0
    }
    /// Chooses the colour of a new flow; see [`Opening`].
    fn choose_colour(&self, call: &mut Opening) -> u32 {
        open::choose_colour(call, self) as u32
    }
    /// Chooses the backend of a new flow; see [`Opening`].
    fn choose_backend(&self, call: &mut Opening) -> u32 {
        open::choose_backend(call, self).to_u32()
    }
    /// Gives a new flow a row; see [`Opening`].
    fn insert(&self, call: &mut Opening) -> u32 {
        open::insert::<V, _>(call, self) as u32
    }
    /// Gives a new flow the row of the one that has its key; see [`Opening`].
    fn replace(&self, row: RawWords, call: &mut Opening) -> u32 {
        open::replace(row, call, self) as u32
    }
    /// Counts a new flow for the conditions of a switch; see [`Opening`].
    fn count_for_switch(&self, call: &mut Opening) -> u32 {
        open::count_for_switch(call, self)
    }
    /// Takes a step of a search; see [`Search`].
    fn search(&self, search: &mut Search) -> u32 {
        search::step::<V, _>(search, self).to_u32()
    }
    /// Chooses the backend of a copy; see [`Copying`].
    fn backend_of_copy(&self, call: &mut Copying) -> u32 {
        mirror::choose(call, self)
    }
    /// Takes a step of a search for a flow whose copies go to a backend; see [`Search`].
    fn answers_copy(&self, search: &mut Search) -> u32 {
        mirror::step::<V, _>(search, self).to_u32()
    }
    /// Looks for the backend that an ICMP error is for; see [`Translating`].
    fn error_to_backend(&self, call: &mut Translating) -> u32 {
        error::backend::<V>(call, self) as u32
    }
    /// Looks for the client that an ICMP error is for; see [`Translating`].
    fn error_to_client(&self, call: &mut Translating) -> u32 {
        error::client::<V>(call, self) as u32
    }
}

/// The functions behind the calls, for a world that makes them in its own way.
pub mod run {
    pub use super::{
        answer::run as answer,
        error::{backend as error_to_backend, client as error_to_client},
        mirror::{choose as backend_of_copy, step as answers_copy},
        open::{choose_backend, choose_colour, count_for_switch, insert, replace},
        refresh::run as refresh,
        search::step as search,
    };
}

/// A call's struct in the scratch buffer.
#[expect(clippy::mut_from_ref, reason = "it is no part of the world, but memory that the world hands out")]
#[inline(always)]
fn in_scratch<T>(world: &impl World, call: T) -> Option<&mut T> {
    const { assert!(size_of::<T>() <= 8 * SCRATCH_WORDS && align_of::<T>() <= 8) };
    let scratch: *mut T = world.scratch()?.cast();
    // SAFETY: memory of that size, of this CPU alone and for the packet that it processes, and no other reference to it is
    // alive: each call is over before the next one is prepared.
    unsafe {
        scratch.write(call);
        Some(&mut *scratch)
    }
}

/// See [`SlowPath::refresh`]. `None`: there is no scratch buffer.
#[inline(always)]
pub fn refresh<V: Flows>(world: &impl SlowPath<V>, row: RawWords, call: Refreshing) -> Option<Stay> {
    Some(Stay::from_u32(world.refresh(row, in_scratch(world, call)?)))
}

/// See [`SlowPath::answer`]. The packet is for `client`, by this row of `vips`. `None`: there is no scratch buffer.
#[inline(always)]
pub fn answer<V: Flows>(
    world: &impl SlowPath<V>,
    row: RawWords,
    call: Answering,
    client: impl FnOnce() -> Client,
    vip: u16,
) -> Option<Answer> {
    let call = in_scratch(world, call)?;
    let answer = Answer::from_u32(world.answer(row, call));
    if !unlikely(answer == Answer::NeedsWord) {
        return Some(answer);
    }
    let word = timed::read(call.deployment, false, world)?;
    call.word = Some(word);
    let colour = call.colour as u32;
    let answer = Answer::from_u32(world.answer(row, call));
    if answer == Answer::Refusal {
        world.remember(in_scratch(world, Refusal { client: client(), vip: vip.into(), word, colour })?);
    }
    Some(answer)
}

/// Hash and place of the flow that a search finds. `None`: there is none.
#[inline(always)]
pub fn search<V: Flows>(world: &impl SlowPath<V>, search: Search) -> Option<(u32, u32)> {
    run_search(world, in_scratch(world, search)?)
}

#[inline(always)]
fn run_search<V: Flows>(world: &impl SlowPath<V>, search: &mut Search) -> Option<(u32, u32)> {
    search.begin(world);
    let place = all_steps(world, search)?;
    Some((search.hash, place))
}

/// Takes the steps of a search, until it has found a place.
#[inline(always)]
fn all_steps<V: Flows>(world: &impl SlowPath<V>, search: &mut Search) -> Option<u32> {
    for _ in rolled(search::STEPS) {
        match Step::from_u32(world.search(search)) {
            Step::Found(place) => return Some(place),
            Step::Next => {}
            Step::End => break,
        }
    }
    None
}

/// See [`SlowPath::backend_of_copy`]. `None`: there is no backend, or no scratch buffer.
#[inline(always)]
pub fn backend_of_copy<V: Flows>(world: &impl SlowPath<V>, call: Copying) -> Option<u32> {
    let slot = world.backend_of_copy(in_scratch(world, call)?);
    (slot != mirror::NO_BACKEND).then_some(slot)
}

/// Whether the source of a packet answers a copy, after [`search`] has found no flow whose reply it is.
#[inline(always)]
pub fn answers_copy<V: Flows>(world: &impl SlowPath<V>) -> bool {
    let Some(scratch) = world.scratch() else { return false };
    // SAFETY: memory of this CPU alone, in which the search is; no other reference to it is alive.
    let search: &mut Search = unsafe { &mut *scratch.cast() };
    gets_copies(world, search)
}

/// Whether the backend of a search gets copies of what its client sends.
#[inline(always)]
fn gets_copies<V: Flows>(world: &impl SlowPath<V>, search: &mut Search) -> bool {
    search.begin(world);
    search.place = 0;
    for _ in rolled(mirror::STEPS) {
        match Step::from_u32(world.answers_copy(search)) {
            Step::Found(_) => return true,
            Step::Next => {}
            Step::End => break,
        }
    }
    false
}

/// An ICMP error that is being translated, as the steps before have left it.
pub struct Translator<'a, W> {
    /// What is known of it.
    pub call: &'a mut Translating,
    world: &'a W,
}

impl<'a, W: World> Translator<'a, W> {
    /// Begins, or goes on. `None`: there is no scratch buffer.
    #[inline(always)]
    pub fn new(world: &'a W) -> Option<Self> {
        const { assert!(size_of::<Translating>() <= 8 * SCRATCH_WORDS && align_of::<Translating>() <= 8) };
        let scratch: *mut Translating = world.scratch()?.cast();
        // SAFETY: as in `in_scratch`; any bytes are a value of this type.
        Some(Self { call: unsafe { &mut *scratch }, world })
    }

    /// Whom the error is for.
    #[inline(always)]
    pub fn receiver<V: Flows>(&mut self) -> Receiver
    where
        W: SlowPath<V>,
    {
        let backend = Receiver::from_u32(self.world.error_to_backend(self.call));
        if backend != Receiver::None {
            return backend;
        }
        // SAFETY: a backend was looked for.
        let search = unsafe { self.call.search() };
        let Some((hash, place)) = run_search(self.world, search) else {
            let is_about_copy = search.protocol == Protocol::Udp && gets_copies(self.world, search);
            return if is_about_copy { Receiver::Nobody } else { Receiver::None };
        };
        (self.call.hash, self.call.place) = (hash, place);
        Receiver::from_u32(self.world.error_to_client(self.call))
    }
}

/// A flow that is being opened.
pub struct Open<'a, W> {
    call: &'a mut Opening,
    world: &'a W,
}

impl<'a, W: World> Open<'a, W> {
    /// Begins. `None`: there is no scratch buffer.
    #[inline(always)]
    pub fn new(world: &'a W, call: Opening) -> Option<Self> {
        Some(Self { call: in_scratch(world, call)?, world })
    }

    /// See [`SlowPath::choose_colour`].
    #[inline(always)]
    pub fn choose_colour<V: Flows>(&mut self) -> Chosen
    where
        W: SlowPath<V>,
    {
        let chosen = Chosen::from_u32(self.world.choose_colour(self.call));
        if !unlikely(chosen == Chosen::Timed) {
            return chosen;
        }
        let LiveReading { word, deployment } = self.call.reading;
        self.call.reading.word = timed::settled(deployment as u16, word, true, self.world);
        Chosen::from_u32(self.world.choose_colour(self.call))
    }

    /// The deployment of the live word that the packet has read.
    #[inline(always)]
    pub fn deployment(&self) -> u16 {
        self.call.reading.deployment as u16
    }

    /// The live word that the packet has read.
    #[inline(always)]
    pub fn word(&self) -> LiveWord {
        self.call.reading.word
    }

    /// Lets the packet go on although the deployment is frozen.
    #[inline(always)]
    pub fn release(&mut self) {
        self.call.is_released = true;
    }

    /// See [`SlowPath::choose_backend`].
    #[inline(always)]
    pub fn choose_backend<V: Flows>(&mut self) -> Placed
    where
        W: SlowPath<V>,
    {
        Placed::from_u32(self.world.choose_backend(self.call))
    }

    /// Whether the backend could not tell the flow from another open one of the client, by another virtual address.
    #[inline(always)]
    pub fn has_rival<V: Flows>(&mut self) -> bool
    where
        W: SlowPath<V>,
    {
        all_steps(self.world, &mut self.call.search).is_some()
    }

    /// Goes on to another entry of the Maglev table. The step (the golden ratio's) is no multiple of any table's length.
    #[inline(always)]
    pub fn step(&mut self) {
        self.call.tuple_hash = self.call.tuple_hash.wrapping_add(0x9e37_79b9);
    }

    /// Gives the flow a row: that of the flow that has its key, if there is one.
    #[inline(always)]
    pub fn store<V: Flows>(&mut self, old: Option<RawWords>) -> Stored
    where
        W: SlowPath<V>,
    {
        Stored::from_u32(match old {
            Some(row) => self.world.replace(row, self.call),
            None => self.world.insert(self.call),
        })
    }

    /// Counts the flow, which has a row, if it counts for the conditions of a switch.
    #[inline(always)]
    pub fn count_for_switch<V: Flows>(&mut self)
    where
        W: SlowPath<V>,
    {
        if unlikely(trips::is_awaited(&self.call.flow)) {
            self.world.count_for_switch(self.call);
        }
    }
}
