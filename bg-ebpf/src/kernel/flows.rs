//! The flow tables in BPF maps: buckets of a mapped array, or the kernel's LRU hash to compare with.

use super::{maps, world::World};
use bg_common::{Flow, FlowKey4, FlowKey6};
use bg_ebpf::{
    flow_ref::{FlowRef, RawWords},
    flow_table::Stored,
    tables::FlowTable,
};

#[cfg(not(feature = "lru"))]
pub(super) use buckets::order;
#[cfg(feature = "lru")]
pub(super) use lru::order;

#[cfg(not(feature = "lru"))]
mod buckets {
    use super::{Flow, FlowKey4, FlowKey6, FlowRef, FlowTable, RawWords, Stored, World, maps};
    use bg_common::FlowTables;
    use bg_ebpf::flow_table::{Memory, find, find_slowly, store};
    use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xchg};

    macro_rules! told {
        ($($field:tt)+) => {
            // SAFETY: a static. Volatile, since the loader has changed what the compiler believes to be constant.
            unsafe { (&raw const maps::FLOW_TABLES.$($field)+).read_volatile() }
        };
    }

    #[inline(always)]
    fn hash_key(index: usize) -> u64 {
        // SAFETY: the callers' indexes are below eleven.
        unsafe { (&raw const maps::FLOW_TABLES).cast::<u64>().add(index).read_volatile() }
    }

    /// Nothing where the kernel's machine keeps loads and stores in order; the verifier knows, and leaves it out.
    #[inline(always)]
    pub(in crate::kernel) fn order() {
        if told!(weakly_ordered) != 0 {
            let mut word = 0_u64;
            // SAFETY: a word of the stack. Exchanges order everything, on any memory.
            unsafe { atomic_xchg::<u64, { SeqCst }>(&mut word, 1) };
        }
    }

    const _: () = assert!(core::mem::offset_of!(FlowTables, hash) == 0);

    macro_rules! table {
        ($key:ty, $map:ident, $mask:literal, $table:ident, $store:ident) => {
            /// The table, without the rest of the world.
            struct $table;

            impl Memory<$key> for $table {
                type Words = RawWords;

                #[inline(always)]
                fn bucket(&self, index: u32) -> Option<RawWords> {
                    // SAFETY: a row is a bucket of words, and lives as long as the program runs.
                    maps::$map.get_ptr_mut(index).map(|row| unsafe { RawWords::new(row.cast()) })
                }

                #[inline(always)]
                fn mask(&self) -> u32 {
                    told!(masks[$mask])
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

            impl<const XDP: bool> FlowTable<$key> for World<XDP> {
                #[inline(always)]
                fn flow(&self, key: &$key) -> Option<FlowRef> {
                    find(&$table, key)
                }

                #[inline(always)]
                fn flow_slowly(&self, key: &$key) -> Option<FlowRef> {
                    find_slowly(&$table, key)
                }

                #[inline(always)]
                fn store(&self, key: &$key, flow: &Flow, replaces: bool, now: u32) -> Stored {
                    // SAFETY: a reference each; and the function returns one of the three.
                    match unsafe { $store(key, flow, replaces.into(), now) } {
                        0 => Stored::No,
                        1 => Stored::Yes,
                        _ => Stored::PushedOut,
                    }
                }
            }

            /// A global function, which the verifier looks at once: see [`bg_ebpf::tables::Aside`].
            ///
            /// # Safety
            ///
            /// Both must be references, or null.
            #[unsafe(no_mangle)]
            #[inline(never)]
            unsafe extern "C" fn $store(key: *const $key, flow: *const Flow, replaces: u32, now: u32) -> u32 {
                if key.is_null() || flow.is_null() {
                    return 0;
                }
                // SAFETY: the caller's references.
                let (key, flow) = unsafe { (&*key, &*flow) };
                match store(&$table, key, flow, replaces != 0, now) {
                    Stored::No => 0,
                    Stored::Yes => 1,
                    Stored::PushedOut => 2,
                }
            }
        };
    }

    table!(FlowKey4, FLOWS4, 0, Flows4, store_flow4);
    table!(FlowKey6, FLOWS6, 1, Flows6, store_flow6);
}

#[cfg(feature = "lru")]
mod lru {
    use super::{Flow, FlowKey4, FlowKey6, FlowRef, FlowTable, RawWords, Stored, World, maps};
    use aya_ebpf::{
        bindings::{BPF_ANY, BPF_NOEXIST},
        btf_maps::LruHashMap,
    };
    use bg_common::FlowState;
    use bg_ebpf::flow_table::Words as _;

    /// Nothing: this table is for comparisons on x86-64.
    #[inline(always)]
    pub(in crate::kernel) fn order() {}

    /// Nothing of what is missing is left undefined: the compiler might move it about, and the verifier refuses that.
    #[inline(always)]
    fn read(row: Option<*mut Flow>) -> Option<FlowRef> {
        // SAFETY: a row is three words, and lives as long as the program runs.
        let words = row.map_or(RawWords::NONE, |row| unsafe { RawWords::new(row.cast()) });
        let mut flow = [0; 3];
        if !words.is_none() {
            flow = [words.load(0), words.load(1), words.load(2)];
        }
        let found = FlowRef::new(words, Flow::from_words(flow.map(defined)));
        (!words.is_none()).then_some(found)
    }

    /// The value, which has one here whatever becomes of it.
    #[inline(always)]
    fn defined(mut value: u64) -> u64 {
        // SAFETY: a move of the register to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    #[inline(always)]
    fn put<K, const N: usize>(
        table: &LruHashMap<K, Flow, N>,
        key: &K,
        flow: &Flow,
        replaces: bool,
        now: u32,
    ) -> Stored {
        let flags = if replaces { BPF_ANY } else { BPF_NOEXIST };
        let version = now << FlowState::VERSION.trailing_zeros();
        let flow = Flow { state: flow.state.with(FlowState::LIVE | version), ..*flow };
        if table.insert(key, &flow, flags.into()).is_ok() { Stored::Yes } else { Stored::No }
    }

    macro_rules! table {
        ($key:ty, $map:ident) => {
            impl<const XDP: bool> FlowTable<$key> for World<XDP> {
                #[inline(always)]
                fn flow(&self, key: &$key) -> Option<FlowRef> {
                    read(maps::$map.get_ptr_mut(key))
                }

                #[inline(always)]
                fn flow_slowly(&self, key: &$key) -> Option<FlowRef> {
                    self.flow(key)
                }

                #[inline(always)]
                fn store(&self, key: &$key, flow: &Flow, replaces: bool, now: u32) -> Stored {
                    put(&maps::$map, key, flow, replaces, now)
                }
            }
        };
    }

    table!(FlowKey4, FLOWS4);
    table!(FlowKey6, FLOWS6);
}
