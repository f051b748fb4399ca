//! XDP: on NICs. It redirects what it can redirect at once, and leaves the rest to `tc_ingress` of the same interface.

use super::{
    maps,
    slow::find_receiver,
    world::{EXPLAINS, World},
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
        xdp_md,
    },
    helpers::generated::bpf_xdp_adjust_head,
    macros::xdp,
    programs::XdpContext,
};
use bg_common::{Event, Family};
use bg_ebpf::{
    Action, Direction, Frame, Verdict,
    path::{
        direct::{decide, find_way},
        error,
        slow::Receiver,
    },
    process, room_for_outer,
    wire::packet::Packet,
    write_outer,
};

/// The switch.
#[xdp]
#[inline(always)]
pub(super) fn ingress(context: XdpContext) -> u32 {
    let world = World::<true> { context: context.as_ptr() };
    let (packet, mut writer, about) = frame(&context);
    let verdict = process(&packet, about, &world, &mut writer);
    let verdict = if verdict.action() == Action::Icmp { icmp(&context) } else { verdict };
    let verdict = if verdict.action() == Action::Direct { direct(&context, &world) } else { verdict };
    #[cfg(feature = "explain")]
    super::steps::finish(verdict);
    match verdict.action() {
        Action::Pass => {
            if !EXPLAINS {
                // SAFETY: a tail call returns only if the slot is empty.
                unsafe { maps::NEXT.tail_call(&context, 0) };
            }
            XDP_PASS
        }
        // Unmodified, for `tc_ingress`. The others are not for this hook.
        Action::Defer | Action::Deliver | Action::Resolve | Action::ToSelf => XDP_PASS,
        Action::Icmp | Action::Direct => XDP_PASS,
        Action::Reset | Action::Refuse | Action::Unreachable | Action::TooBig | Action::TimeExceeded => XDP_PASS,
        Action::Redirect if verdict.ifindex() == world.ingress_ifindex() => XDP_TX,
        // The engine has prepared it.
        Action::Redirect => XDP_REDIRECT,
        Action::Drop => XDP_DROP,
    }
}

/// The frame: for the engine to read, for it to write, and what is known of it beside its bytes.
#[inline(always)]
fn frame(context: &XdpContext) -> (Packet<'_>, Packet<'_>, Frame) {
    let (start, end) = (context.data(), context.data_end());
    // SAFETY: the bounds that the kernel gave; no helper that the engine calls moves the packet. The
    // engine reads nothing through the first once it has written through the second.
    let packet = unsafe { Packet::new(start as *mut u8, end as *mut u8) };
    // SAFETY: as above.
    let writer = unsafe { Packet::new(start as *mut u8, end as *mut u8) };
    (packet, writer, Frame { direction: Direction::Early, len: end - start })
}

/// Decides of an ICMP message.
#[inline(always)]
fn icmp(context: &XdpContext) -> Verdict {
    // SAFETY: the program's own context.
    unsafe {
        let family = xdp_read_error(context.ctx);
        let receiver = find_receiver(family);
        Verdict::from_u64(xdp_send_error(context.ctx, receiver, family))
    }
}

/// Decides of a packet to a backend that replies to clients directly, and changes it.
#[inline(always)]
fn direct(context: &XdpContext, world: &World<true>) -> Verdict {
    // SAFETY: the program's own context.
    let (verdict, written) = unsafe {
        let verdict = match xdp_find_way(context.ctx) {
            0 => Verdict::drop(world, Event::MissingRow),
            _ => Verdict::from_u64(xdp_decide_direct(context.ctx)),
        };
        (verdict, if verdict.action() == Action::Redirect { xdp_write_outer(context.ctx) } else { WRITTEN })
    };
    match written {
        WRITTEN => verdict,
        // tc makes room in other ways.
        NO_ROOM => Verdict::DEFER,
        _ => Verdict::drop(world, Event::NoWay),
    }
}

/// [`find_way`]. Zero: `None`.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_find_way(context: *mut xdp_md) -> u32 {
    let frame = Frame { direction: Direction::Early, len: 0 };
    find_way(frame, &World::<true> { context: context.cast() }).is_some().into()
}

/// [`decide`].
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_decide_direct(context: *mut xdp_md) -> u64 {
    let context = XdpContext::new(context);
    let (packet, _, about) = frame(&context);
    decide(&packet, about, &World::<true> { context: context.as_ptr() }).to_u64()
}

/// What [`xdp_write_outer`] says: the frame can be sent.
const WRITTEN: u32 = 1;
/// The same: the driver has left too little room in front of the frame, which is as it was.
const NO_ROOM: u32 = 2;

/// [`room_for_outer`] and [`write_outer`]. Zero: the frame must not be sent.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_write_outer(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    let world = World::<true> { context: context.as_ptr() };
    let Some(room) = room_for_outer(&world) else { return 0 };
    // SAFETY: the program's own context, of which nothing was read yet.
    if room != 0 && unsafe { bpf_xdp_adjust_head(context.ctx, -(room as i32)) } != 0 {
        return NO_ROOM;
    }
    let (packet, mut writer, _) = frame(&context);
    write_outer(&packet, &world, &mut writer).is_some().into()
}

/// [`error::read`]. Zero: `None`.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_read_error(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    let (packet, _, about) = frame(&context);
    error::read(&packet, about.len, &World::<true> { context: context.as_ptr() }).map_or(0, |family| family as u32)
}

/// [`error::send`].
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_send_error(context: *mut xdp_md, receiver: u32, family: u32) -> u64 {
    let Some(family) = Family::from_u8(family as u8) else { return Verdict::PASS.to_u64() };
    let context = XdpContext::new(context);
    let (_, mut writer, about) = frame(&context);
    let world = World::<true> { context: context.as_ptr() };
    error::send(Receiver::from_u32(receiver), family, about, &world, &mut writer).to_u64()
}
