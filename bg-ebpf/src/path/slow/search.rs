//! A search for a client's flow by what its backend sees: the client's end, and the backend's own address, port and protocol.

use crate::{
    flow::{
        bucket::{WAYS, index, second},
        key::{Key as _, Match},
        memory::{Memory as _, Words as _},
        row::FlowRef,
        table::{read, remove},
    },
    hint::{rolled, unlikely},
    policy::{
        backend,
        colour::Client,
        lifetime::{is_open, is_silent},
    },
    rows::{BackendRef, VipRef},
    world::{Flows, World},
};
use bg_common::{Addr, Be16, FlowKey6, MAX_CHAIN, Protocol, endpoint_hash};

/// Steps of a search: one for each row of `backends` that may be in a list.
pub(super) const STEPS: u32 = MAX_CHAIN;

/// What [`run`] returns if it finds nothing.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Looks for the flow: its place for [`Search::hash`]. `step` makes [`step`], as a call.
#[inline(always)]
pub(super) fn run(search: &mut Search, world: &impl World, step: impl Fn(&mut Search) -> u32) -> u32 {
    search.begin(world);
    for _ in rolled(STEPS) {
        match Step::from_u32(step(search)) {
            Step::Found(place) => return place,
            Step::Next => {}
            Step::End => break,
        }
    }
    NOWHERE
}

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
    /// Whether an open flow by another virtual address than `vip` is looked for, rather than any flow. Others by such addresses are
    /// taken out: one row at most is to have the client's end and the backend.
    pub is_for_rivals: bool,
    /// Row of `vips`.
    pub vip: u16,
    /// The tick.
    pub now: u32,
    /// The row of `backends` to look at, plus one.
    pub link: u32,
    /// The place to look at next among those of the client's flows, if each step looks at one.
    pub place: u32,
    /// Out: the hash of the flow's key.
    pub hash: u32,
    /// Room for that key, of either family. The stack has none to spare.
    pub key: FlowKey6,
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
    /// The search for the flow whose reply a packet from this backend would be.
    #[inline(always)]
    pub fn of_reply(client: Client, address: Addr, port: Be16, protocol: Protocol, now: u32) -> Self {
        Self {
            client,
            address,
            port,
            protocol,
            is_for_rivals: false,
            vip: 0,
            now,
            link: 0,
            place: 0,
            hash: 0,
            key: FlowKey6::default(),
        }
    }

    /// Begins at the head of the backend's list.
    #[inline(always)]
    pub(super) fn begin(&mut self, world: &impl World) {
        self.place = 0;
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
    if !node.is_at::<V>(V::narrow(&search.address), search.port, search.protocol) {
        return Step::Next;
    }
    let flows = V::flows(world);
    let key = write_key::<V>(&mut search.key, &search.client, search.vip);
    search.hash = key.hash(node.salt(), flows);
    let end = key.word(V::Key::HEAD - 1);
    for half in rolled(2) {
        let mask = flows.mask();
        let bucket = if half == 0 { search.hash & mask } else { second(search.hash, mask) };
        let Some(mut next) = flows.bucket(bucket) else { break };
        for nth in rolled(WAYS) {
            let row = next;
            next = row.from(V::Key::ROW);
            // In this word nearly all keys differ.
            if !unlikely((row.load(V::Key::HEAD - 1) ^ end) & Match::Client.mask() == 0) {
                continue;
            }
            let address = V::narrow(&search.address);
            let Some(flow) = read(flows, row, key, Match::Client) else { continue };
            let Some(backend) = backend::of_flow_at::<V>(&flow, address, search.port, search.protocol, world) else {
                continue;
            };
            if !search.is_for_rivals {
                // Of a UDP flow that was silent for long, nothing is a reply; another flow of the client may be open.
                if is_over(&flow, backend, search.protocol, search.now, world) {
                    continue;
                }
                return Step::Found(half * WAYS + index(search.hash, nth));
            }
            if flow.vip() == search.vip {
                continue;
            }
            let is_open = world
                .deployment(backend.deployment())
                .is_some_and(|row| is_open(flow.flow(), search.protocol, row, search.now));
            if is_open {
                // The flow's own row is met where its virtual address has just passed from one service to another.
                if is_same_vip(flow.vip(), search.vip, world) {
                    continue;
                }
                return Step::Found(half * WAYS + index(search.hash, nth));
            }
            // The backend could not tell its flow from the new one either, so nothing is to be found by its row any more.
            remove(flow);
        }
    }
    Step::Next
}

#[inline(always)]
fn is_over(flow: &FlowRef, backend: BackendRef, protocol: Protocol, now: u32, world: &impl World) -> bool {
    matches!(protocol, Protocol::Udp)
        && world.deployment(backend.deployment()).is_none_or(|row| is_silent(flow.flow(), protocol, row, now))
}

/// Whether two rows of `vips` hold the same virtual address.
#[inline(always)]
fn is_same_vip(a: u16, b: u16, world: &impl World) -> bool {
    let row = |number: u16| world.vip(number.into()).map(VipRef);
    row(a).is_some_and(|a| row(b).is_some_and(|b| a.has_key_of(b)))
}

/// Writes the key of a client's end and a row of `vips` into room that suits either family.
#[inline(always)]
pub(super) fn write_key<'a, V: Flows>(room: &'a mut FlowKey6, client: &Client, vip: u16) -> &'a V::Key {
    const { assert!(size_of::<V::Key>() <= size_of::<FlowKey6>() && align_of::<V::Key>() <= align_of::<FlowKey6>()) };
    let key: *mut V::Key = core::ptr::from_mut(room).cast();
    // SAFETY: it is large enough for a key of either family, which is plain data, and it is borrowed.
    unsafe {
        key.write(V::key(V::narrow(&client.address), client.port, vip));
        &*key
    }
}
