//! Copies for the mirror: a clone of the packet comes by the ingress of its interface once more. Its `tc_index` says that it is a copy.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::generated::bpf_clone_redirect,
};
use bg_common::COPY_FOR;

/// See [`bg_ebpf::world::World::copy_for`]. The mark is removed: it would stay on the packet on its way into another namespace, where another
/// instance may meet it.
#[inline(always)]
pub(super) fn take_mark(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the program's own context.
    unsafe {
        let mark = (*skb).tc_index.wrapping_sub(COPY_FOR.into());
        if mark > 1 {
            return 0;
        }
        (*skb).tc_index = 0;
        1 + mark
    }
}

/// See [`bg_ebpf::world::World::copy`]. Returns zero, or what the kernel says. A call, since few packets need it.
#[inline(never)]
pub(super) fn copy(skb: *mut __sk_buff, ifindex: u32, colour: u32) -> i64 {
    // SAFETY: the program's own context. The clone has the packet's index.
    unsafe {
        let index = (*skb).tc_index;
        (*skb).tc_index = u32::from(COPY_FOR) + colour;
        let error = bpf_clone_redirect(skb, ifindex, BPF_F_INGRESS.into());
        (*skb).tc_index = index;
        error
    }
}
