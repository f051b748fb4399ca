//! The flow tables' memory in BPF maps: buckets of a mapped array.

use super::maps;
use bg_common::{FlowKey4, FlowKey6, TableSizes};
use bg_ebpf::flow::memory::{Memory, RawWords};
use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xchg};

macro_rules! told {
    ($($field:tt)+) => {
        // SAFETY: a static. Volatile, since the loader has changed what the compiler believes to be constant.
        unsafe { (&raw const $crate::kernel::maps::TABLE_SIZES.$($field)+).read_volatile() }
    };
}
pub(super) use told;

#[inline(always)]
fn hash_key(index: usize) -> u64 {
    // SAFETY: the callers' indexes are below seven.
    unsafe { (&raw const maps::TABLE_SIZES).cast::<u64>().add(index).read_volatile() }
}

const _: () = assert!(core::mem::offset_of!(TableSizes, flow_hash) == 0);

/// Nothing where the kernel's machine keeps loads and stores in order; the verifier knows, and leaves it out.
#[inline(always)]
pub(super) fn order() {
    if told!(weakly_ordered) != 0 {
        let mut word = 0_u64;
        // SAFETY: a word of the stack. Exchanges order everything, on any memory.
        unsafe { atomic_xchg::<u64, { SeqCst }>(&mut word, 1) };
    }
}

macro_rules! table {
    ($table:ident, $key:ty, $map:ident, $mask:literal) => {
        /// A table's memory.
        pub(super) struct $table;

        impl Memory<$key> for $table {
            type Words = RawWords;

            #[inline(always)]
            fn bucket(&self, index: u32) -> Option<RawWords> {
                // SAFETY: a row of the map is a bucket of words, and lives as long as the program runs.
                maps::$map.get_ptr_mut(index).map(|row| unsafe { RawWords::new(row.cast()) })
            }

            #[inline(always)]
            fn mask(&self) -> u32 {
                told!(flow_masks[$mask])
            }

            #[inline(always)]
            fn hash_key(&self, index: usize) -> u64 {
                hash_key(index)
            }

            #[inline(always)]
            fn order(&self) {
                order();
            }
        }
    };
}

table!(Flows4, FlowKey4, FLOWS4, 0);
table!(Flows6, FlowKey6, FLOWS6, 1);
