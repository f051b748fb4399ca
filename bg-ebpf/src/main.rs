//! The BPF object: programs around the packet engine.
//!
//! | program | hook | what it does |
//! | --- | --- | --- |
//! | `ingress` | XDP | the switch, on NICs: frames come off a wire, their checksums are finished |
//! | `tc_ingress` | tc ingress | the switch, on veth, tap, bridge: checksums may be unfinished, packets may be GSO |
//! | `tc_egress` | tc egress | restores replies of this host's own stack |
//! | `play_back` | tc, run by user space alone | brings a held packet to the ingress of its interface |
//! | `read_clock` | run by user space alone | reads the data path's two clocks at one moment |
//!
//! Built for the kernel only; on the host it is an empty program, so that the workspace builds as one.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(internal_features, reason = "the target has no atomics in core")
)]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here can panic; the verifier refuses the object if that is not so.
    loop {}
}

/// Helpers such as `bpf_l4_csum_replace` are for programs under a licence compatible with the GPL; this
/// project's third licence is the GPL itself.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
