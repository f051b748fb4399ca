//! A search for a client's flow by what its backend sees: the client's end, and the backend's own address, port and protocol.

use crate::{
    flow::{
        key::{Key as _, Match},
        row::FlowRef,
        table::{WAYS, find_compactly, place, read},
    },
    hint::rolled,
    rows::{BackendRef, VipRef},
    world::{Flows, World},
};
use bg_common::{Addr, Be16, MAX_CHAIN, Protocol, endpoint_hash};

/// The flow of a key, which names the row `vip` of `vips`.
#[inline(always)]
pub(super) fn by_key<V: Flows, W: World>(key: &V::Key, vip: u16, world: &W) -> Option<FlowRef> {
    let row = VipRef(world.vip(vip.into())?);
    let flows = V::flows(world);
    find_compactly(flows, key, key.hash(row.salt(), flows))
}

/// Steps of a search: one for each row of `backends` that may be in a list.
pub(super) const STEPS: u32 = MAX_CHAIN;

/// A search. Each step looks at one row of the list in `backend_index`: services that share a backend have one salt, as a rule,
/// so that the first step is the last.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Search<V: Flows> {
    /// The backend's address.
    pub address: V::Address,
    /// The backend's port.
    pub port: Be16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The row to look at, plus one.
    pub link: u32,
    /// The key's hash by the salt of the row that was looked at.
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

impl<V: Flows> Search<V> {
    /// Begins a search.
    #[inline(always)]
    pub fn new(address: V::Address, port: Be16, protocol: Protocol, world: &impl World) -> Self {
        let link = world.backend_head(endpoint_hash(&V::widen(address), port, protocol as u8));
        Self { address, port, protocol, link, hash: 0 }
    }

    /// No search.
    #[inline(always)]
    pub fn none() -> Self {
        Self { address: V::narrow(&Addr::default()), port: Be16(0), protocol: Protocol::Tcp, link: 0, hash: 0 }
    }

    /// Looks at the next row, and then for a flow of the client in the buckets of its salt that `is_right`.
    #[inline(always)]
    pub fn step<W: World>(&mut self, key: &V::Key, world: &W, is_right: impl Fn(&FlowRef, BackendRef) -> bool) -> Step {
        if self.link == 0 {
            return Step::End;
        }
        let Some(node) = world.backend(self.link.wrapping_sub(1)).map(BackendRef) else { return Step::End };
        self.link = node.next();
        if !node.is_at::<V>(self.address, self.port, self.protocol) {
            return Step::Next;
        }
        let flows = V::flows(world);
        let hash = key.hash(node.salt(), flows);
        self.hash = hash;
        for nth in 0..rolled(2 * WAYS) {
            let Some(row) = place::<V::Key, _>(flows, hash, nth) else { break };
            let Some(flow) = read(flows, row, key, Match::Client) else { continue };
            let Some(backend) = world.backend(flow.backend().slot()).map(BackendRef) else { continue };
            if backend.is(flow.backend())
                && backend.is_at::<V>(self.address, self.port, self.protocol)
                && is_right(&flow, backend)
            {
                return Step::Found(nth);
            }
        }
        Step::Next
    }
}
