//! The backend of a copy, and whose answers are answers to copies.

use super::search::{Search, Step, write_key};
use crate::{
    flow::{
        bucket::{WAYS, index, second},
        key::{Key as _, Match},
        memory::{Memory as _, Words as _},
        row::FlowRef,
        table::read,
    },
    hint::{opaque, rolled, unlikely},
    policy::{backend, lifetime::is_silent},
    rows::{BackendRef, VipRef},
    step,
    wire::headers::ports,
    world::{Flows, World, note},
};
use bg_common::{Colour, FlowState, Protocol};

/// A copy whose backend is to be chosen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Copying {
    /// Row of `vips`.
    pub vip: u32,
    /// See [`mark`].
    pub mark: u32,
    /// Hash of the five-tuple.
    pub tuple_hash: u32,
}

/// What [`World::copy_for`] says of a copy for this colour.
#[inline(always)]
pub const fn mark(colour: Colour) -> u32 {
    1 + colour as u32
}

/// What [`choose`] returns if there is no backend.
pub(super) const NO_BACKEND: u32 = u32::MAX;

/// Chooses the backend: its slot.
#[inline(always)]
pub fn choose<W: World>(call: &mut Copying, world: &W) -> u32 {
    choice(call, world).unwrap_or(NO_BACKEND)
}

#[inline(always)]
fn choice(call: &Copying, world: &impl World) -> Option<u32> {
    let vip = VipRef(world.vip(call.vip)?);
    let row = world.service(&vip.key())?;
    // The mirror may have been taken away while the copy was under way.
    if !vip.is_mirrored() {
        return None;
    }
    let colour = if call.mark == mark(Colour::Blue) { Colour::Blue } else { Colour::Green };
    let chosen = backend::at(backend::table(row, colour), call.tuple_hash, world)?;
    Some(chosen.name.slot())
}

/// Looks at the next row of the source's list in `backend_index`, and at the client's flows: does one of them have copies that the
/// source gets?
#[inline(always)]
pub fn step<V: Flows, W: World>(search: &mut Search, world: &W) -> Step {
    if search.link == 0 {
        return Step::End;
    }
    let Some(node) = world.backend(search.link.wrapping_sub(1)).map(BackendRef) else { return Step::End };
    search.link = node.next();
    if !node.is_at::<V>(V::narrow(&search.address), search.port, Protocol::Udp) {
        return Step::Next;
    }
    let hidden = core::ptr::from_ref(search) as u64;
    let flows = V::flows(world);
    let key = write_key::<V>(&mut search.key, &search.client, 0);
    search.hash = key.hash(node.salt(), flows);
    let end = key.word(V::Key::HEAD - 1);
    for half in rolled(2) {
        let mask = flows.mask();
        let bucket = if half == 0 { search.hash & mask } else { second(search.hash, mask) };
        let Some(mut next) = flows.bucket(bucket) else { break };
        for nth in rolled(WAYS) {
            let row = next;
            next = row.from(V::Key::ROW);
            if !unlikely((row.load(V::Key::HEAD - 1) ^ end) & Match::Client.mask() == 0) {
                continue;
            }
            let Some(flow) = read(flows, row, key, Match::Client) else { continue };
            // SAFETY: the search, of which the compiler would otherwise load all fields before the loop, and keep them on the stack.
            let search: &Search = unsafe { &*(opaque(hidden) as *const Search) };
            if has_copies_at::<V>(&flow, node, search, world) {
                note!(world, step::Step::MirrorAnswer { row: flow.vip().into() });
                return Step::Found(half * WAYS + index(search.hash, nth));
            }
        }
    }
    Step::Next
}

/// Whether copies of a flow's datagrams go to the endpoint of `node`, the source. A list holds one row of an endpoint, which may be another
/// service's: then the table that chooses the backend of the copies tells.
#[inline(always)]
fn has_copies_at<V: Flows>(flow: &FlowRef, node: BackendRef, search: &Search, world: &impl World) -> bool {
    let Some(vip) = world.vip(flow.vip().into()).map(VipRef) else { return false };
    if !vip.is_mirrored() || flow.state().has(FlowState::IDLE_ONLY) {
        return false;
    }
    let Some(own) = backend::of_flow(flow, world) else { return false };
    let Some(settings) = world.deployment(own.deployment()) else { return false };
    if is_silent(flow.flow(), Protocol::Udp, settings, search.now) {
        return false;
    }
    if node.service() == own.service() && node.colour() != own.colour() {
        return true;
    }
    let Some(row) = world.service(&vip.key()) else { return false };
    let ports = ports(search.client.port, vip.port());
    let hash = V::tuple_hash(V::narrow(&search.client.address), vip.address::<V>(), ports, Protocol::Udp);
    let table = backend::table(row, Colour::from_u8(own.colour()).other());
    backend::entry(table, hash, world)
        .is_some_and(|chosen| chosen.backend.is_at::<V>(V::narrow(&search.address), search.port, Protocol::Udp))
}
