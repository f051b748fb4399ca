//! The memory of a flow table on the host.

use bg_common::{Flow, FlowHash, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    key::Key,
    memory::{Memory, RawWords},
};
use std::{
    cell::UnsafeCell,
    hint::black_box,
    marker::PhantomData,
    sync::atomic::{Ordering::SeqCst, compiler_fence},
};

/// A flow table for one thread, with public hash keys.
pub struct FlowMemory<K> {
    words: Box<[UnsafeCell<u64>]>,
    mask: u32,
    keys: PhantomData<K>,
}

/// Keys that are loaded each time, as in the kernel, where the loader draws them.
static KEYS: FlowHash = FlowHash::PUBLIC;

impl<K: Key> FlowMemory<K> {
    /// An empty table with this many rows, a power of two.
    pub fn new(rows: u32) -> Self {
        let buckets = rows / WAYS;
        assert!(buckets.is_power_of_two() && buckets > 1, "{rows} is no number of rows");
        let words = (0..rows as usize * K::ROW).map(|_| UnsafeCell::new(0)).collect();
        Self { words, mask: buckets - 1, keys: PhantomData }
    }

    /// A copy of the words of each row.
    pub fn rows(&self) -> impl Iterator<Item = Vec<u64>> {
        self.words.chunks(K::ROW).map(|row| {
            // SAFETY: one thread; nobody writes while this reads.
            row.iter().map(|word| unsafe { *word.get() }).collect()
        })
    }

    /// Writes the head of each row.
    pub(super) fn set_heads(&self, head: u64) {
        for row in self.words.chunks(K::ROW) {
            // SAFETY: one thread; nobody reads while this writes.
            unsafe { *row[K::HEAD].get() = head };
        }
    }

    /// Removes all flows.
    pub(super) fn clear(&self) {
        for word in &self.words {
            // SAFETY: one thread; nobody reads while this writes.
            unsafe { *word.get() = 0 };
        }
    }
}

impl<K: Key> Memory<K> for FlowMemory<K> {
    type Words = RawWords;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<RawWords> {
        let first = index as usize * WAYS as usize * K::ROW;
        if first >= self.words.len() {
            return None;
        }
        // Of all words, not of the first one alone. SAFETY: it is one of them, and buckets are whole.
        let words = UnsafeCell::raw_get(unsafe { self.words.as_ptr().add(first) });
        // SAFETY: they are accessed by the table alone, on one thread.
        Some(unsafe { RawWords::new(words) })
    }

    #[inline(always)]
    fn mask(&self) -> u32 {
        black_box(self.mask)
    }

    #[inline(always)]
    fn hash_key(&self, index: usize) -> u64 {
        // SAFETY: a constant's address.
        unsafe { (&raw const KEYS.0[index]).read_volatile() }
    }

    #[inline(always)]
    fn order(&self) {
        // As on x86-64, which keeps loads and stores in order by itself.
        compiler_fence(SeqCst);
    }
}

/// The flow after a key of this many words, if there is one.
pub(super) fn live_flow(row: &[u64], key_words: usize) -> Option<Flow> {
    let flow = Flow::from_words([row[key_words], row[key_words + 1], row[key_words + 2]]);
    (flow.state.0 & FlowState::STATUS == FlowState::LIVE).then_some(flow)
}
