//! Stores into an skb, as calls: a helper takes what it stores from memory, and the caller has no stack to spare.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, helpers::bpf_skb_store_bytes, programs::TcContext};

/// A packet that the kernel's helpers change.
pub(super) struct Skb<'a>(pub(super) &'a TcContext);

impl Skb<'_> {
    /// Stores a value of one, two, four or twelve bytes.
    #[inline(always)]
    pub(super) fn store<T: Copy>(&self, at: usize, value: &T, flags: u64) -> Result<(), i64> {
        const { assert!(matches!(size_of::<T>(), 1 | 2 | 4 | 12)) };
        let value: *const T = value;
        // SAFETY: each reads no more than the value has.
        unsafe {
            match size_of::<T>() {
                1 => self.store_word(at, value.cast::<u8>().read().into(), 1, flags),
                2 => self.store_word(at, value.cast::<u16>().read_unaligned().into(), 2, flags),
                4 => self.store_word(at, value.cast::<u32>().read_unaligned(), 4, flags),
                _ => {
                    let [first, second, third] = value.cast::<[u32; 3]>().read_unaligned();
                    self.store_word(at, first, 4, flags)?;
                    self.store_word(at + 4, second, 4, flags)?;
                    self.store_word(at + 8, third, 4, flags)
                }
            }
        }
    }

    #[inline(always)]
    fn store_word(&self, at: usize, value: u32, len: u32, flags: u64) -> Result<(), i64> {
        match store(self.0.as_ptr().cast(), at as u32, value, len, flags) {
            0 => Ok(()),
            error => Err(error),
        }
    }
}

#[inline(never)]
fn store(skb: *mut __sk_buff, at: u32, value: u32, len: u32, flags: u64) -> i64 {
    // SAFETY: the program's own context, and a word of the stack, of which a part is told.
    unsafe { bpf_skb_store_bytes(skb.cast(), at, (&raw const value).cast(), len, flags) }
}
