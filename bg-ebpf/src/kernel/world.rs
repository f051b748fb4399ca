//! [`Tables`] by BPF maps and helpers.

use super::{flows, maps};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_FIB_LKUP_RET_SUCCESS, xdp_md},
    btf_maps::lpm_trie::Key as PrefixKey,
    helpers::{bpf_jiffies64, generated::bpf_fib_lookup},
};
use bg_common::{
    Backend, DeploymentRow, Event, Family, LiveWord, NextHop, ServiceKey, ServiceRow, SwitchTerms, TICK_SHIFT,
    TesterKey,
};
use bg_ebpf::{
    flow_ref::RawWords,
    tables::{RouteQuery, Tables},
};
use core::{ffi::c_void, mem::MaybeUninit};

/// Families as `bpf_fib_lookup` wants them (linux/socket.h).
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;

/// Prefix length that covers a whole key of the tester trie, in bits.
const WHOLE_KEY: u32 = 8 * size_of::<TesterKey>() as u32;

/// All there is to ask, at one hook. `XDP` tells what can be redirected to: for XDP the interfaces that user space
/// has put into `egress`, for tc every interface.
pub(super) struct World<const XDP: bool> {
    /// Context of the running program: `xdp_md` or `__sk_buff`.
    pub(super) context: *mut c_void,
}

impl<const XDP: bool> World<XDP> {
    /// Interface that the frame came in by.
    #[inline(always)]
    pub(super) fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the program's own context, of the type that belongs to its hook.
        unsafe {
            if XDP {
                (*self.context.cast::<xdp_md>()).ingress_ifindex
            } else {
                (*self.context.cast::<__sk_buff>()).ifindex
            }
        }
    }
}

impl<const XDP: bool> Tables for World<XDP> {
    #[inline(always)]
    fn live(&self, deployment: u16) -> Option<LiveWord> {
        let word = maps::LIVE.get_ptr(deployment.into())?;
        // SAFETY: an aligned word of the map; volatile, so that it is one load and not repeated.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        let both = maps::TERMS.get(deployment.into())?;
        // Not by index: the compiler's bound check would be a panic.
        Some(if slot == 0 { both[0] } else { both[1] })
    }

    #[inline(always)]
    fn order(&self) {
        flows::order();
    }

    #[inline(always)]
    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow> {
        maps::DEPLOYMENTS.get(deployment.into())
    }

    #[inline(always)]
    fn may_be_service(&self, hash: u32) -> bool {
        maps::VIP_FILTER.get(hash / 64).is_none_or(|word| word >> (hash % 64) & 1 == 0)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow> {
        // SAFETY: user space replaces rows as a whole, and waits for programs that may have found the old one
        // before the next replacement, which the kernel may put in its place.
        unsafe { maps::SERVICES.get(key) }
    }

    #[inline(always)]
    fn vip(&self, row: u32) -> Option<&ServiceKey> {
        maps::VIPS.get(row)
    }

    #[inline(always)]
    fn maglev(&self, entry: u32) -> Option<u32> {
        let pair = maps::MAGLEV.get(entry / 2)?;
        Some(if entry % 2 == 0 { pair[0] } else { pair[1] })
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<*mut Backend> {
        maps::BACKENDS.get_ptr_mut(slot)
    }

    #[inline(always)]
    fn numbered_hop(&self, number: u32) -> Option<RawWords> {
        // SAFETY: a row is two words, and lives as long as the program runs.
        maps::NEXT_HOPS.get_ptr_mut(number).map(|row| unsafe { RawWords::new(row.cast()) })
    }

    #[inline(always)]
    fn is_tester(&self, key: &TesterKey) -> bool {
        maps::TESTERS.get(&PrefixKey::new(WHOLE_KEY, *key)).is_some()
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery, hop: &mut NextHop) {
        route(self.context, self.ingress_ifindex(), query, hop);
        // A frame that XDP redirects to an interface which cannot take it vanishes, and nobody tells.
        if XDP && maps::EGRESS.get_ifindex(hop.ifindex()).is_none() {
            *hop = NextHop::NONE;
        }
    }

    #[inline(always)]
    fn desk(&self) -> Option<*mut u64> {
        maps::DESK.get_ptr_mut(0).map(|words| words.cast())
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the program's own context, of the type that belongs to its hook.
        if XDP { 0 } else { unsafe { (*self.context.cast::<__sk_buff>()).gso_size } }
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: as above.
        !XDP && unsafe { (*self.context.cast::<__sk_buff>()).vlan_present != 0 }
    }

    #[inline(always)]
    fn tick(&self) -> u32 {
        tick()
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        count(event as u32);
    }

    #[inline(always)]
    fn count_packet(&self, service: u16, colour: u8, bytes: u64, opened: bool) {
        if let Some(traffic) = maps::TRAFFIC.get_ptr_mut(2 * u32::from(service) + u32::from(colour & 1)) {
            // SAFETY: this CPU's own counters.
            unsafe {
                (*traffic).packets += 1;
                (*traffic).bytes += bytes;
                if opened {
                    (*traffic).flows_opened += 1;
                }
            }
        }
    }
}

/// Asks the kernel's routes. A call: it is seldom needed, at several places.
#[inline(never)]
fn route(context: *mut c_void, ingress_ifindex: u32, query: &RouteQuery, hop: &mut NextHop) {
    let family = match query.family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let pair = |words: &[u32; 4], at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
    let mut params = FibLookup(MaybeUninit::uninit());
    params.write(0, family | FibLookup::ANY_LEN << 48);
    params.write(1, ingress_ifindex.into());
    params.write(2, pair(&query.src.0, 0));
    params.write(3, pair(&query.src.0, 2));
    params.write(4, pair(&query.dst.0, 0));
    params.write(5, pair(&query.dst.0, 2));
    params.write(6, 0);
    params.write(7, 0);
    let len = size_of::<FibLookup>() as i32;
    // SAFETY: the context is the program's own; the struct is laid out as the kernel's.
    let found = unsafe { bpf_fib_lookup(context, params.0.as_mut_ptr().cast(), len, 0) };
    if found == BPF_FIB_LKUP_RET_SUCCESS.into() {
        *hop = params.next_hop(tick());
    }
}

/// Counts an event. A call, for it stands in many places and is seldom made.
#[inline(never)]
fn count(event: u32) {
    if let Some(counter) = maps::EVENTS.get_ptr_mut(event) {
        // SAFETY: this CPU's own counter.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
fn tick() -> u32 {
    // SAFETY: takes nothing, reads the kernel's counter.
    (unsafe { bpf_jiffies64() } >> TICK_SHIFT) as u32
}

/// `struct bpf_fib_lookup` (linux/bpf.h, kernel 5.12 and later) as whole words, little-endian.
///
/// | word | bits | before the call | after it |
/// | --- | --- | --- | --- |
/// | 0 | 0-7, 48-63 | family, length of the packet | -, egress MTU |
/// | 1 | 0-31 | ingress interface | egress interface |
/// | 2 and 3, 4 and 5 | all | source address, destination address | |
/// | 6 | 32-63 | 0 | source MAC, first four octets |
/// | 7 | 0-15, 16-63 | 0 | source MAC, the other two; destination MAC |
///
/// Every access is volatile and whole: else the compiler fills it by a call to `memset` and reads it at
/// odd addresses of the stack, and the verifier takes neither.
struct FibLookup(MaybeUninit<[u64; 8]>);

impl FibLookup {
    /// Any length makes the kernel check, and tell, the MTU; this one fits every link.
    const ANY_LEN: u64 = 20;

    #[inline(always)]
    fn write(&mut self, index: usize, word: u64) {
        // SAFETY: the callers' indexes are below eight.
        unsafe { self.0.as_mut_ptr().cast::<u64>().add(index).write_volatile(word) }
    }

    #[inline(always)]
    fn read(&self, index: usize) -> u64 {
        // SAFETY: all eight words have been written, and the callers' indexes are below eight.
        unsafe { self.0.as_ptr().cast::<u64>().add(index).read_volatile() }
    }

    /// What the kernel has answered.
    #[inline(always)]
    fn next_hop(&self, tick: u32) -> NextHop {
        let macs = self.read(7);
        let smac = self.read(6) >> 32 | (macs & 0xffff) << 32;
        NextHop::pack(self.read(1) as u32, (self.read(0) >> 48) as u32, macs >> 16, smac, tick)
    }
}

const _: () = assert!(size_of::<FibLookup>() == size_of::<aya_ebpf::bindings::bpf_fib_lookup>());
