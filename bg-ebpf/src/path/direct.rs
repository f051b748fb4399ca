//! To a backend that replies to clients directly: modes `l2dsr`, `ipip` and `gue`.
//!
//! The flow is found or opened as every other. What is different comes after that, in steps, all but the first of which are global functions in
//! the kernel, and work on what the ones before have left in the scratch buffer:
//!
//! 1. [`begin`] notes what is known of the packet.
//! 2. [`find_way`] looks up the way to the backend.
//! 3. [`decide`] decides whether the packet takes it. The host's stack cannot help: it would take a packet for the virtual address for its own, or send it back
//!    here, and an outer header with its own source address for a martian. So what has no way is dropped, and what does not fit, or has no hop left, is answered by
//!    the data path itself.
//! 4. [`outer::write`] changes the frame, once there is room for the outer headers.
//!
//! A frame with a VLAN tag passes unmodified, and opens no flow: the VLAN's own interface is where such a service is switched.

use super::slow;
use crate::{
    egress::{
        next_hop,
        outer::{self, Outer},
    },
    flow::key::FlowVersion,
    hook::{Direction, Frame, Hook},
    rows::{BackendRef, TunnelRef},
    step::Step,
    verdict::{Action, Exit, Verdict},
    wire::{
        ethernet,
        headers::{Headers, IpVersion as _, V4, V6, ports},
        icmp::IcmpError,
        packet::Packet,
    },
    world::{World, note},
};
use bg_common::{Addr, Be16, Event, Family, Mode, NextHop, Protocol};

/// The least MTU that an ICMPv6 error tells (RFC 8200, section 5). What does not fit then is lost: `bgctl doctor` warns of such a way.
const LEAST_MTU_OF_V6: u32 = 1280;

/// Offset of the byte with the header's length in a TCP header.
const TCP_OFFSET: usize = 12;

/// What is known of the packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Directed {
    /// What it becomes. Of the first step: the inner packet's family and length.
    pub outer: Outer,
    /// The client's address.
    pub client: Addr,
    /// The virtual address.
    pub vip: Addr,
    /// Ports of client and virtual address, as of a packet of the client.
    pub ports: u32,
    /// Slot of its backend.
    pub slot: u32,
    /// Bytes of its IP header, and of a transport header without options.
    pub headers_len: u32,
    /// Bytes of its frame.
    pub frame_len: u32,
    /// [`Protocol`] of the flow.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Not zero if it has opened a flow that the flow table would not take.
    pub is_unpinned: u8,
    /// Not zero if it is an ICMP error.
    pub is_error: u8,
    /// Not zero if an ICMP error may answer it.
    pub is_answerable: u8,
    /// Offset of its transport header.
    pub l4: u8,
    /// Offset of its IP header.
    pub l3: u8,
    /// Zero.
    pub reserved: u8,
}

impl Directed {
    #[inline(always)]
    const fn new(slot: u32, inner: Family, ip_len: u32) -> Self {
        let none = Addr([0; 4]);
        let outer = Outer {
            hop: NextHop::NONE,
            src: none,
            dst: none,
            hash: 0,
            ip_len,
            port: Be16(0),
            inner: inner as u8,
            family: 0,
            mode: 0,
            room: 0,
            is_gso: 0,
            resolves: 0,
        };
        Self {
            outer,
            client: none,
            vip: none,
            ports: 0,
            slot,
            headers_len: 0,
            frame_len: 0,
            protocol: 0,
            hop_limit: 0,
            is_unpinned: 0,
            is_error: 0,
            is_answerable: 0,
            l4: 0,
            l3: 0,
            reserved: 0,
        }
    }

    /// Of an ICMP error about a reply of the backend in this slot. It takes the way of the flow's packets.
    #[inline(always)]
    pub fn of_error(slot: u32, family: Family, error: &IcmpError) -> Self {
        Self {
            client: error.dst,
            vip: error.src,
            ports: ports(error.dst_port, error.src_port),
            l3: error.l3,
            protocol: error.protocol,
            hop_limit: error.hop_limit,
            is_error: 1,
            ..Self::new(slot, family, error.ip_len)
        }
    }

    /// The flow's hash.
    #[inline(always)]
    fn hash(&self) -> u32 {
        let protocol = if self.protocol == Protocol::Udp as u8 { Protocol::Udp } else { Protocol::Tcp };
        if self.outer.inner == Family::V6 as u8 {
            V6::tuple_hash(V6::narrow(&self.client), V6::narrow(&self.vip), self.ports, protocol)
        } else {
            V4::tuple_hash(V4::narrow(&self.client), V4::narrow(&self.vip), self.ports, protocol)
        }
    }
}

/// First step, for a packet of a client. [`Action::Direct`], or a drop.
#[inline(always)]
pub fn begin<V: FlowVersion>(
    headers: &Headers<V>,
    backend: BackendRef,
    is_unpinned: bool,
    hook: &Hook<'_, impl World>,
) -> Verdict {
    let transport = match headers.protocol() {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
    };
    // Such a row is in no list, and its link says where it is.
    let slot = backend.next().wrapping_sub(1);
    let call = Directed {
        client: V::widen(headers.src),
        vip: V::widen(headers.dst),
        ports: headers.ports,
        headers_len: (headers.l4 - headers.l3) as u32 + transport,
        l3: headers.l3 as u8,
        protocol: headers.protocol() as u8,
        hop_limit: headers.hop_limit,
        is_unpinned: is_unpinned.into(),
        is_answerable: V::is_of_one_host(headers.src).into(),
        l4: headers.l4 as u8,
        ..Directed::new(slot, V::FAMILY, headers.ip_len)
    };
    leave_to_next_step(call, hook.world)
}

/// Has the next step find what is known of the packet.
#[inline(always)]
pub(super) fn leave_to_next_step(call: Directed, world: &impl World) -> Verdict {
    match slow::keep(world, call) {
        Some(_) => Verdict::DIRECT,
        None => Verdict::drop(world, Event::MissingRow),
    }
}

/// Whether the frame whose IP header stands at `l3` has a VLAN tag.
#[inline(always)]
pub(super) fn is_tagged(l3: usize, world: &impl World) -> bool {
    ethernet::is_tagged(l3) || world.is_tagged()
}

/// What becomes of a frame with a tag: another interface has it next. No flow is opened here, so if there is none, none is counted.
#[inline(always)]
pub(super) fn pass_tagged(direction: Direction, world: &impl World) -> Verdict {
    note!(world, Step::ByStack { event: Event::NextHopByStack as u64 });
    if direction == Direction::Early {
        return Verdict::DEFER;
    }
    world.count(Event::NextHopByStack);
    Verdict::PASS
}

/// Second step. `None`: a row is missing.
#[inline(always)]
pub fn find_way(frame: Frame, world: &impl World) -> Option<()> {
    let call = slow::kept::<Directed>(world)?;
    let backend = world.backend(call.slot).map(BackendRef)?;
    let hook = Hook { direction: frame.direction, frame_len: 0, world, now: world.tick() };
    let (mode, family) = (backend.mode(), backend.family());
    let hash = call.hash();
    let outer = &mut call.outer;
    outer.hash = hash;
    (outer.mode, outer.family, outer.room) = (mode, family, outer::room(mode, family));
    outer.dst = backend.whole_address();
    // Where nothing is encapsulated, the route is that of the client's packet.
    outer.src = call.client;
    if outer.room != 0 {
        let tunnel = TunnelRef(world.tunnel(call.slot)?);
        outer.src = tunnel.source(family, outer.hash);
        outer.port = tunnel.port();
    }
    let exit = next_hop::to_direct(backend, outer.src, outer.room == 0, &hook);
    let outer = &mut slow::kept::<Directed>(world)?.outer;
    outer.hop = exit.hop;
    outer.resolves = (exit.action == Action::Resolve).into();
    Some(())
}

/// Third step. With [`Action::Redirect`] and [`Action::Resolve`], the packet is to be changed yet.
#[inline(always)]
pub fn decide(packet: &Packet<'_>, frame: Frame, world: &impl World) -> Verdict {
    let Some(call) = slow::kept::<Directed>(world) else { return Verdict::drop(world, Event::MissingRow) };
    let is_early = frame.direction == Direction::Early;
    if is_tagged(call.l3.into(), world) {
        return pass_tagged(frame.direction, world);
    }
    if call.hop_limit <= 1 {
        note!(world, Step::TtlSpent {});
        return answer(Verdict::TIME_EXCEEDED, Event::DirectExpired, call, is_early, world);
    }
    let outer = &mut call.outer;
    let Addr([a, b, c, d]) = outer.src;
    if !outer.hop.is_some() || a | b | c | d == 0 {
        note!(world, Step::ByStack { event: Event::NoWay as u64 });
        return if is_early { Verdict::DEFER } else { Verdict::drop(world, Event::NoWay) };
    }
    let (gso_size, room, mtu) = (world.gso_size(), u32::from(outer.room), outer.hop.mtu());
    outer.is_gso = (gso_size != 0).into();
    let longest = if gso_size == 0 {
        outer.ip_len
    } else {
        gso_size + call.headers_len + options_len(packet, call.protocol, call.l4)
    };
    // The outer header's length has 16 bits, too.
    if longest + room > mtu || outer.ip_len + room > 0xffff {
        note!(world, Step::ByStack { event: Event::DirectTooBig as u64 });
        let fits = mtu.saturating_sub(room);
        let is_v6 = outer.inner == Family::V6 as u8;
        let fits = if is_v6 && fits < LEAST_MTU_OF_V6 { LEAST_MTU_OF_V6 } else { fits };
        return answer(Verdict::too_big(fits), Event::DirectTooBig, call, is_early, world);
    }
    let Some(backend) = world.backend(call.slot).map(BackendRef) else {
        return Verdict::drop(world, Event::MissingRow);
    };
    let action = if call.outer.resolves != 0 { Action::Resolve } else { Action::Redirect };
    let hook = Hook { direction: frame.direction, frame_len: 0, world, now: world.tick() };
    let exit = next_hop::leave_direct(Exit { action, hop: call.outer.hop }, backend, &hook);
    if exit.action == Action::Defer {
        return Verdict::DEFER;
    }
    call.frame_len = frame.len as u32;
    note!(world, Step::Outer { mode: call.outer.mode.into(), slot: call.slot.into(), room: call.outer.room.into() });
    Verdict::out_of(exit)
}

/// Counts a packet once it is written: one that cannot be is none.
#[inline(always)]
pub fn count(world: &impl World) -> Option<()> {
    let call = slow::kept::<Directed>(world)?;
    let backend = world.backend(call.slot).map(BackendRef)?;
    if call.is_unpinned != 0 {
        world.count_flow(backend.service(), backend.colour());
        world.count(Event::Unpinned);
    }
    if call.is_error == 0 {
        world.count_packet(backend.service(), backend.colour(), call.frame_len.into());
    }
    Some(())
}

/// Bytes of a segment's options. They are read here alone: what is not yet segmented must fit with them, and a sender knows of no outer headers.
#[inline(always)]
fn options_len(packet: &Packet<'_>, protocol: u8, l4: u8) -> u32 {
    if protocol != Protocol::Tcp as u8 {
        return 0;
    }
    // Its upper half is the header's length in words, of which five are no options.
    match packet.header::<[u8; 1]>(usize::from(l4) + TCP_OFFSET) {
        Some([offset]) => u32::from(offset >> 4).saturating_sub(5) * 4,
        None => 0,
    }
}

/// The answer to a packet that goes no further, with its reason counted; a drop, if it must not be answered. XDP leaves it to tc.
#[inline(always)]
fn answer(verdict: Verdict, reason: Event, call: &Directed, is_early: bool, world: &impl World) -> Verdict {
    if is_early {
        return Verdict::DEFER;
    }
    if call.is_answerable == 0 || !world.may_send_error(verdict.action() == Action::TooBig) {
        return Verdict::drop(world, reason);
    }
    world.count(reason);
    verdict
}

/// Bytes of the room that the last step needs in front of the packet, behind the Ethernet header. `None`: there is no scratch buffer.
#[inline(always)]
pub fn room(world: &impl World) -> Option<u8> {
    slow::kept::<Directed>(world).map(|call| call.outer.room)
}

/// The family of the outer header, and whether UDP follows it, for a kernel that wants to know.
#[inline(always)]
pub fn kind(world: &impl World) -> Option<(u8, bool)> {
    slow::kept::<Directed>(world).map(|call| (call.outer.family, call.outer.mode == Mode::Gue as u8))
}

/// What the last step writes.
#[inline(always)]
pub fn outer(world: &impl World) -> Option<&Outer> {
    slow::kept::<Directed>(world).map(|call| &call.outer)
}
