//! The flow of a backend's packet, where the first row of the client is not it: the client uses one port for several virtual
//! addresses, or services that share a backend have different salts.

use super::search::{Search, Step};
use crate::world::{Flows, World};

/// A packet whose source is a backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Locating<V: Flows> {
    /// The client's end; any virtual address.
    pub key: V::Key,
    /// The search.
    pub search: Search<V>,
}

/// Looks for the flow; the search goes on while it says [`Step::Next`].
#[inline(always)]
pub fn run<V: Flows, W: World>(call: &mut Locating<V>, world: &W) -> Step {
    let key = call.key;
    call.search.step(&key, world, |_, _| true)
}
