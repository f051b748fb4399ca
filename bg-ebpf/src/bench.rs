//! Programs that measure the data path: a wrapper that restores the frame and tail-calls the program under
//! test, and an empty program to compare with.
//!
//! `BPF_PROG_TEST_RUN` does not restore the packet between its repeats, so a program that rewrites would be
//! measured on its own output. Not part of the object that bgctl embeds.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::xdp_action::{XDP_ABORTED, XDP_TX},
        btf_maps::{Array, PerCpuArray, ProgramArray},
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use bg_common::FrameTemplate;

    /// What to restore, and how flows differ.
    #[btf_map(name = "template")]
    static TEMPLATE: Array<FrameTemplate, 1> = Array::new();

    /// Number of the flow that this CPU has sent last.
    #[btf_map(name = "flow_number")]
    static FLOW_NUMBER: PerCpuArray<u32, 1> = PerCpuArray::new();

    /// Slot 0: the program under test.
    #[btf_map(name = "target")]
    static TARGET: ProgramArray<1> = ProgramArray::new();

    /// Writes the template into the packet, as the next flow's, and hands it on.
    #[xdp]
    fn restore(context: XdpContext) -> u32 {
        let (start, end) = (context.data(), context.data_end());
        let (Some(template), Some(number)) = (TEMPLATE.get(0), FLOW_NUMBER.get_ptr_mut(0)) else { return XDP_ABORTED };
        if start + FrameTemplate::LEN > end {
            return XDP_ABORTED;
        }
        let frame = start as *mut [u64; FrameTemplate::LEN / 8];
        // SAFETY: so many octets lie inside the packet; the counter is this CPU's own.
        let flow = unsafe {
            *frame = template.frame;
            *number = number.read().wrapping_mul(template.multiplier).wrapping_add(template.increment) & template.mask;
            *number + template.first
        };
        // The verifier wants each offset bounded, and compared with the end as the pointer that is used.
        let address_at = start + (template.address_at & 0x7f) as usize;
        if address_at + 4 > end {
            return XDP_ABORTED;
        }
        let port_at = start + (template.port_at & 0x7f) as usize;
        if port_at + 2 > end {
            return XDP_ABORTED;
        }
        // The packet's checksums are wrong now. Nobody looks: they are updated, not computed.
        let address = template.address.wrapping_add(flow >> FrameTemplate::PORT_BITS);
        let port = FrameTemplate::FIRST_PORT + (flow & ((1 << FrameTemplate::PORT_BITS) - 1)) as u16;
        // SAFETY: both lie inside the octets that were checked.
        unsafe {
            *(address_at as *mut u32) = address.to_be();
            *(port_at as *mut u16) = port.to_be();
            TARGET.tail_call(&context, 0);
        }
        XDP_ABORTED
    }

    /// Does nothing, as fast as can be.
    #[xdp]
    fn empty(_context: XdpContext) -> u32 {
        XDP_TX
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
