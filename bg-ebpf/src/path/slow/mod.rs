//! The slow path: what few packets need. It opens flows and changes their state.
//!
//! Each operation is a call of its own, one after the other and mostly not one inside another: the stack of a BPF program is
//! 512 bytes for a whole chain of calls. In the kernel each is a global function, which the verifier looks at once and not
//! at every call. So a loop is a call as well, around the call that is its step: what follows a loop would be looked at for each turn that may be
//! its last. A call's struct lies in the CPU's scratch buffer, and says what goes in and what comes out. The result is
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
    flow::{
        memory::RawWords,
        table::{Stored, survey_at},
    },
    hint::unlikely,
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
    /// Gives a connection to the other colour if the chosen one takes none; see [`Opening`].
    fn leave_down_colour(&self, call: &mut Opening) -> u32 {
        open::leave_down_colour(call, self)
    }
    /// Chooses the backend of a new flow; see [`Opening`].
    fn choose_backend(&self, call: &mut Opening) -> u32 {
        choose_backend(call, self).to_u32()
    }
    /// Chooses a row for a new flow; see [`Opening`].
    fn choose_row(&self, call: &mut Opening) -> u32 {
        choose_row(call, self)
    }
    /// Gives a new flow that row; see [`Opening`].
    fn insert(&self, call: &mut Opening) -> u32 {
        open::insert::<V, _>(call, self) as u32
    }
    /// Looks at all places of a bucket; see [`survey_at`].
    fn survey(&self, bucket: u32, hash: u32, now: u32, generation: u32) -> u64 {
        survey_at::<V::Key, _>(V::flows(self), bucket, hash, now, generation).to_u64()
    }
    /// Gives a new flow the row of the one that has its key; see [`Opening`].
    fn replace(&self, row: RawWords, call: &mut Opening) -> u32 {
        open::replace(row, call, self) as u32
    }
    /// Counts a new flow for the conditions of a switch; see [`Opening`].
    fn count_for_switch(&self, call: &mut Opening) -> u32 {
        open::count_for_switch(call, self)
    }
    /// Looks for a flow; see [`Search`].
    fn search(&self, search: &mut Search) -> u32 {
        all_steps(search, self)
    }
    /// Takes a step of that.
    fn search_step(&self, search: &mut Search) -> u32 {
        search::step::<V, _>(search, self).to_u32()
    }
    /// Chooses the backend of a copy; see [`Copying`].
    fn backend_of_copy(&self, call: &mut Copying) -> u32 {
        choose_for_copy(call, self)
    }
    /// Looks for a flow whose copies go to a backend; see [`Search`].
    fn answers_copy(&self, search: &mut Search) -> u32 {
        all_steps_for_copy(search, self)
    }
    /// Takes a step of that.
    fn answers_copy_step(&self, search: &mut Search) -> u32 {
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
        all_steps as search, all_steps_for_copy as answers_copy,
        answer::run as answer,
        choose_backend, choose_for_copy as backend_of_copy, choose_row,
        error::{backend as error_to_backend, client as error_to_client},
        mirror::step as answers_copy_step,
        open::{choose_colour, count_for_switch, insert, leave_down_colour, replace},
        refresh::run as refresh,
        search::step as search_step,
    };
}

/// Takes the steps of a search.
#[inline(always)]
pub fn all_steps<V: Flows>(search: &mut Search, world: &impl SlowPath<V>) -> u32 {
    search::run(search, world, |search| world.search_step(search))
}

/// Takes the steps of a search for a flow whose copies go to a backend.
#[inline(always)]
pub fn all_steps_for_copy<V: Flows>(search: &mut Search, world: &impl SlowPath<V>) -> u32 {
    mirror::run(search, world, |search| world.answers_copy_step(search))
}

/// Chooses the backend of a copy.
#[inline(always)]
pub fn choose_for_copy<V: Flows>(call: &mut Copying, world: &impl SlowPath<V>) -> u32 {
    mirror::choose(call, world, |search| world.search_step(search))
}

/// Chooses the backend of a new flow.
#[inline(always)]
pub fn choose_backend<V: Flows>(call: &mut Opening, world: &impl SlowPath<V>) -> Placed {
    open::choose_backend(call, world, |search| world.search_step(search))
}

/// Chooses a row for a new flow.
#[inline(always)]
pub fn choose_row<V: Flows>(call: &mut Opening, world: &impl SlowPath<V>) -> u32 {
    open::choose_row::<V>(call, world, |bucket, hash, now, generation| world.survey(bucket, hash, now, generation))
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

/// Keeps in the scratch buffer what a later step finds by [`kept`]. `None`: there is no such buffer.
#[inline(always)]
pub fn keep<T: Copy>(world: &impl World, kept: T) -> Option<&mut T> {
    in_scratch(world, kept)
}

/// What an earlier step has kept for this packet.
#[expect(clippy::mut_from_ref, reason = "as in `in_scratch`")]
#[inline(always)]
pub fn kept<T: Copy>(world: &impl World) -> Option<&mut T> {
    const { assert!(size_of::<T>() <= 8 * SCRATCH_WORDS && align_of::<T>() <= 8) };
    // SAFETY: memory of that size and of this CPU alone. Those who call this know that the last who kept something was of the same type; in any
    // case these are numbers, of which any bytes are a value.
    world.scratch().map(|scratch| unsafe { &mut *scratch.cast() })
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
    let place = world.search(search);
    (place != search::NOWHERE).then_some((search.hash, place))
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
    world.answers_copy(search) != 0
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
            let is_about_copy = search.protocol == Protocol::Udp && self.world.answers_copy(search) != 0;
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

    /// See [`SlowPath::leave_down_colour`].
    #[inline(always)]
    pub fn leave_down_colour<V: Flows>(&mut self)
    where
        W: SlowPath<V>,
    {
        self.world.leave_down_colour(self.call);
    }

    /// See [`SlowPath::choose_backend`].
    #[inline(always)]
    pub fn choose_backend<V: Flows>(&mut self) -> Placed
    where
        W: SlowPath<V>,
    {
        Placed::from_u32(self.world.choose_backend(self.call))
    }

    /// Gives the flow a row: that of the flow that has its key, if there is one.
    #[inline(always)]
    pub fn store<V: Flows>(&mut self, old: Option<RawWords>) -> Stored
    where
        W: SlowPath<V>,
    {
        Stored::from_u32(match old {
            Some(row) => self.world.replace(row, self.call),
            None => {
                self.world.choose_row(self.call);
                self.world.insert(self.call)
            }
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
