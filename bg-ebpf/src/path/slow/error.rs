//! Whom an ICMP error is for, and what it has to say instead.

use super::search::Search;
use crate::{
    egress::{rewrite::End, translate::Translation},
    flow::{
        bucket::place,
        key::{Key as _, Match},
        table::{find, read},
    },
    hint::unlikely,
    path::classify::vip_at,
    policy::{
        backend,
        colour::{self, Client},
        lifetime::is_silent,
    },
    rows::VipRef,
    wire::{headers::ports, icmp::IcmpError},
    world::{Flows, World},
};
use bg_common::{FlowState, LiveFlags, Mode, Protocol};
use core::mem::MaybeUninit;

/// An ICMP error that is being translated. Any bytes are a value of this type.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Translating {
    /// In: the error.
    pub error: IcmpError,
    /// In, of [`client`]: the hash of the client's flow.
    pub(super) hash: u32,
    /// In, of [`client`]: its place for this hash. Out, of [`backend`] with [`Receiver::Direct`]: the backend's slot.
    pub(super) place: u32,
    /// Out, if there is a receiver: what to replace.
    pub translation: Translation,
    /// Out, of [`backend`].
    search: MaybeUninit<Search>,
}

impl Translating {
    /// The backend's slot, with [`Receiver::Direct`].
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        self.place
    }

    /// The search.
    ///
    /// # Safety
    ///
    /// [`backend`] must have looked for a backend.
    #[inline(always)]
    pub(super) const unsafe fn search(&mut self) -> &mut Search {
        // SAFETY: it has written it.
        unsafe { self.search.assume_init_mut() }
    }
}

/// Whom an error is for, of those who know the quoted packet by another address.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// Nobody that is known: it passes.
    None = 0,
    /// A client.
    Client = 1,
    /// A client that is this host itself.
    OwnClient = 2,
    /// A backend.
    Backend = 3,
    /// A backend that is an address of this host.
    LocalBackend = 4,
    /// Nobody: it is about a copy, of which its client must not hear.
    Nobody = 5,
    /// A backend that has sent the quoted packet as it is. There is nothing to translate, but only the backend can make use of the error:
    /// [`Translating::slot`].
    Direct = 6,
}

impl Receiver {
    /// From what the call has returned.
    #[inline(always)]
    pub const fn from_u32(receiver: u32) -> Self {
        match receiver {
            1 => Self::Client,
            2 => Self::OwnClient,
            3 => Self::Backend,
            4 => Self::LocalBackend,
            5 => Self::Nobody,
            6 => Self::Direct,
            _ => Self::None,
        }
    }
}

/// Looks for the backend that has sent the quoted packet, which bears a virtual address as its source. If there is none, the
/// search for the flow of a packet from a client to a backend is ready to begin.
#[inline(always)]
pub fn backend<V: Flows>(call: &mut Translating, world: &impl World) -> Receiver {
    let error = &call.error;
    let protocol = Protocol::from_u8(error.protocol).unwrap_or(Protocol::Udp);
    let client = Client { address: error.src, port: error.src_port, family: V::FAMILY };
    call.search.write(Search::of_reply(client, error.dst, error.dst_port, protocol, world.tick()));
    find_backend::<V>(call, protocol, world).unwrap_or(Receiver::None)
}

#[inline(always)]
fn find_backend<V: Flows>(call: &mut Translating, protocol: Protocol, world: &impl World) -> Option<Receiver> {
    let error = &call.error;
    let vip = vip_at::<V>(V::narrow(&error.src), error.src_port, protocol, world);
    if !vip.is_some {
        return None;
    }
    let flows = V::flows(world);
    let key = V::key(V::narrow(&error.dst), error.dst_port, vip.number as u16);
    let Some(flow) = find(flows, &key, key.hash(vip.salt, flows), Match::Whole) else {
        call.place = without_row::<V>(&call.error, vip.number, protocol, world)?;
        return Some(Receiver::Direct);
    };
    let backend = backend::of_flow(&flow, world)?;
    if unlikely(backend.mode() >= Mode::L2dsr as u8) {
        call.place = flow.backend().slot();
        return Some(Receiver::Direct);
    }
    call.translation = Translation::new::<V>(error, End::Source, backend.whole_address(), backend.port());
    Some(if backend.mode() == Mode::Local as u8 { Receiver::LocalBackend } else { Receiver::Backend })
}

/// The slot of the backend that has sent the quoted packet to the client directly, if the flow table does not know: of several edges, it is seldom the one that
/// has the flow which hears of its replies. All of them would choose the same backend for the flow. `None`: it would be none of that kind, or the word changes by
/// itself just now.
#[inline(always)]
fn without_row<V: Flows>(error: &IcmpError, vip: u32, protocol: Protocol, world: &impl World) -> Option<u32> {
    let vip = VipRef(world.vip(vip)?);
    let row = world.service(&vip.key())?;
    let word = world.live(row.deployment)?;
    if word.flags().has(LiveFlags::TIMED) {
        return None;
    }
    let client = Client { address: error.dst, port: error.dst_port, family: V::FAMILY };
    let ports = ports(error.dst_port, error.src_port);
    let hash = V::tuple_hash(V::narrow(&error.dst), V::narrow(&error.src), ports, protocol);
    let choice = colour::choose(&client, hash, row, word, world);
    let chosen = backend::at(backend::table(row, choice.colour), hash, world)?;
    (chosen.backend.mode() >= Mode::L2dsr as u8).then_some(chosen.name.slot())
}

/// Looks at the flow that the search has found, for the virtual address that the client has sent the quoted packet to.
#[inline(always)]
pub fn client<V: Flows>(call: &mut Translating, world: &impl World) -> Receiver {
    find_client::<V>(call, world).unwrap_or(Receiver::None)
}

#[inline(always)]
fn find_client<V: Flows>(call: &mut Translating, world: &impl World) -> Option<Receiver> {
    let error = &call.error;
    let protocol = Protocol::from_u8(error.protocol)?;
    let flows = V::flows(world);
    let key = V::key(V::narrow(&error.src), error.src_port, 0);
    let flow = read(flows, place::<V::Key, _>(flows, call.hash, call.place)?, &key, Match::Client)?;
    let backend = backend::of_flow_at::<V>(&flow, V::narrow(&error.dst), error.dst_port, protocol, world)?;
    // What the client has sent to the backend itself, from a port that it uses for the virtual address, or once did.
    let is_silent = is_silent(flow.flow(), protocol, world.deployment(backend.deployment())?, world.tick());
    if is_silent || flow.state().has(FlowState::FOREIGN) {
        return None;
    }
    let vip = VipRef(world.vip(flow.vip().into())?);
    if vip.is_none() {
        return None;
    }
    call.translation = Translation::new::<V>(error, End::Destination, vip.key().addr, vip.port());
    Some(if flow.state().has(FlowState::OWN) { Receiver::OwnClient } else { Receiver::Client })
}
