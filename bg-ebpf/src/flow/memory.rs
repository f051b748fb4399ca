//! Words in memory that all CPUs and user space share.

/// A row of words in shared memory.
pub trait Words: Copy {
    /// The row that begins `words` further on.
    fn from(self, words: usize) -> Self;
    /// Loads a word, once.
    fn load(self, word: usize) -> u64;
    /// Stores a word, once.
    fn store(self, word: usize, value: u64);
    /// Stores the lower half of a word, once.
    fn store_low(self, word: usize, value: u32);
    /// Replaces a word if it is `old`: of all that try at once exactly one succeeds. Orders everything.
    fn exchange(self, word: usize, old: u64, new: u64) -> bool;
    /// Adds to a word, which wraps. Orders everything.
    #[inline(always)]
    fn add(self, word: usize, value: u64) {
        loop {
            let old = self.load(word);
            if self.exchange(word, old, old.wrapping_add(value)) {
                return;
            }
        }
    }
}

/// Memory of a flow table for one kind of key.
pub trait Memory<K> {
    /// Access to its words.
    type Words: Words;
    /// A bucket: [`super::bucket::WAYS`] rows one after the other.
    fn bucket(&self, index: u32) -> Option<Self::Words>;
    /// Number of buckets less one: a power of two less one.
    fn mask(&self) -> u32;
    /// Key of the hash, below 7; see [`bg_common::FlowHash`].
    fn hash_key(&self, index: usize) -> u64;
    /// Loads and stores before it come before those after it.
    fn order(&self);
}

/// Words of shared memory by their address: map memory in the kernel, any memory on the host.
#[derive(Clone, Copy, Debug)]
pub struct RawWords(*mut u64);

impl RawWords {
    /// Nowhere.
    pub const NONE: Self = Self(core::ptr::null_mut());

    /// # Safety
    ///
    /// As many words as will be asked for must be there, aligned, for as long as this is used, and be accessed in no
    /// other way meanwhile.
    #[inline(always)]
    pub const unsafe fn new(words: *mut u64) -> Self {
        Self(words)
    }

    /// Whether it is nowhere.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0.is_null()
    }

    /// The address.
    #[inline(always)]
    pub const fn as_ptr(self) -> *mut u64 {
        self.0
    }
}

/// Whether the words of a running instance are only read: the object that explains leaves no trace. A packet does not read again what it
/// has written, but the next hop towards a client, which XDP then leaves to tc in either case.
#[cfg(target_arch = "bpf")]
const READS_ONLY: bool = cfg!(feature = "explain");

#[cfg(target_arch = "bpf")]
impl Words for RawWords {
    #[inline(always)]
    fn from(self, words: usize) -> Self {
        Self(self.0.wrapping_add(words))
    }

    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: see `new`.
        unsafe { self.0.wrapping_add(word).read_volatile() }
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        if !READS_ONLY {
            // SAFETY: see `new`.
            unsafe { self.0.wrapping_add(word).write_volatile(value) }
        }
    }

    #[inline(always)]
    fn store_low(self, word: usize, value: u32) {
        if !READS_ONLY {
            // SAFETY: see `new`.
            unsafe { self.0.wrapping_add(word).cast::<u32>().write_volatile(value) }
        }
    }

    #[inline(always)]
    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};
        if READS_ONLY {
            return self.load(word) == old;
        }
        // SAFETY: see `new`.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0.wrapping_add(word), old, new).1 }
    }

    #[inline(always)]
    fn add(self, word: usize, value: u64) {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xadd};
        if !READS_ONLY {
            // SAFETY: see `new`.
            unsafe { atomic_xadd::<u64, u64, { SeqCst }>(self.0.wrapping_add(word), value) };
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
impl RawWords {
    #[inline(always)]
    fn atomic<'a>(self, word: usize) -> &'a core::sync::atomic::AtomicU64 {
        // SAFETY: see `new`.
        unsafe { core::sync::atomic::AtomicU64::from_ptr(self.0.add(word)) }
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Words for RawWords {
    #[inline(always)]
    fn from(self, words: usize) -> Self {
        // SAFETY: see `new`.
        Self(unsafe { self.0.add(words) })
    }

    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        self.atomic(word).load(core::sync::atomic::Ordering::Relaxed)
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        self.atomic(word).store(value, core::sync::atomic::Ordering::Relaxed);
    }

    #[inline(always)]
    fn store_low(self, word: usize, value: u32) {
        // SAFETY: see `new`. Mixed sizes, as in the kernel; on one thread at a time.
        unsafe { self.0.add(word).cast::<u32>().write_volatile(value) }
    }

    #[inline(always)]
    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        use core::sync::atomic::Ordering::SeqCst;
        self.atomic(word).compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }
}
