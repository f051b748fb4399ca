//! XDP: on NICs. It redirects what it can redirect at once, and leaves the rest to `tc_ingress` of the same interface.

use super::{maps, world::World};
use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::xdp,
    programs::XdpContext,
};
use bg_common::Clock;
use bg_ebpf::{Action, Direction, Frame, process, wire::packet::Packet};

/// The switch.
#[xdp]
#[inline(always)]
pub(super) fn ingress(context: XdpContext) -> u32 {
    let (start, end) = (context.data(), context.data_end());
    let world = World::<true> { context: context.as_ptr() };
    // SAFETY: the bounds that the kernel gave; no helper that the engine calls moves the packet. The
    // engine reads nothing through the first once it has written through the second.
    let packet = unsafe { Packet::new(start as *mut u8, end as *mut u8) };
    // SAFETY: as above.
    let mut writer = unsafe { Packet::new(start as *mut u8, end as *mut u8) };
    let frame = Frame { direction: Direction::Early, len: end - start };
    let verdict = process(&packet, frame, &world, &mut writer);
    match verdict.action() {
        Action::Pass => {
            // SAFETY: a tail call returns only if the slot is empty.
            unsafe { maps::NEXT.tail_call(&context, 0) };
            XDP_PASS
        }
        // Unmodified, for `tc_ingress`. The others are not for this hook.
        Action::Defer | Action::Deliver | Action::Resolve | Action::ToSelf => XDP_PASS,
        Action::Redirect if verdict.ifindex() == world.ingress_ifindex() => XDP_TX,
        // The engine has prepared it.
        Action::Redirect => XDP_REDIRECT,
        Action::Drop => XDP_DROP,
    }
}

/// Not attached anywhere: user space runs it to learn what the data path's clock says now.
#[xdp]
pub(super) fn read_clock(_context: XdpContext) -> u32 {
    // SAFETY: neither helper takes anything.
    let now = unsafe { Clock { jiffies: bpf_jiffies64(), monotonic_ns: bpf_ktime_get_ns() } };
    match maps::CLOCK.set(0, now, 0) {
        Ok(()) => XDP_PASS,
        Err(_) => XDP_ABORTED,
    }
}
