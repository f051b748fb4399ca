//! The mirror of a UDP service: a copy of each datagram for the live colour goes to the idle colour, and what that answers is dropped.
//!
//! | hook | what it does with a datagram to a virtual address with a mirror |
//! | --- | --- |
//! | XDP | leaves it to tc, which can send a frame twice |
//! | tc ingress | has an unmodified copy of it come by the same hook, marked with the colour that it is for, and goes on with the datagram |
//! | tc ingress, with the mark | sends the copy to a backend of that colour |
//!
//! So a copy takes the way of any packet: all modes, next hops and checksums are those of the datagram itself. It opens no flow, changes none, and has
//! no copy. The same hash chooses its backend each time, so the copies of a flow stay together as long as the colour's backends do.
//!
//! The idle colour gets each datagram once. A datagram whose own flow is there (a tester's, by the preview address, of a drain or a share) has no copy.

use super::slow::{self, Copying, Search, SlowPath};
use crate::{hook::Hook, policy::colour::Client, rows::BackendRef, wire::headers::Headers, world::Flows};
use bg_common::{Addr, Be16};

/// The backend that a copy with this mark goes to. `None`: there is none, or the client has a flow there.
#[inline(always)]
pub fn backend_of_copy<V: Flows>(
    headers: &Headers<V>,
    vip: u16,
    mark: u32,
    hook: &Hook<'_, impl SlowPath<V>>,
) -> Option<BackendRef> {
    let client = Client { address: V::widen(headers.src), port: headers.src_port(), family: V::FAMILY };
    let call = Copying {
        search: Search { vip, ..Search::of_reply(client, Addr::default(), Be16(0), headers.protocol(), hook.now) },
        mark,
        tuple_hash: V::tuple_hash(headers.src, headers.dst, headers.ports, headers.protocol()),
    };
    let slot = slow::backend_of_copy(hook.world, call)?;
    hook.world.backend(slot).map(BackendRef)
}
