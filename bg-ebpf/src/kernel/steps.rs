//! The steps of the packet that is explained. They are noted in memory as they happen, and logged by aya-log once the program knows its
//! verdict: a log record takes more stack than is left where a step happens.

use aya_log_ebpf::info;
use bg_common::SwitchTerms;
use bg_ebpf::{
    Verdict,
    hint::rolled,
    step::{Step, WORDS},
};

/// Steps that are kept, a power of two; a packet takes fewer.
const MOST: usize = 64;

/// In a map of this object alone: one packet is explained at a time.
struct Steps {
    noted: u64,
    rows: [[u64; WORDS]; MOST],
}

#[unsafe(no_mangle)]
static mut STEPS: Steps = Steps { noted: 0, rows: [[0; WORDS]; MOST] };

/// The terms of a generation that the packet would have made, had it not been explained only.
struct Kept {
    /// `2 * deployment + slot`, plus one; zero if there are none.
    row: u64,
    terms: SwitchTerms,
}

#[unsafe(no_mangle)]
static mut KEPT: Kept = Kept { row: 0, terms: SwitchTerms { ended_before: [0; 2], drain_deadline: 0, drain_began: 0 } };

/// Keeps terms for this packet.
#[inline(always)]
pub(super) fn keep_terms(deployment: u16, slot: usize, terms: &SwitchTerms) {
    // SAFETY: only this packet's program uses it.
    unsafe {
        (&raw mut KEPT.terms).write_volatile(*terms);
        (&raw mut KEPT.row).write_volatile(row_of(deployment, slot));
    }
}

/// The terms that were kept, if they are those of this slot.
#[inline(always)]
pub(super) fn kept_terms(deployment: u16, slot: usize) -> Option<SwitchTerms> {
    // SAFETY: as above.
    unsafe {
        ((&raw const KEPT.row).read_volatile() == row_of(deployment, slot))
            .then(|| (&raw const KEPT.terms).read_volatile())
    }
}

#[inline(always)]
fn row_of(deployment: u16, slot: usize) -> u64 {
    2 * u64::from(deployment) + (slot as u64 & 1) + 1
}

/// Notes a step.
#[inline(always)]
pub(super) fn note(step: Step) {
    let steps = &raw mut STEPS;
    // SAFETY: only this packet's program uses it. The last mask keeps the row within bounds.
    unsafe {
        let noted = (&raw const (*steps).noted).read_volatile();
        (&raw mut (*steps).noted).write_volatile(noted + 1);
        let row: *mut u64 = (&raw mut (*steps).rows).cast();
        let row = row.add(WORDS * (noted as usize & (MOST - 1)));
        let words = step.words();
        row.write_volatile(words[0]);
        row.add(1).write_volatile(words[1]);
        row.add(2).write_volatile(words[2]);
        row.add(3).write_volatile(words[3]);
        row.add(4).write_volatile(words[4]);
        row.add(5).write_volatile(words[5]);
    }
}

/// Logs all steps, the verdict as the last one.
#[inline(always)]
pub(super) fn finish(verdict: Verdict) {
    note(Step::Verdict { action: verdict.action() as u64, ifindex: verdict.ifindex().into() });
    log();
}

/// A global function, which the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log() -> u32 {
    let steps = &raw mut STEPS;
    for nth in rolled(MOST as u32) {
        // SAFETY: as in `note`.
        unsafe {
            if u64::from(nth) >= (&raw const (*steps).noted).read_volatile() {
                break;
            }
            let row: *const u64 = (&raw const (*steps).rows).cast();
            let row = row.add(WORDS * (nth as usize & (MOST - 1)));
            let word = |at| row.add(at).read_volatile();
            info!((), "{} {} {} {} {} {}", word(0), word(1), word(2), word(3), word(4), word(5));
        }
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*steps).noted).write_volatile(0);
        (&raw mut KEPT.row).write_volatile(0);
    }
    0
}
