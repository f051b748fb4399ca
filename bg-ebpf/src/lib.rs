//! The packet engine: what happens to a frame, decided once, for the kernel and for the host alike.
//!
//! Modules import each other downwards only:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`path`] | the way of a packet: [`path::classify`], [`path::forward`], [`path::reply`], and their [`path::slow`] path |
//! | [`egress`] | the way out: next hop, rewriting |
//! | [`policy`] | decisions: colour, backend, when a flow is over |
//! | [`verdict`], [`hook`] | what is decided, and where a frame was met |
//! | [`world`], [`rows`] | what the engine asks of maps, clock and routes |
//! | [`step`] | the steps that decide, for those who want to know |
//! | [`flow`] | the flow table: rows of words |
//! | [`wire`] | packet bytes, headers, checksums |
//!
//! The library is `no_std`, does not allocate, panics nowhere and has no global state. `main.rs` and
//! `kernel/` put XDP and tc around it; tests put buffers and plain collections around it.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "compare-exchange: the target has no atomics in core")
)]

#[cfg(target_endian = "big")]
compile_error!("addresses and MACs are kept as little-endian words; a big-endian port needs them reviewed");

pub mod egress;
pub mod flow;
pub mod hint;
pub mod hook;
pub mod path;
pub mod policy;
pub mod rows;
pub mod step;
pub mod unpack;
pub mod verdict;
pub mod wire;
pub mod world;

use bg_common::Event;
use egress::{
    outer,
    reset::{self, Sequence, Turned},
    rewrite::{Rewritable, Writer},
    unreachable::{self, Room},
};
use hint::unlikely;
use path::{
    classify::{Found, backend_at, vip_at},
    direct, error,
    forward::{Arrival, forward},
    relay,
    reply::restore,
    slow::SlowPath,
};
use step::Step;
use wire::{
    ethernet,
    headers::{Parsed, V4, V6},
    packet::Packet,
    transport,
};
use world::{EXPLAINS, Flows, World, note};

pub use hook::{Direction, Frame, Hook};
pub use verdict::{Action, Reason, Verdict};

/// Processes one frame. `packet` is for reading; `writer` makes the changes, and may work on the same
/// bytes, since nothing is read after the first change.
#[inline(always)]
pub fn process<W: SlowPath<V4> + SlowPath<V6>>(
    packet: &Packet<'_>,
    frame: Frame,
    world: &W,
    writer: &mut impl Writer,
) -> Verdict {
    let Some((ether_type, l3)) = ethernet::payload(packet) else { return Verdict::PASS };
    if frame.direction != Direction::Egress {
        let Some(destination) = ethernet::destination(packet) else { return Verdict::PASS };
        // Met on a segment that floods, or by a promiscuous interface: another machine's.
        if unlikely(!world.is_addressed_here(destination)) {
            note!(world, Step::OtherMachine {});
            return Verdict::PASS;
        }
    }
    match ether_type {
        ethernet::IPV4 => of_version::<V4, W>(packet, l3, frame, world, writer),
        ethernet::IPV6 => of_version::<V6, W>(packet, l3, frame, world, writer),
        _ => Verdict::PASS,
    }
}

/// Processes a frame of which [`process`] says [`Action::Icmp`]. The kernel makes the same three calls.
pub fn process_icmp<W: SlowPath<V4> + SlowPath<V6>>(
    packet: &Packet<'_>,
    frame: Frame,
    world: &W,
    writer: &mut impl Writer,
) -> Verdict {
    let Some(family) = error::read(packet, frame.len, world) else { return Verdict::PASS };
    let receiver = error::find(family, world);
    error::send(receiver, family, frame, world, writer)
}

/// Decides of an ICMP message that tc lets pass otherwise. The kernel makes the same three calls. If it says [`Action::Resolve`], the frame has to be changed yet:
/// [`relay::room`] and [`relay::write()`].
pub fn process_relayed(packet: &Packet<'_>, frame: Frame, world: &impl World) -> Verdict {
    match relay::read(packet, frame.len, world).and_then(|()| relay::find(world)) {
        Some(()) => relay::way(world),
        None => Verdict::PASS,
    }
}

/// Decides of a frame of which [`process`] or [`process_icmp`] says [`Action::Direct`]. The kernel makes the same two calls. If it says [`Action::Redirect`] or [`Action::Resolve`], the
/// frame has to be changed yet: [`room_for_outer`] and [`write_outer`].
pub fn process_direct(packet: &Packet<'_>, frame: Frame, world: &impl World) -> Verdict {
    match direct::find_way(frame, world) {
        Some(()) => direct::decide(packet, frame, world),
        None => Verdict::drop(world, Event::MissingRow),
    }
}

/// Bytes to insert behind the Ethernet header before [`write_outer`].
#[inline(always)]
pub fn room_for_outer(world: &impl World) -> Option<usize> {
    direct::room(world).map(usize::from)
}

/// Sends a frame, in which there is room, to the backend that [`process_direct`] has decided on. `None`: it could not be written, and must not be sent.
#[inline(always)]
pub fn write_outer(packet: &Packet<'_>, world: &impl World, writer: &mut impl Writer) -> Option<()> {
    outer::write(packet, direct::outer(world)?, writer)?;
    direct::count(world)
}

/// Turns a frame of which [`process`] says [`Action::Reset`] or [`Action::Refuse`] into a reset to its sender; turned once more, with the sequence number
/// that was returned, it is one from its sender, for [`process`] to send to the other end. `None`: it could not be written, and must
/// not be sent.
#[inline(always)]
pub fn turn_into_reset(packet: &Packet<'_>, number: Sequence, writer: &mut impl Writer) -> Option<Turned> {
    let (ether_type, l3) = ethernet::payload(packet)?;
    match ether_type {
        ethernet::IPV4 => reset::turn::<V4>(packet, l3, number, writer),
        ethernet::IPV6 => reset::turn::<V6>(packet, l3, number, writer),
        _ => None,
    }
}

/// How to make room in a frame that an ICMP error answers: [`Action::Unreachable`], [`Action::TooBig`], [`Action::TimeExceeded`]. `None`: it is not answered.
#[inline(always)]
pub fn room_for_error(packet: &Packet<'_>) -> Option<Room> {
    let (ether_type, l3) = ethernet::payload(packet)?;
    match ether_type {
        ethernet::IPV4 => Room::new::<V4>(packet, l3),
        ethernet::IPV6 => Room::new::<V6>(packet, l3),
        _ => None,
    }
}

/// Turns such a frame, in which there is room, into an ICMP error for its sender. `None`: it could not be written, and must not be sent.
#[inline(always)]
pub fn turn_into_error(packet: &Packet<'_>, reason: Reason, writer: &mut impl Writer) -> Option<()> {
    match ethernet::payload(packet)?.0 {
        ethernet::IPV4 => unreachable::write::<V4>(packet, reason, None, writer),
        ethernet::IPV6 => unreachable::write::<V6>(packet, reason, None, writer),
        _ => None,
    }
}

#[inline(always)]
fn of_version<V: Flows + Rewritable, W: SlowPath<V>>(
    packet: &Packet<'_>,
    l3: usize,
    frame: Frame,
    world: &W,
    writer: &mut impl Writer,
) -> Verdict {
    let (headers, is_malformed) = match transport::parse::<V>(packet, l3, frame.len) {
        Parsed::Whole(headers) => (headers, false),
        Parsed::Malformed(headers) => (headers, true),
        Parsed::Icmp => return Verdict::ICMP,
        Parsed::Other => return Verdict::PASS,
    };
    let vip = match frame.direction {
        Direction::Egress => Found::NONE,
        _ => vip_at::<V>(headers.dst, headers.dst_port(), headers.protocol(), world),
    };
    if frame.direction == Direction::Early && unlikely(vip.is_mirrored) {
        note!(world, Step::MirrorByTc {});
        return Verdict::DEFER;
    }
    if unlikely(is_malformed) {
        return if vip.is_some { Verdict::drop(world, Event::Malformed) } else { Verdict::PASS };
    }
    let hook = Hook { direction: frame.direction, frame_len: frame.len, world, now: world.tick() };
    note!(world, Step::Begin { direction: frame.direction as u64, now: hook.now.into() });
    note!(world, if vip.is_some { Step::Vip { row: vip.number.into() } } else { Step::NoVip {} });
    // Here the flow of a client's packet is looked for.
    let arrival = Arrival::new::<V>(&headers, vip, &hook);
    // A backend may be a client too, of this or another service, so its own flow comes first.
    if !arrival.is_known() {
        let source = backend_at::<V>(headers.src, headers.src_port(), headers.protocol(), world);
        if source.is_some
            && let Some(verdict) = restore(&headers, source, &hook, writer)
        {
            return verdict;
        }
        if EXPLAINS && source.is_some {
            world.note(Step::NoReply {});
        }
    }
    if arrival.is_to_vip() { forward(&headers, &arrival, &hook, writer) } else { Verdict::PASS }
}
