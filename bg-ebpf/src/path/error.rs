//! ICMP errors about flows: each end hears of the packets that it has sent, by the addresses that it knows.
//!
//! | the quoted packet | its sender hears | found by |
//! | --- | --- | --- |
//! | client to backend, after [`super::forward`] | the virtual address instead of the backend's | the client's end and the backend |
//! | virtual address to client, after [`super::reply`] | the backend's address instead of the virtual one | the client's end and the virtual address |
//!
//! Translation is on the slow path, in three steps, each of which finds in the scratch buffer what the one before has put there. In
//! the kernel each is a global function: together they would need too much stack.
//!
//! Errors about packets that the engine has not rewritten are right already, and pass unmodified. But those about replies that a backend has sent
//! to the client directly come to the virtual address, that is here, and go on to that backend as a client's packet does. An error says nothing about its
//! flow: it may be forged, and whether it is one of the connection's segments is for the connection's end to judge (RFC 5927).
//! A flow that a switch has ended is told of errors, too.

use super::{
    direct::{Directed, leave_to_next_step},
    slow::{Receiver, SlowPath, Translator},
};
use crate::{
    egress::{next_hop, rewrite::Writer, translate::translate},
    hook::{Direction, Frame, Hook},
    verdict::{Action, Exit, Verdict},
    wire::{
        ethernet,
        headers::{V4, V6},
        icmp::IcmpError,
        packet::Packet,
    },
    world::World,
};
use bg_common::{Addr, Event, Family};

/// First step: reads the error. Returns the version of IP. `None`: it is none, or not about a packet that may belong to a flow.
#[inline(always)]
pub fn read(packet: &Packet<'_>, frame_len: usize, world: &impl World) -> Option<Family> {
    let (ether_type, l3) = ethernet::payload(packet)?;
    let error = &mut Translator::new(world)?.call.error;
    match ether_type {
        ethernet::IPV4 => error.read::<V4>(packet, l3, frame_len).map(|()| Family::V4),
        ethernet::IPV6 => error.read::<V6>(packet, l3, frame_len).map(|()| Family::V6),
        _ => None,
    }
}

/// Second step: finds out whom it is for.
#[inline(always)]
pub fn find<W: SlowPath<V4> + SlowPath<V6>>(family: Family, world: &W) -> Receiver {
    let Some(mut translator) = Translator::new(world) else { return Receiver::None };
    match family {
        Family::V4 => translator.receiver::<V4>(),
        Family::V6 => translator.receiver::<V6>(),
    }
}

/// Third step: translates the error and sends it to its receiver.
#[inline(always)]
pub fn send(receiver: Receiver, family: Family, frame: Frame, world: &impl World, writer: &mut impl Writer) -> Verdict {
    if receiver == Receiver::Nobody {
        return Verdict::drop(world, Event::MirrorAnswer);
    }
    let Some(translator) = Translator::new(world) else { return Verdict::PASS };
    if receiver == Receiver::Direct {
        if frame.direction == Direction::Egress {
            return Verdict::PASS;
        }
        let call = Directed::of_error(translator.call.slot(), family, &translator.call.error);
        return leave_to_next_step(call, world);
    }
    let (error, translation) = (&translator.call.error, &translator.call.translation);
    let hook = Hook { direction: frame.direction, frame_len: frame.len, world, now: world.tick() };
    let Some(exit) = exit(receiver, family, error, &translation.address, &hook) else { return Verdict::PASS };
    if exit.action == Action::Defer {
        return Verdict::DEFER;
    }
    if translate(family, error, translation, exit.hop, writer).is_none() {
        return Verdict::drop(world, Event::Malformed);
    }
    Verdict::out_of(exit)
}

/// How it leaves. `None`: unmodified.
#[inline(always)]
fn exit(
    receiver: Receiver,
    family: Family,
    error: &IcmpError,
    new: &Addr,
    hook: &Hook<'_, impl World>,
) -> Option<Exit> {
    let exit = match (hook.direction, receiver) {
        (_, Receiver::None | Receiver::Nobody | Receiver::Direct) => return None,
        // It is on its way already, and not to the backend.
        (Direction::Egress, Receiver::Backend | Receiver::LocalBackend) => return None,
        (Direction::Egress, _) => Exit::TO_STACK,
        (Direction::Early, Receiver::OwnClient | Receiver::LocalBackend) => Exit::DEFERRED,
        (Direction::Ingress, Receiver::OwnClient) => Exit::TO_SELF,
        (Direction::Ingress, Receiver::LocalBackend) => Exit::TO_STACK,
        (Direction::Early, _) if error.hop_limit <= 1 => Exit::DEFERRED,
        (Direction::Ingress, _) if error.hop_limit <= 1 => {
            hook.world.count(Event::TtlExpired);
            return None;
        }
        // As for the flow's own packets.
        (_, Receiver::Client) => next_hop::of_error(family, new, &error.src, error, hook),
        (_, Receiver::Backend) => next_hop::of_error(family, &error.dst, new, error, hook),
    };
    // The egress program of the interface that it leaves by translates it, as it does with a reply.
    let is_for_egress =
        hook.direction == Direction::Ingress && receiver == Receiver::Client && exit.action == Action::Deliver;
    (!is_for_egress).then_some(exit)
}
