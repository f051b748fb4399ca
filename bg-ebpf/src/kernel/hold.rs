//! Holding packets that would open a flow of a frozen deployment, and playing them back. tc does it for XDP too, which leaves such
//! packets unmodified to it: then one way of holding and playing back serves all modes, with what Linux 5.15 has.

use super::{flows::order, maps, world::count};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_OK},
    helpers::generated::{bpf_clone_redirect, bpf_ktime_get_boot_ns, bpf_skb_load_bytes, bpf_skb_vlan_push},
    macros::classifier,
    programs::TcContext,
};
use bg_common::{
    Event, HELD_LOG_START, HOLD_OPEN, HeldHeader, HeldState, Hold, LAST_HELD_RECORD, MAX_HELD_FRAME, MIN_HELD_FRAME,
    held_record_bytes,
};
use bg_ebpf::hint::opaque;
use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xadd, atomic_xchg};

/// What [`hold_packet`] returns for a packet that goes on.
const GOES_ON: u32 = u32::MAX;

/// See [`bg_ebpf::world::World::hold`].
#[inline(always)]
pub(super) fn hold(skb: *mut __sk_buff, deployment: u16) -> Option<Event> {
    const HELD: u32 = Event::Held as u32;
    const FROZEN: u32 = Event::Frozen as u32;
    // SAFETY: the program's own context.
    match unsafe { hold_packet(skb, deployment.into()) } {
        GOES_ON => None,
        HELD => Some(Event::Held),
        FROZEN => Some(Event::Frozen),
        _ => Some(Event::HoldOverflow),
    }
}

/// The same as a number. A global function, since few packets need it.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn hold_packet(skb: *mut __sk_buff, deployment: u32) -> u32 {
    let Some(queue) = maps::HOLDS.get_ptr_mut(deployment) else { return GOES_ON };
    if has_mark(skb, queue) {
        return GOES_ON;
    }
    // SAFETY: an aligned word of the map.
    if unsafe { (&raw const (*queue).drops).read_volatile() } != 0 {
        return Event::Frozen as u32;
    }
    // SAFETY: as above. One addition asks for a place and tells whether there is a queue, so that nobody can close it in between.
    if unsafe { atomic_xadd::<u64, u64, { SeqCst }>(&raw mut (*queue).claims, 1) } & HOLD_OPEN == 0 {
        return GOES_ON;
    }
    let held = record(skb, deployment as u16, queue);
    if held { Event::Held as u32 } else { Event::HoldOverflow as u32 }
}

/// See [`bg_ebpf::world::World::is_played_back`]. A call, since few packets need it.
#[inline(never)]
pub(super) fn is_played_back(skb: *mut __sk_buff, deployment: u16) -> bool {
    maps::HOLDS.get_ptr_mut(deployment.into()).is_some_and(|queue| has_mark(skb, queue))
}

/// Whether the packet has the mark of those that are played back from a queue.
#[inline(always)]
fn has_mark(skb: *mut __sk_buff, queue: *mut Hold) -> bool {
    // SAFETY: the program's own context, and an aligned word of the map.
    let (index, mark) = unsafe { ((*skb).tc_index, (&raw const (*queue).mark).read_volatile()) };
    index != 0 && index == mark
}

/// Writes the packet to the log. A packet that gets no record is counted in its queue, where it has asked for a place.
#[inline(always)]
fn record(skb: *mut __sk_buff, deployment: u16, queue: *mut Hold) -> bool {
    // SAFETY: the program's own context.
    let (len, is_gso) = unsafe { (u64::from((*skb).len), (*skb).gso_size != 0) };
    let place = if is_gso || !fits(len) { None } else { place(len) };
    let Some(record) = place else {
        // SAFETY: an aligned word of the map.
        unsafe { atomic_xadd::<u64, u64, { SeqCst }>(&raw mut (*queue).lost, 1) };
        return false;
    };
    // Hidden from the compiler, which knows the bounds and would not compare again: the verifier has to see them in this register.
    // One bound after the other: of a single comparison with a difference, Linux 6.1 learns nothing.
    let len = opaque(len);
    let is_loaded = len >= MIN_HELD_FRAME as u64 && {
        let len = opaque(len);
        // SAFETY: the record has room for a frame that fits, and the context is the program's own.
        len <= MAX_HELD_FRAME as u64
            && unsafe { bpf_skb_load_bytes(skb.cast(), 0, record.add(1).cast(), len as u32) == 0 }
    };
    // SAFETY: a record is aligned, lies in the map, and nobody reads it before its state is written.
    unsafe {
        (*record).time = bpf_ktime_get_boot_ns();
        (*record).ifindex = (*skb).ifindex;
        let is_tagged = (*skb).vlan_present != 0;
        (*record).vlan_tci = if is_tagged { (*skb).vlan_tci as u16 } else { 0 };
        (*record).vlan_protocol = if is_tagged { (*skb).vlan_proto as u16 } else { 0 };
        let waiting = HeldState::waiting(deployment, len as u32);
        let state = if is_loaded { waiting } else { waiting.done() };
        order();
        atomic_xchg::<u64, { SeqCst }>((&raw mut (*record).state).cast(), state.0);
    }
    is_loaded
}

#[inline(always)]
fn fits(len: u64) -> bool {
    (MIN_HELD_FRAME as u64..=MAX_HELD_FRAME as u64).contains(&len)
}

/// Room in the log for the record of a frame.
#[inline(always)]
fn place(len: u64) -> Option<*mut HeldHeader> {
    let log: *mut u8 = maps::HELD.get_ptr_mut(0)?.cast();
    let bytes = held_record_bytes(len as usize) as u64;
    // SAFETY: the log's first word.
    let used = unsafe { atomic_xadd::<u64, u64, { SeqCst }>(log.cast(), bytes) };
    // A multiple of eight already, which the verifier does not know.
    let used = opaque(used) & !7;
    if used > (LAST_HELD_RECORD - HELD_LOG_START) as u64 {
        return None;
    }
    // SAFETY: the longest record fits from there on.
    Some(unsafe { log.add(HELD_LOG_START + used as usize).cast() })
}

/// Attached nowhere: user space runs it on a held frame, which goes to the ingress of its interface.
///
/// | word of `cb` | what it says |
/// | --- | --- |
/// | 0 | the interface; 0: the frame is not played back any more, only counted |
/// | 1 | a VLAN tag: its protocol, in network byte order, above the tag |
/// | 2 | [`Hold::mark`] |
///
/// Returns zero, or what the kernel says.
#[classifier]
pub(super) fn play_back(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    // SAFETY: the program's own context.
    let (ifindex, vlan, mark) = unsafe { ((*skb).cb[0], (*skb).cb[1], (*skb).cb[2]) };
    if ifindex == 0 {
        count(Event::HeldTooLong as u32);
        return TC_ACT_OK;
    }
    // SAFETY: as above. The frame that goes to the interface is a copy, with the packet's index.
    unsafe {
        if vlan != 0 {
            let error = bpf_skb_vlan_push(skb, (vlan >> 16) as u16, vlan as u16);
            if error != 0 {
                return error as i32;
            }
        }
        (*skb).tc_index = mark;
        bpf_clone_redirect(skb, ifindex, BPF_F_INGRESS.into()) as i32
    }
}
