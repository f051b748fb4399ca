//! The slow path: what few packets need. It opens flows and changes their state.
//!
//! Each operation is a call of its own, one after the other and not one inside another: the stack of a BPF program is
//! 512 bytes for a whole chain of calls. In the kernel each is a global function, which the verifier looks at once and not
//! at every call. A call's struct lies in the CPU's scratch buffer, and says what goes in and what comes out. The result is
//! a `u32`, which is converted here and nowhere else.

mod answer;
mod locate;
mod open;
mod refresh;
mod search;

pub use answer::{Answer, Answering};
pub use locate::Locating;
pub use open::{Chosen, LiveReading, Opening, Placed};
pub use refresh::{Refreshing, Stay};
pub use search::{Search, Step};

use crate::{
    flow::table::{Stored, store},
    hint::rolled,
    world::{Flows, SCRATCH_WORDS, World},
};

/// The calls. A world may make them as it likes, as long as it comes to the same.
pub trait SlowPath<V: Flows>: World + Sized {
    /// Notes what a packet of the client says of its flow; see [`Refreshing`].
    fn refresh(&self, call: &mut Refreshing<V>) -> u32 {
        refresh::run(call, self) as u32
    }
    /// Chooses the colour of a new flow; see [`Opening`].
    fn choose_colour(&self, call: &mut Opening<V>) -> u32 {
        open::choose_colour(call, self) as u32
    }
    /// Chooses the backend of a new flow; see [`Opening`].
    fn choose_backend(&self, call: &mut Opening<V>) -> u32 {
        open::choose_backend(call, self).to_u32()
    }
    /// Looks for a flow that the backend could not tell from the new one; see [`Opening`].
    fn find_rival(&self, call: &mut Opening<V>) -> u32 {
        open::find_rival(call, self).to_u32()
    }
    /// Stores a new flow; see [`Opening`].
    fn store(&self, call: &mut Opening<V>) -> u32 {
        store(V::flows(self), &call.key, call.hash, &call.flow, call.is_known, call.now) as u32
    }
    /// Notes what a packet of the backend says of its flow; see [`Answering`].
    fn answer(&self, call: &mut Answering<V>) -> u32 {
        answer::run(call, self) as u32
    }
    /// Looks for the flow of a backend's packet in all places; see [`Locating`].
    fn locate(&self, call: &mut Locating<V>) -> u32 {
        locate::run(call, self).to_u32()
    }
}

/// The functions behind the calls, for a world that makes them in its own way.
pub mod run {
    pub use super::{
        answer::run as answer,
        locate::run as locate,
        open::{choose_backend, choose_colour, find_rival},
        refresh::run as refresh,
    };
}

/// A call's struct in the scratch buffer.
#[inline(always)]
fn in_scratch<'a, T>(world: &'a impl World, call: T) -> Option<&'a mut T> {
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
pub fn refresh<V: Flows>(world: &impl SlowPath<V>, call: Refreshing<V>) -> Option<Stay> {
    Some(Stay::from_u32(world.refresh(in_scratch(world, call)?)))
}

/// See [`SlowPath::answer`]. `None`: there is no scratch buffer.
#[inline(always)]
pub fn answer<V: Flows>(world: &impl SlowPath<V>, call: Answering<V>) -> Option<Answer> {
    Some(Answer::from_u32(world.answer(in_scratch(world, call)?)))
}

/// See [`SlowPath::locate`]. Hash and place of the row. `None`: there is none.
#[inline(always)]
pub fn locate<V: Flows>(world: &impl SlowPath<V>, call: Locating<V>) -> Option<(u32, u32)> {
    let call = in_scratch(world, call)?;
    for _ in 0..rolled(search::STEPS) {
        match Step::from_u32(world.locate(call)) {
            Step::Found(place) => return Some((call.search.hash, place)),
            Step::Next => {}
            Step::End => break,
        }
    }
    None
}

/// A flow that is being opened.
pub struct Open<'a, V: Flows, W> {
    call: &'a mut Opening<V>,
    world: &'a W,
}

impl<'a, V: Flows, W: SlowPath<V>> Open<'a, V, W> {
    /// Begins. `None`: there is no scratch buffer.
    #[inline(always)]
    pub fn new(world: &'a W, call: Opening<V>) -> Option<Self> {
        Some(Self { call: in_scratch(world, call)?, world })
    }

    /// See [`SlowPath::choose_colour`].
    #[inline(always)]
    pub fn choose_colour(&mut self) -> Chosen {
        Chosen::from_u32(self.world.choose_colour(self.call))
    }

    /// See [`SlowPath::choose_backend`].
    #[inline(always)]
    pub fn choose_backend(&mut self) -> Placed {
        Placed::from_u32(self.world.choose_backend(self.call))
    }

    /// See [`SlowPath::find_rival`].
    #[inline(always)]
    pub fn has_rival(&mut self) -> bool {
        for _ in 0..rolled(search::STEPS) {
            match Step::from_u32(self.world.find_rival(self.call)) {
                Step::Found(_) => return true,
                Step::Next => {}
                Step::End => break,
            }
        }
        false
    }

    /// Goes on to another entry of the Maglev table. The step (the golden ratio's) is no multiple of any table's length.
    #[inline(always)]
    pub fn step(&mut self) {
        self.call.tuple_hash = self.call.tuple_hash.wrapping_add(0x9e37_79b9);
    }

    /// See [`SlowPath::store`].
    #[inline(always)]
    pub fn store(&mut self) -> Stored {
        Stored::from_u32(self.world.store(self.call))
    }
}
