//! The engine's world by BPF maps and helpers.

use super::{
    flows::{Flows4, Flows6, order, told},
    maps,
};
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1, xdp_action, xdp_md,
    },
    btf_maps::lpm_trie::Key as PrefixKey,
    helpers::{
        bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect_map,
        generated::{bpf_check_mtu, bpf_fib_lookup, bpf_ktime_get_boot_ns, bpf_redirect_neigh},
    },
};
#[cfg(feature = "explain")]
use bg_common::HOLD_OPEN;
use bg_common::{
    Addr, Backend, DeploymentRow, Event, Family, FlowKey4, FlowKey6, LiveWord, NextHop, ServiceKey, ServiceRow,
    SwitchTerms, TAKES_ALL, TICK_SHIFT, TesterKey, Timing, Vip,
};
use bg_ebpf::{
    flow::memory::{Memory, RawWords},
    hint::unlikely,
    policy::error_rate,
    step::Step,
    world::{RouteCall, SCRATCH_WORDS},
};
use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg},
    mem::MaybeUninit,
};

/// Families as `bpf_fib_lookup` wants them (linux/socket.h).
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;

/// Index of the loopback interface, the same in every network namespace (`LOOPBACK_IFINDEX` of net/flow.h).
const LOOPBACK: u32 = 1;

/// Prefix length that covers a whole key of the tester trie, in bits.
const WHOLE_KEY: u32 = 8 * size_of::<TesterKey>() as u32;

/// `PACKET_HOST` of linux/if_packet.h.
const PACKET_HOST: u32 = 0;

/// Whether these programs explain: then they write to no map of the instance.
pub(super) const EXPLAINS: bool = cfg!(feature = "explain");

/// All there is to ask, at one hook: of XDP or of tc.
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

impl World<false> {
    /// Whether the frame is at the loopback interface.
    #[inline(always)]
    pub(super) fn is_loopback(&self) -> bool {
        self.ingress_ifindex() == LOOPBACK
    }
}

/// An entry of an array that has two to a row, since the kernel pads a row to eight bytes.
macro_rules! half {
    ($map:ident, $index:expr) => {{
        let index = $index;
        let row: Option<*const [u32; 2]> = maps::$map.get_ptr(index / 2);
        // SAFETY: an aligned word of the map.
        row.map(|row| unsafe { row.cast::<u32>().add(index as usize % 2).read_volatile() })
    }};
}

/// What would become of a packet that has to wait, without a trace. Whether there is room for it is not asked.
#[cfg(feature = "explain")]
#[inline(always)]
fn would_hold(deployment: u16) -> Option<Event> {
    let queue = maps::HOLDS.get(deployment.into())?;
    if queue.drops != 0 {
        Some(Event::Frozen)
    } else if queue.claims & HOLD_OPEN != 0 {
        Some(Event::Held)
    } else {
        None
    }
}

impl<const XDP: bool> bg_ebpf::world::World for World<XDP> {
    #[inline(always)]
    fn flows4(&self) -> &impl Memory<FlowKey4, Words = RawWords> {
        &Flows4
    }

    #[inline(always)]
    fn flows6(&self) -> &impl Memory<FlowKey6, Words = RawWords> {
        &Flows6
    }

    #[inline(always)]
    fn live(&self, deployment: u16) -> Option<LiveWord> {
        let word = maps::LIVE.get_ptr(deployment.into())?;
        // SAFETY: an aligned word of the map; volatile, so that it is one load and not repeated.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn settle(&self, deployment: u16, word: LiveWord, judges: bool) -> LiveWord {
        LiveWord(super::generations::settle(deployment.into(), word.0, judges.into()))
    }

    #[inline(always)]
    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        #[cfg(feature = "explain")]
        if let Some(terms) = super::steps::kept_terms(deployment, slot) {
            return Some(terms);
        }
        let both = maps::TERMS.get(deployment.into())?;
        // Not by index: the compiler's bound check would be a panic.
        Some(if slot == 0 { both[0] } else { both[1] })
    }

    #[inline(always)]
    fn trips(&self, deployment: u16, slot: usize) -> Option<RawWords> {
        super::generations::trips(deployment, slot)
    }

    #[inline(always)]
    fn order(&self) {
        order();
    }

    #[inline(always)]
    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow> {
        maps::DEPLOYMENTS.get(deployment.into())
    }

    #[inline(always)]
    fn refusals(&self, row: u32) -> u64 {
        let names: Option<*const u64> = maps::REFUSALS.get_ptr(row);
        // SAFETY: an aligned word of the map.
        names.map_or(0, |names| unsafe { names.read_volatile() })
    }

    #[inline(always)]
    fn set_refusals(&self, row: u32, names: u64) {
        if EXPLAINS {
            return;
        }
        if let Some(row) = maps::REFUSALS.get_ptr_mut(row) {
            // SAFETY: as above.
            unsafe { row.write_volatile(names) };
        }
    }

    #[inline(always)]
    fn end_drain(&self, deployment: u16, word: LiveWord, settled: LiveWord, ended_before: [u32; 2]) {
        if EXPLAINS {
            return;
        }
        let (Some(terms), Some(live)) =
            (maps::TERMS.get_ptr_mut(deployment.into()), maps::LIVE.get_ptr_mut(deployment.into()))
        else {
            return;
        };
        let terms: *mut SwitchTerms = terms.cast();
        // SAFETY: the slot is zero or one; an aligned field of the map, and an aligned word of another one. All who end the drain
        // of a word store the same.
        unsafe {
            (&raw mut (*terms.add(word.terms_slot())).ended_before).write_volatile(ended_before);
            atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(live.cast(), word.0, settled.0);
        }
    }

    #[inline(always)]
    fn vip_head(&self, hash: u32) -> u32 {
        half!(VIP_INDEX, hash & told!(vip_mask)).unwrap_or(0)
    }

    #[inline(always)]
    fn vip(&self, row: u32) -> Option<*const Vip> {
        maps::VIPS.get_ptr(row)
    }

    #[inline(always)]
    fn backend_head(&self, hash: u32) -> u32 {
        half!(BACKEND_INDEX, hash & told!(backend_mask)).unwrap_or(0)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow> {
        // SAFETY: user space replaces rows as a whole, and waits for programs that may have found the old one
        // before the next replacement, which the kernel may put in its place.
        unsafe { maps::SERVICE_ROWS.get(key) }
    }

    #[inline(always)]
    fn maglev(&self, entry: u32) -> Option<u32> {
        half!(MAGLEV, entry)
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<*mut Backend> {
        maps::BACKEND_ROWS.get_ptr_mut(slot)
    }

    #[inline(always)]
    fn numbered_hop(&self, number: u32) -> Option<RawWords> {
        // SAFETY: a row is three words, and lives as long as the program runs.
        maps::NEXT_HOPS.get_ptr_mut(number).map(|row| unsafe { RawWords::new(row.cast()) })
    }

    #[inline(always)]
    fn is_tester(&self, key: &TesterKey) -> bool {
        maps::TESTERS.get(&PrefixKey::new(WHOLE_KEY, *key)).is_some()
    }

    /// XDP compares with what tc has seen to be right: if that is out of date, tc gets the packet and corrects it.
    #[inline(always)]
    fn is_addressed_here(&self, destination: u64) -> bool {
        let row = maps::INTERFACES.get_ptr_mut(self.ingress_ifindex());
        // SAFETY: an aligned word of the map.
        let taken = row.map_or(0, |row| unsafe { row.read_volatile() });
        if XDP {
            return taken == destination || unlikely(taken & TAKES_ALL != 0);
        }
        // SAFETY: the program's own context, of the type that belongs to its hook.
        let is_to_host = unsafe { (*self.context.cast::<__sk_buff>()).pkt_type == PACKET_HOST };
        if !EXPLAINS && is_to_host && taken != destination && taken & TAKES_ALL == 0 {
            if let Some(row) = row {
                // SAFETY: as above.
                unsafe { row.write_volatile(destination) };
            }
        }
        is_to_host || taken & TAKES_ALL != 0
    }

    #[inline(always)]
    fn route(&self, call: &mut RouteCall) {
        route::<XDP>(self.context, self.ingress_ifindex(), call);
    }

    /// A frame that XDP redirects to an interface which cannot take it vanishes, and nobody tells.
    #[inline(always)]
    fn prepare_redirect(&self, ifindex: u32) -> bool {
        if !XDP || ifindex == self.ingress_ifindex() {
            return true;
        }
        let map = core::ptr::from_ref(&maps::EGRESS).cast_mut().cast();
        // SAFETY: a map. Nothing happens until the program returns what this has returned.
        let action = unsafe { bpf_redirect_map(map, ifindex.into(), xdp_action::XDP_PASS.into()) };
        action == xdp_action::XDP_REDIRECT.into()
    }

    #[inline(always)]
    fn route_call(&self) -> Option<*mut RouteCall> {
        maps::ROUTE_CALL.get_ptr_mut(0).map(|words| words.cast())
    }

    #[inline(always)]
    fn scratch(&self) -> Option<*mut u64> {
        maps::SCRATCH.get_ptr_mut(0).map(|words: *mut [u64; SCRATCH_WORDS]| words.cast())
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
    fn is_own(&self) -> bool {
        // SAFETY: the program's own context, of the type that belongs to its hook.
        !XDP && unsafe { (*self.context.cast::<__sk_buff>()).ingress_ifindex == LOOPBACK }
    }

    #[inline(always)]
    fn hold_until(&self, deployment: u16, slot: usize) -> u64 {
        let row: Option<*mut [Timing; 2]> = maps::TIMING.get_ptr_mut(deployment.into());
        // SAFETY: the slot is zero or one; an aligned word of the map.
        row.map_or(0, |row| unsafe { (&raw const (*row.cast::<Timing>().add(slot & 1)).hold_until).read_volatile() })
    }

    #[inline(always)]
    fn boot_ns(&self) -> u64 {
        // SAFETY: takes nothing, reads the kernel's clock.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn end_hold(&self, deployment: u16, word: LiveWord, thawed: LiveWord) {
        if EXPLAINS {
            return;
        }
        let Some(live) = maps::LIVE.get_ptr_mut(deployment.into()) else { return };
        // SAFETY: an aligned word of the map.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(live.cast(), word.0, thawed.0) };
    }

    #[inline(always)]
    fn hold(&self, deployment: u16) -> Option<Event> {
        if XDP {
            return None;
        }
        #[cfg(not(feature = "explain"))]
        let kept = super::hold::hold(self.context.cast(), deployment);
        #[cfg(feature = "explain")]
        let kept = would_hold(deployment);
        kept
    }

    #[cfg(not(feature = "explain"))]
    #[inline(always)]
    fn is_played_back(&self, deployment: u16) -> bool {
        !XDP && super::hold::is_played_back(self.context.cast(), deployment)
    }

    #[inline(always)]
    fn copy_for(&self) -> u32 {
        if XDP || EXPLAINS { 0 } else { super::mirror::take_mark(self.context.cast()) }
    }

    #[inline(always)]
    fn copy(&self, colour: u8) -> bool {
        EXPLAINS || (!XDP && super::mirror::copy(self.context.cast(), self.ingress_ifindex(), colour.into()) == 0)
    }

    #[inline(always)]
    fn may_send_error(&self) -> bool {
        EXPLAINS || (!XDP && may_send_error() != 0)
    }

    #[inline(always)]
    fn tick(&self) -> u32 {
        tick()
    }

    #[cfg(feature = "explain")]
    #[inline(always)]
    fn note(&self, step: Step) {
        super::steps::note(step);
    }

    #[inline(always)]
    fn note_decision(&self, deployment: u16, is_by_new_word: bool) {
        if !EXPLAINS {
            note_decision(deployment.into(), is_by_new_word.into());
        }
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        if EXPLAINS {
            return self.note(Step::Counted { event: event as u64 });
        }
        count(event as u32);
    }

    #[inline(always)]
    fn count_flow(&self, service: u16, colour: u8) {
        if EXPLAINS {
            return;
        }
        if let Some(traffic) = maps::TRAFFIC.get_ptr_mut(2 * u32::from(service) + u32::from(colour & 1)) {
            // SAFETY: this CPU's own counter.
            unsafe { (*traffic).flows_opened += 1 };
        }
    }

    #[inline(always)]
    fn count_copy(&self, service: u16, colour: u8) {
        if EXPLAINS {
            return;
        }
        if let Some(traffic) = maps::TRAFFIC.get_ptr_mut(2 * u32::from(service) + u32::from(colour & 1)) {
            // SAFETY: this CPU's own counter.
            unsafe { (*traffic).mirrored += 1 };
        }
    }

    #[inline(always)]
    fn count_packet(&self, service: u16, colour: u8, bytes: u64) {
        if EXPLAINS {
            return;
        }
        if let Some(traffic) = maps::TRAFFIC.get_ptr_mut(2 * u32::from(service) + u32::from(colour & 1)) {
            // SAFETY: this CPU's own counters.
            unsafe {
                (*traffic).packets += 1;
                (*traffic).bytes += bytes;
            }
        }
    }
}

/// Asks the kernel's routes. A call: it is seldom needed, at several places.
#[inline(never)]
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
    if XDP {
        return;
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

/// Notes the time. A call, for it is seldom made.
#[inline(never)]
fn note_decision(deployment: u32, is_by_new_word: u32) {
    if let Some(times) = maps::RECEIPTS.get_ptr_mut(deployment) {
        // SAFETY: this CPU's own row; the helper takes nothing and reads a clock.
        unsafe {
            let now = bpf_ktime_get_ns();
            if is_by_new_word == 0 {
                (*times).last_old = now;
            } else if (*times).first_new == 0 {
                (*times).first_new = now;
            }
        }
    }
}

/// See [`bg_ebpf::world::World::may_send_error`]. Not zero: it may. A call, for it is seldom made.
#[inline(never)]
fn may_send_error() -> u32 {
    let Some(word) = maps::ERROR_RATE.get_ptr_mut(0) else { return 0 };
    // SAFETY: an aligned word of the map, and a helper that reads the kernel's clock. Of several CPUs at the same moment, one sends.
    unsafe {
        let full_at = word.read_volatile();
        let Some(next) = error_rate::next(full_at, bpf_ktime_get_boot_ns()) else { return 0 };
        atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, full_at, next).1.into()
    }
}

/// Counts an event. A call, for it stands in many places and is seldom made.
#[inline(never)]
pub(super) fn count(event: u32) {
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
