//! The flow of a backend's packet, where the first row of the client is not it: the client uses one port for several virtual
//! addresses, or services that share a backend have different salts.

use crate::{
    flow::{
        key::{Key, Match},
        table::{WAYS, place, read},
    },
    hint::rolled,
    rows::BackendRef,
    wire::headers::Headers,
    world::{Flows, World},
};
use bg_common::{MAX_CHAIN, endpoint_hash};

/// A packet whose source is a backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Locating<V: Flows> {
    /// In: the packet.
    pub headers: Headers<V>,
    /// In: the client's end; any virtual address.
    pub key: V::Key,
    /// Out, if it was found: the key's hash by the salt that it was found with.
    pub hash: u32,
}

/// The place of a row for [`Locating::hash`], or that there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Located(u32);

impl Located {
    const NOWHERE: Self = Self(u32::MAX);

    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(located: u32) -> Self {
        Self(located)
    }

    /// For the call to return.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        self.0
    }

    /// The place; see [`place`].
    #[inline(always)]
    pub const fn place(self) -> Option<u32> {
        if self.0 == Self::NOWHERE.0 { None } else { Some(self.0) }
    }
}

#[inline(always)]
pub fn run<V: Flows, W: World>(call: &mut Locating<V>, world: &W) -> Located {
    let headers = call.headers;
    let (address, port, protocol) = (headers.src, headers.src_port(), headers.protocol);
    let flows = V::flows(world);
    let mut link = world.backend_head(endpoint_hash(&V::widen(address), port, protocol as u8));
    for _ in 0..rolled(MAX_CHAIN) {
        if link == 0 {
            break;
        }
        let Some(node) = world.backend(link.wrapping_sub(1)).map(BackendRef) else { break };
        if node.is_at::<V>(address, port, protocol) {
            call.hash = call.key.hash(node.salt(), flows);
            for nth in 0..rolled(2 * WAYS) {
                let Some(row) = place::<V::Key, _>(flows, call.hash, nth) else { break };
                let Some(flow) = read(flows, row, &call.key, Match::Client) else { continue };
                let Some(its) = world.backend(flow.backend().slot()).map(BackendRef) else { continue };
                if its.is(flow.backend()) && its.is_at::<V>(address, port, protocol) {
                    return Located(nth);
                }
            }
        }
        link = node.next();
    }
    Located::NOWHERE
}
