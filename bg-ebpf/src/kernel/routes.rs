//! The kernel's routes and neighbours. The look-ups are global functions: few packets need them, and the verifier would follow a function of the
//! program's own through each state in which one is called.

use super::{
    maps,
    world::{LOOPBACK, World},
};
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1, xdp_md,
    },
    helpers::generated::{bpf_check_mtu, bpf_fib_lookup, bpf_redirect_neigh},
};
use bg_common::{Addr, Family, NextHop};
use bg_ebpf::{egress::next_hop::number_of, world::RouteCall};
use core::{ffi::c_void, mem::MaybeUninit};

/// Families as `bpf_fib_lookup` wants them (linux/socket.h).
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;

/// See [`bg_ebpf::world::World::route`]. Returns zero.
///
/// # Safety
///
/// The context must be the program's own, and the call a reference, or null, which the verifier wants to see ruled out.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn xdp_route(context: *mut xdp_md, ingress_ifindex: u32, call: *mut RouteCall) -> u32 {
    if !call.is_null() {
        // SAFETY: the caller's reference.
        route::<true>(context.cast(), ingress_ifindex, unsafe { &mut *call });
    }
    0
}

/// The same in tc.
///
/// # Safety
///
/// As of [`xdp_route`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn tc_route(skb: *mut __sk_buff, ingress_ifindex: u32, call: *mut RouteCall) -> u32 {
    if !call.is_null() {
        // SAFETY: the caller's reference.
        route::<false>(skb.cast(), ingress_ifindex, unsafe { &mut *call });
    }
    0
}

/// See [`bg_ebpf::world::World::hop_number`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn hop_number(ifindex_and_dmac: u64, mtu_and_smac: u64) -> u32 {
    number_of(ifindex_and_dmac, mtu_and_smac, &World::<true> { context: core::ptr::null_mut() })
}

#[inline(always)]
fn route<const XDP: bool>(context: *mut c_void, ingress_ifindex: u32, call: &mut RouteCall) {
    let family = match call.family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let pair = |words: &[u32; 4], at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
    let mut params = FibLookup(MaybeUninit::uninit());
    params.write(0, family | FibLookup::ANY_LEN << 48);
    params.write(1, ingress_ifindex.into());
    params.write(2, pair(&call.src.0, 0));
    params.write(3, pair(&call.src.0, 2));
    params.write(4, pair(&call.dst.0, 0));
    params.write(5, pair(&call.dst.0, 2));
    params.write(6, 0);
    params.write(7, 0);
    let len = size_of::<FibLookup>() as i32;
    // SAFETY: the context is the program's own; the struct is laid out as the kernel's.
    let found = unsafe { bpf_fib_lookup(context, params.0.as_mut_ptr().cast(), len, 0) };
    if found == BPF_FIB_LKUP_RET_SUCCESS.into() && params.next_hop().is_resolved() {
        call.hop = params.next_hop();
    } else if found == BPF_FIB_LKUP_RET_SUCCESS.into() || found == BPF_FIB_LKUP_RET_NO_NEIGH.into() {
        // The kernel tells no MTU of such a route, so the interface's own stands for it. XDP leaves the packet to tc anyway.
        let ifindex = params.read(1) as u32;
        params.write(FibLookup::MTU, 0);
        // SAFETY: the program's own context, and a word of the stack, which has room for no other one.
        if XDP || unsafe { bpf_check_mtu(context, ifindex, params.at(FibLookup::MTU).cast(), 0, 0) } >= 0 {
            call.hop = NextHop::pack(ifindex, params.read(FibLookup::MTU) as u32, 0, 0, 0);
        }
    }
    if params.read(0) as u8 == AF_INET6 as u8 {
        call.family = Family::V6;
    }
    let (low, high) = (params.read(4), params.read(5));
    call.dst = Addr([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]);
}

/// Sends tc's frame to this host itself. The kernel looks up the way out to the destination, an address of this host, and the
/// frame comes back by the loopback interface with that route. So nobody asks whether its source may come from outside,
/// which a VIP that is an address of this host may not.
#[inline(always)]
pub(super) fn redirect_to_self() -> i32 {
    // SAFETY: no next hop is told, which is allowed.
    unsafe { bpf_redirect_neigh(LOOPBACK, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends tc's frame out of an interface by the kernel's neighbour code, to the next hop that the last route look-up has found.
/// `TC_ACT_OK`: its buffer is missing. A call, for the sake of the caller's stack.
#[inline(never)]
pub(super) fn redirect_to_neighbour(ifindex: u32) -> i32 {
    let Some(call) = maps::ROUTE_CALL.get_ptr(0) else { return TC_ACT_OK };
    // SAFETY: the look-up that was answered for this packet.
    let call: &RouteCall = unsafe { &*call.cast() };
    let mut hop = bpf_redir_neigh {
        nh_family: match call.family {
            Family::V4 => AF_INET as u32,
            Family::V6 => AF_INET6 as u32,
        },
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: call.dst.0 },
    };
    // SAFETY: a struct of the size that is told.
    unsafe { bpf_redirect_neigh(ifindex, &mut hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}

/// `struct bpf_fib_lookup` (linux/bpf.h, kernel 5.12 and later) as whole words, little-endian.
///
/// | word | bits | before the call | after it |
/// | --- | --- | --- | --- |
/// | 0 | 0-7, 48-63 | family, length of the packet | family of the next hop, egress MTU |
/// | 1 | 0-31 | ingress interface | egress interface |
/// | 2 and 3 | all | source address | |
/// | 4 and 5 | all | destination address | address of the next hop |
/// | 6 | 32-63 | 0 | source MAC, first four bytes |
/// | 7 | 0-15, 16-63 | 0 | source MAC, the other two; destination MAC |
///
/// Every access is volatile and whole: else the compiler fills it by a call to `memset` and reads it at
/// odd addresses of the stack, and the verifier takes neither.
struct FibLookup(MaybeUninit<[u64; 8]>);

impl FibLookup {
    /// Any length makes the kernel check, and tell, the MTU; this one fits every link.
    const ANY_LEN: u64 = 20;

    /// The word that an MTU is asked for in, after the call.
    const MTU: usize = 6;

    #[inline(always)]
    fn at(&mut self, index: usize) -> *mut u64 {
        self.0.as_mut_ptr().cast::<u64>().wrapping_add(index)
    }

    #[inline(always)]
    fn write(&mut self, index: usize, word: u64) {
        // SAFETY: the callers' indexes are below eight.
        unsafe { self.at(index).write_volatile(word) }
    }

    #[inline(always)]
    fn read(&self, index: usize) -> u64 {
        // SAFETY: all eight words have been written, and the callers' indexes are below eight.
        unsafe { self.0.as_ptr().cast::<u64>().add(index).read_volatile() }
    }

    /// What the kernel has answered.
    #[inline(always)]
    fn next_hop(&self) -> NextHop {
        let macs = self.read(7);
        let smac = self.read(6) >> 32 | (macs & 0xffff) << 32;
        NextHop::pack(self.read(1) as u32, (self.read(0) >> 48) as u32, macs >> 16, smac, 0)
    }
}

const _: () = assert!(size_of::<FibLookup>() == size_of::<aya_ebpf::bindings::bpf_fib_lookup>());
