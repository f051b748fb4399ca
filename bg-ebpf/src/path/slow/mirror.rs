//! The backend of a copy, and whose answers are answers to copies.

use super::search::{self, Search, Step, write_key};
use crate::{
    flow::{
        bucket::{WAYS, place},
        key::{Key as _, Match},
        memory::Words as _,
        row::FlowRef,
        table::read,
    },
    hint::{rolled, unlikely},
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
    /// The client's end and the row of `vips` that the datagram was sent to. Looks for a flow of the client at the backend.
    pub search: Search,
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

/// Chooses the backend: its slot. There is none, too, if the client has a flow there, by another virtual address or since a switch: the backend could
/// not tell the copy from a datagram of that flow, and its answer would reach the client.
#[inline(always)]
pub(super) fn choose(call: &mut Copying, world: &impl World, step: impl Fn(&mut Search) -> u32) -> u32 {
    let slot = choice(call, world).unwrap_or(NO_BACKEND);
    if slot != NO_BACKEND && search::run(&mut call.search, world, step) == search::NOWHERE { slot } else { NO_BACKEND }
}

#[inline(always)]
fn choice(call: &mut Copying, world: &impl World) -> Option<u32> {
    let vip = VipRef(world.vip(call.search.vip.into())?);
    let row = world.service(&vip.key())?;
    // The mirror may have been taken away while the copy was under way.
    if !vip.is_mirrored() {
        return None;
    }
    let colour = if call.mark == mark(Colour::Blue) { Colour::Blue } else { Colour::Green };
    let chosen = backend::at(backend::table(row, colour), call.tuple_hash, world)?;
    (call.search.address, call.search.port) = (chosen.backend.whole_address(), chosen.backend.port());
    Some(chosen.name.slot())
}

/// Steps of a search, each of which looks at one row of the flow table.
const STEPS: u32 = search::STEPS * (PLACES + 1);
/// Places in which a client's flow may be.
const PLACES: u32 = 2 * WAYS;

/// Whether the backend of the search gets copies of what its client sends: not zero, it does.
#[inline(always)]
pub(super) fn run(search: &mut Search, world: &impl World, step: impl Fn(&mut Search) -> u32) -> u32 {
    search.begin(world);
    for _ in rolled(STEPS) {
        match Step::from_u32(step(search)) {
            Step::Found(_) => return 1,
            Step::Next => {}
            Step::End => break,
        }
    }
    0
}

/// Looks at the next of the client's flows, for a row of the source's list in `backend_index`: does the source get copies of it? A step looks
/// at one flow, because the verifier would follow each way through what comes after a flow that was found, once for each place.
#[inline(always)]
pub fn step<V: Flows, W: World>(search: &mut Search, world: &W) -> Step {
    if search.link == 0 {
        return Step::End;
    }
    let Some(node) = world.backend(search.link.wrapping_sub(1)).map(BackendRef) else { return Step::End };
    if search.place == PLACES || !node.is_at::<V>(V::narrow(&search.address), search.port, Protocol::Udp) {
        (search.link, search.place) = (node.next(), 0);
        return Step::Next;
    }
    let flows = V::flows(world);
    let key = write_key::<V>(&mut search.key, &search.client, 0);
    if search.place == 0 {
        search.hash = key.hash(node.salt(), flows);
    }
    let nth = search.place;
    search.place = nth.wrapping_add(1);
    let Some(row) = place::<V::Key, _>(flows, search.hash, nth) else { return Step::Next };
    // In this word nearly all keys differ.
    if !unlikely((row.load(V::Key::HEAD - 1) ^ key.word(V::Key::HEAD - 1)) & Match::Client.mask() == 0) {
        return Step::Next;
    }
    match read(flows, row, key, Match::Client) {
        Some(flow) if has_copies_at::<V>(&flow, node, search, world) => {
            note!(world, step::Step::MirrorAnswer { row: flow.vip().into() });
            Step::Found(nth)
        }
        _ => Step::Next,
    }
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
