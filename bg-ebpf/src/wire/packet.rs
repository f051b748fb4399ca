//! The one place where packet memory is touched.
//!
//! A [`Packet`] is the pair of pointers that the kernel hands to a program, or the bounds of a
//! buffer on the host. [`Packet::header`] and [`Packet::header_mut`] are its only accessors: one
//! comparison with the end, the form that the verifier knows, then a reference to a type that is
//! valid for any bytes at any address.

use core::marker::PhantomData;
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// Header types that may be laid over packet bytes.
///
/// # Safety
///
/// Any bytes must be a valid value, and the alignment must be 1 (checked when used).
pub unsafe trait Header: Copy {}

// SAFETY: a byte.
unsafe impl Header for u8 {}
// SAFETY: an array of what may be laid over packet bytes.
unsafe impl<H: Header, const N: usize> Header for [H; N] {}
// SAFETY: a struct of bytes and byte arrays.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for Ipv6Hdr {}
// SAFETY: as above.
unsafe impl Header for TcpHdr {}
// SAFETY: as above.
unsafe impl Header for UdpHdr {}

/// Bytes of one frame, from its Ethernet header on.
pub struct Packet<'a> {
    start: *mut u8,
    end: *mut u8,
    bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Packet<'a> {
    /// # Safety
    ///
    /// `start..end` must be readable and writable, and not be accessed otherwise, for `'a`.
    #[inline(always)]
    pub const unsafe fn new(start: *mut u8, end: *mut u8) -> Self {
        Self { start, end, bytes: PhantomData }
    }

    /// A frame in a buffer of the host.
    pub fn from_slice(bytes: &'a mut [u8]) -> Self {
        let range = bytes.as_mut_ptr_range();
        Self { start: range.start, end: range.end, bytes: PhantomData }
    }

    /// The header at `offset`, if it lies wholly inside the packet.
    #[inline(always)]
    pub fn header<H: Header>(&self, offset: usize) -> Option<&H> {
        // SAFETY: `checked` has compared with the end; `Header` allows any bytes at any alignment.
        self.checked(offset).map(|header| unsafe { &*header })
    }

    /// The header at `offset`, for writing.
    #[inline(always)]
    pub fn header_mut<H: Header>(&mut self, offset: usize) -> Option<&mut H> {
        // SAFETY: as in `header`; the borrow of `self` keeps it the only reference.
        self.checked(offset).map(|header| unsafe { &mut *header })
    }

    #[inline(always)]
    fn checked<H: Header>(&self, offset: usize) -> Option<*mut H> {
        const { assert!(align_of::<H>() == 1) };
        let header = self.start.wrapping_add(offset);
        if header.wrapping_add(size_of::<H>()) > self.end {
            return None;
        }
        Some(header.cast())
    }
}

/// Loads and stores of two, four and eight bytes as one access each, in the order of memory.
///
/// Header fields are byte arrays, since packets lie at any address. For BPF the compiler would take them
/// apart byte by byte; but packet memory may be accessed at odd addresses there (the verifier sees to
/// it), so the access is told to be aligned. On the host it is an unaligned one.
pub mod bytes {
    macro_rules! access {
        ($load:ident, $store:ident, $word:ty, $size:literal) => {
            #[doc = concat!("The ", $size, " bytes as they stand.")]
            #[inline(always)]
            pub fn $load(bytes: &[u8; $size]) -> $word {
                let at: *const $word = core::ptr::from_ref(bytes).cast();
                if cfg!(target_arch = "bpf") {
                    // SAFETY: a reference is readable; alignment does not matter to this target's packet access.
                    unsafe { *at }
                } else {
                    // SAFETY: a reference is readable.
                    unsafe { at.read_unaligned() }
                }
            }

            #[doc = concat!("Replaces the ", $size, " bytes.")]
            #[inline(always)]
            pub fn $store(bytes: &mut [u8; $size], word: $word) {
                let at: *mut $word = core::ptr::from_mut(bytes).cast();
                if cfg!(target_arch = "bpf") {
                    // SAFETY: a mutable reference is writable; for alignment see loading.
                    unsafe { *at = word };
                } else {
                    // SAFETY: a mutable reference is writable.
                    unsafe { at.write_unaligned(word) };
                }
            }
        };
    }

    access!(load16, store16, u16, 2);
    access!(load32, store32, u32, 4);
    access!(load64, store64, u64, 8);
}
