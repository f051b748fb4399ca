//! Live words that change by themselves: the maps and clocks for it. A global function, since few packets need it.

use super::{
    flows::{order, told},
    maps,
    world::EXPLAINS,
};
use aya_ebpf::helpers::{
    bpf_jiffies64,
    generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_tai_ns},
};
use bg_common::{ClockId, Conditions, LiveWord, SwitchTerms, TICK_SHIFT, Timing, Trips};
use bg_ebpf::{
    flow::memory::RawWords,
    policy::{timed, trips::holding},
    world::{Generations, Guard},
};
use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

/// A slot of a deployment's row in `terms`, `timing` or `trips`, for reading and writing.
macro_rules! slot {
    ($map:ident, $type:ty, $deployment:expr, $slot:expr) => {{
        let row: Option<*mut [$type; 2]> = maps::$map.get_ptr_mut($deployment.into());
        // SAFETY: the slot is zero or one. Not by index: the compiler's bound check would be a panic.
        row.map(|row| unsafe { row.cast::<$type>().add($slot & 1) })
    }};
}

/// [`timed::settle`], of a deployment's index and word.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn settle(deployment: u32, word: u64, judges: u32) -> u64 {
    timed::settle(deployment as u16, LiveWord(word), judges != 0, &Maps).0
}

/// [`trips::holding`], of a deployment's index and generation.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn judge(deployment: u32, generation: u32) -> u32 {
    let Some(row) = trips(deployment as u16, generation as usize & 1) else { return 0 };
    holding(row, generation, Maps.present_tick(), || Maps.now(ClockId::Boot)).0.into()
}

/// A slot of a deployment's row in `trips`.
#[inline(always)]
pub(super) fn trips(deployment: u16, slot: usize) -> Option<RawWords> {
    // SAFETY: a slot of the map is a number of words, and lives as long as the program runs.
    slot!(TRIPS, Trips, deployment, slot).map(|row| unsafe { RawWords::new(row.cast()) })
}

struct Maps;

impl Generations for Maps {
    #[inline(always)]
    fn terms_of(&self, deployment: u16, slot: usize) -> Option<SwitchTerms> {
        let terms = slot!(TERMS, SwitchTerms, deployment, slot)?;
        // SAFETY: a slot of the map.
        Some(unsafe { terms.read() })
    }

    #[inline(always)]
    fn timing(&self, deployment: u16, slot: usize) -> Option<Timing> {
        let timing = slot!(TIMING, Timing, deployment, slot)?;
        order();
        // SAFETY: a slot of the map, of which this field is an aligned word.
        unsafe {
            let activate_at = (&raw const (*timing).activate_at).read_volatile();
            order();
            Some(Timing { activate_at, ..timing.read() })
        }
    }

    #[inline(always)]
    fn present_tick(&self) -> u32 {
        // SAFETY: takes nothing, reads the kernel's counter.
        (unsafe { bpf_jiffies64() } >> TICK_SHIFT) as u32
    }

    #[inline(always)]
    fn now(&self, clock: ClockId) -> u64 {
        // Where the kernel does not know the first helper, the verifier leaves it out.
        let is_tai = clock as u8 == ClockId::Tai as u8 && told!(has_tai) != 0;
        // SAFETY: both take nothing and read a clock.
        unsafe { if is_tai { bpf_ktime_get_tai_ns() } else { bpf_ktime_get_boot_ns() } }
    }

    #[inline(always)]
    fn holding(&self, deployment: u16, word: LiveWord) -> Conditions {
        Conditions(judge(deployment.into(), word.generation()) as u8)
    }

    #[inline(always)]
    fn activate(&self, deployment: u16, slot: usize, drain: [u32; 2], guard: Option<Guard>) {
        if EXPLAINS {
            return;
        }
        let (Some(terms), Some(timing)) =
            (slot!(TERMS, SwitchTerms, deployment, slot), slot!(TIMING, Timing, deployment, slot))
        else {
            return;
        };
        let trips = slot!(TRIPS, Trips, deployment, slot);
        // SAFETY: slots of the maps, of which these fields are aligned words.
        unsafe {
            (&raw mut (*terms).drain_deadline).write_volatile(drain[0]);
            (&raw mut (*terms).drain_began).write_volatile(drain[1]);
            if let Some(guard) = guard {
                if let Some(trips) = trips {
                    (&raw mut (*trips).began_at).write_volatile(guard.began_at);
                    (&raw mut (*trips).paused_until).write_volatile(guard.paused_until);
                }
                (&raw mut (*timing).revert_at).write_volatile(guard.revert_at);
                order();
                (&raw mut (*timing).activate_at).write_volatile(0);
            }
        }
    }

    #[inline(always)]
    fn prepare(&self, deployment: u16, slot: usize, terms: &SwitchTerms, timing: &Timing) {
        #[cfg(feature = "explain")]
        super::steps::keep_terms(deployment, slot, terms);
        if EXPLAINS {
            return;
        }
        let (Some(to_terms), Some(to_timing)) =
            (slot!(TERMS, SwitchTerms, deployment, slot), slot!(TIMING, Timing, deployment, slot))
        else {
            return;
        };
        // SAFETY: slots of the maps. The exchange of the word orders these stores before it.
        unsafe {
            to_terms.write(*terms);
            to_timing.write(*timing);
        }
    }

    #[inline(always)]
    fn exchange(&self, deployment: u16, old: LiveWord, new: LiveWord) -> LiveWord {
        if EXPLAINS {
            return new;
        }
        let Some(live) = maps::LIVE.get_ptr_mut(deployment.into()) else { return old };
        // SAFETY: an aligned word of the map.
        let (found, is_exchanged) = unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(live.cast(), old.0, new.0) };
        if is_exchanged { new } else { LiveWord(found) }
    }
}
