//! The engine's world by BPF maps and helpers.

use super::{
    flows::{Flows4, Flows6, order, told},
    maps,
    routes::{hop_number, tc_route, xdp_route},
};
use aya_ebpf::{
    bindings::{__sk_buff, xdp_action, xdp_md},
    btf_maps::lpm_trie::Key as PrefixKey,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect_map, generated::bpf_ktime_get_boot_ns},
};
#[cfg(feature = "explain")]
use bg_common::HOLD_OPEN;
use bg_common::{
    Backend, DeploymentRow, Event, FlowKey4, FlowKey6, LiveWord, ServiceKey, ServiceRow, SwitchTerms, TAKES_ALL,
    TICK_SHIFT, TesterKey, Timing, Tunnel, Vip,
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
};

/// Index of the loopback interface, the same in every network namespace (`LOOPBACK_IFINDEX` of net/flow.h).
pub(super) const LOOPBACK: u32 = 1;

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
    fn tunnel(&self, slot: u32) -> Option<*const Tunnel> {
        maps::TUNNELS.get_ptr(slot)
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
        let ifindex = self.ingress_ifindex();
        // SAFETY: the program's own context, of the type that belongs to its hook, and a reference.
        unsafe {
            if XDP {
                xdp_route(self.context.cast(), ifindex, call);
            } else {
                tc_route(self.context.cast(), ifindex, call);
            }
        }
    }

    #[inline(always)]
    fn hop_number(&self, ifindex_and_dmac: u64, mtu_and_smac: u64) -> u32 {
        hop_number(ifindex_and_dmac, mtu_and_smac)
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
    fn may_send_error(&self, tells_size: bool) -> bool {
        EXPLAINS || (!XDP && may_send_error(tells_size.into()) != 0)
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
fn may_send_error(row: u32) -> u32 {
    let Some(word) = maps::ERROR_RATE.get_ptr_mut(row) else { return 0 };
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
