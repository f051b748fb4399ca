//! The data path's clock, for user space to read.

use super::maps;
use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_PASS},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::xdp,
    programs::XdpContext,
};
use bg_common::Clock;

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
