//! What the compiler is told, or kept from knowing.

/// The condition, which seldom holds: the code that depends on it is laid out of the way of other packets.
#[inline(always)]
pub fn unlikely(condition: bool) -> bool {
    if condition {
        cold();
    }
    condition
}

/// What few packets come to: it is laid out of the way of the others.
#[inline(always)]
pub fn cold() {
    #[cfg(target_arch = "bpf")]
    core::hint::cold_path();
}

/// The value, of which the compiler knows nothing any more: like `core::hint::black_box`, but it stays in its register.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let value = {
        let mut value = value;
        // One instruction: with none, two lines of source would claim the same one, and the kernel refuses that.
        // SAFETY: a move of the register to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
        value
    };
    value
}

/// The numbers below a bound that the compiler does not know: a loop of the slow path stays a loop, and small.
///
/// It counts in 64 bits. Before Linux 5.16 the verifier forgets a number of 32 bits that the compiler keeps on the stack, and takes
/// the loop for an endless one.
#[inline(always)]
pub fn rolled(bound: u32) -> impl Iterator<Item = u32> {
    (0..opaque(bound.into())).map(|number| number as u32)
}
