//! XDP: on NICs.

use super::{maps, world::World};
use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect_map},
    macros::xdp,
    programs::XdpContext,
};
use bg_common::{Clock, Event};
use bg_ebpf::{Action, Direction, Frame, packet::Packet, process, tables::Tables as _, unlikely};

/// The switch.
#[xdp]
pub(super) fn ingress(context: XdpContext) -> u32 {
    let (start, end) = (context.data(), context.data_end());
    let world = World::<true> { context: context.as_ptr() };
    // SAFETY: the bounds that the kernel gave; no helper that the engine calls moves the packet. The
    // engine reads nothing through the first once it has written through the second.
    let packet = unsafe { Packet::new(start as *mut u8, end as *mut u8) };
    // SAFETY: as above.
    let mut writer = unsafe { Packet::new(start as *mut u8, end as *mut u8) };
    let frame = Frame { direction: Direction::Ingress, len: end - start };
    let verdict = process(&packet, frame, &world, &mut writer);
    match verdict.action {
        Action::Pass => {
            // SAFETY: a tail call returns only if the slot is empty.
            unsafe { maps::NEXT.tail_call(&context, 0) };
            XDP_PASS
        }
        Action::Deliver => XDP_PASS,
        Action::Redirect if verdict.ifindex == world.ingress_ifindex() => XDP_TX,
        Action::Redirect => {
            let map = core::ptr::from_ref(&maps::EGRESS).cast_mut().cast();
            // SAFETY: a map.
            let action = unsafe { bpf_redirect_map(map, verdict.ifindex.into(), XDP_DROP.into()) } as u32;
            // XDP_REDIRECT, or what was given for an interface that is not there.
            if unlikely(action == XDP_DROP) {
                world.count(Event::EgressGone);
            }
            action
        }
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
        Err(_) => XDP_DROP,
    }
}
