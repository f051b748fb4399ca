//! A search for a client's flow by what its backend sees: the client's end, and the backend's own address, port and protocol.

use crate::{
    flow::{
        bucket::{WAYS, place},
        key::{Key as _, Match},
        table::read,
    },
    hint::rolled,
    policy::{colour::Client, lifetime::is_open},
    rows::BackendRef,
    world::{Flows, World},
};
use bg_common::{Addr, Be16, MAX_CHAIN, Protocol, endpoint_hash};

/// Steps of a search: one for each row of `backends` that may be in a list.
pub(super) const STEPS: u32 = MAX_CHAIN;

/// A search. Each step looks at one row of the list in `backend_index`: services that share a backend have one salt, as a rule,
/// so that the first step is the last.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Search {
    /// The client's end.
    pub client: Client,
    /// The backend's address.
    pub address: Addr,
    /// The backend's port.
    pub port: Be16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Whether a flow by another virtual address than `vip` is looked for, rather than by any.
    pub is_for_rivals: bool,
    /// Whether a flow that is over will do.
    pub allows_over: bool,
    /// Row of `vips`.
    pub vip: u16,
    /// The tick.
    pub now: u32,
    /// The row of `backends` to look at, plus one.
    pub link: u32,
    /// Out: the hash of the flow's key.
    pub hash: u32,
}

/// What a step has found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The flow: its place for [`Search::hash`].
    Found(u32),
    /// Nothing, but there is another row to look at.
    Next,
    /// Nothing, and that was all.
    End,
}

impl Step {
    const NEXT: u32 = u32::MAX;
    const END: u32 = u32::MAX - 1;

    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(step: u32) -> Self {
        match step {
            Self::NEXT => Self::Next,
            Self::END => Self::End,
            place => Self::Found(place),
        }
    }

    /// For the call to return.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::Found(place) => place,
            Self::Next => Self::NEXT,
            Self::End => Self::END,
        }
    }
}

impl Search {
    /// Begins at the head of the backend's list.
    #[inline(always)]
    pub fn begin(&mut self, world: &impl World) {
        self.link = world.backend_head(endpoint_hash(&self.address, self.port, self.protocol as u8));
    }
}

/// Looks at the next row, and for a flow of the client in the buckets of its salt.
#[inline(always)]
pub fn step<V: Flows, W: World>(search: &mut Search, world: &W) -> Step {
    if search.link == 0 {
        return Step::End;
    }
    let Some(node) = world.backend(search.link.wrapping_sub(1)).map(BackendRef) else { return Step::End };
    search.link = node.next();
    let address = V::narrow(&search.address);
    if !node.is_at::<V>(address, search.port, search.protocol) {
        return Step::Next;
    }
    let flows = V::flows(world);
    let key = V::key(V::narrow(&search.client.address), search.client.port, search.vip);
    search.hash = key.hash(node.salt(), flows);
    for nth in 0..rolled(2 * WAYS) {
        let Some(row) = place::<V::Key, _>(flows, search.hash, nth) else { break };
        let Some(flow) = read(flows, row, &key, Match::Client) else { continue };
        let Some(backend) = world.backend(flow.backend().slot()).map(BackendRef) else { continue };
        let is_own = search.is_for_rivals && flow.vip() == search.vip;
        if is_own || !backend.is(flow.backend()) || !backend.is_at::<V>(address, search.port, search.protocol) {
            continue;
        }
        let settings = world.deployment(backend.deployment());
        if search.allows_over || settings.is_some_and(|row| is_open(flow.flow(), search.protocol, row, search.now)) {
            return Step::Found(nth);
        }
        if search.is_for_rivals {
            // It was silent for too long, or has ended. Its backend is about to serve another one: replies are that one's.
            flow.end();
        }
    }
    Step::Next
}
