//! Programs that measure the instant of a switch: a generator of live frames, each of a new flow and stamped
//! with the time at which it is handed to the program under test, and a receiver behind it that notes the first
//! and the last frame of each colour.
//!
//! Both write mapped memory, one row for each CPU, so that the driver reads along without a system call. Not part
//! of the object that bgctl embeds.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
        btf_maps::{Array, ProgramArray},
        helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use bg_common::{SWITCH_CPUS, SwitchLoad, SwitchSeen, SwitchSent};

    /// `BPF_F_MMAPABLE` of linux/bpf.h.
    const MMAPABLE: usize = 1024;

    /// What to send.
    #[btf_map(name = "load")]
    static LOAD: Array<SwitchLoad, 1> = Array::new();

    /// What was sent, by CPU.
    #[btf_map(name = "sent")]
    static SENT: Array<SwitchSent, { SWITCH_CPUS as usize }, MMAPABLE> = Array::new();

    /// Slot 0: the program under test.
    #[btf_map(name = "target")]
    static TARGET: ProgramArray<1> = ProgramArray::new();

    /// The round that is on, written by the driver.
    #[btf_map(name = "round")]
    static ROUND: Array<u64, 1, MMAPABLE> = Array::new();

    /// What was seen, by CPU.
    #[btf_map(name = "seen")]
    static SEEN: Array<SwitchSeen, { SWITCH_CPUS as usize }, MMAPABLE> = Array::new();

    /// Writes the frame into the packet, as the next flow's, and hands it on.
    #[xdp]
    fn generate(context: XdpContext) -> u32 {
        let (start, end) = (context.data(), context.data_end());
        // SAFETY: takes nothing.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let (Some(load), Some(sent)) = (LOAD.get(0), SENT.get_ptr_mut(cpu)) else { return XDP_ABORTED };
        if start + SwitchLoad::LEN > end {
            return XDP_ABORTED;
        }
        // SAFETY: this CPU's row; the driver only reads it while frames are sent.
        let flow = unsafe {
            let number = (&raw const (*sent).frames).read_volatile();
            (&raw mut (*sent).frames).write_volatile(number + 1);
            number.wrapping_add((*sent).first_flow) as u32
        };
        // The packet's checksums are wrong now. Nobody looks: the header's is updated, not computed, and UDP has none.
        let address = load.address.wrapping_add(flow >> SwitchLoad::PORT_BITS);
        let port = SwitchLoad::FIRST_PORT + (flow & ((1 << SwitchLoad::PORT_BITS) - 1)) as u16;
        // SAFETY: so many bytes lie inside the packet.
        unsafe {
            *(start as *mut [u64; SwitchLoad::LEN / 8]) = load.frame;
            // An address at an odd multiple of two, in halves.
            *((start + 26) as *mut u16) = ((address >> 16) as u16).to_be();
            *((start + 28) as *mut u16) = (address as u16).to_be();
            *((start + 34) as *mut u16) = port.to_be();
            *((start + SwitchLoad::STAMP_AT) as *mut u64) = bpf_ktime_get_ns();
            TARGET.tail_call(&context, 0);
        }
        XDP_ABORTED
    }

    /// Notes a frame of the load and drops it; others go to the stack.
    #[xdp]
    fn receive(context: XdpContext) -> u32 {
        let (start, end) = (context.data(), context.data_end());
        if start + SwitchLoad::LEN > end {
            return XDP_PASS;
        }
        // SAFETY: these bytes lie inside the packet.
        let (octet, port, decided) = unsafe {
            (
                *((start + SwitchLoad::COLOUR_AT) as *const u8),
                u16::from_be(*((start + 36) as *const u16)),
                *((start + SwitchLoad::STAMP_AT) as *const u64),
            )
        };
        if port != SwitchLoad::BACKEND_PORT {
            return XDP_PASS;
        }
        // SAFETY: take nothing.
        let (cpu, now) = unsafe { (bpf_get_smp_processor_id(), bpf_ktime_get_ns()) };
        let (Some(round), Some(seen)) = (ROUND.get_ptr_mut(0), SEEN.get_ptr_mut(cpu)) else { return XDP_ABORTED };
        // SAFETY: a row of the driver's that this only reads, and this CPU's own row.
        unsafe {
            let round = round.read_volatile();
            if (&raw const (*seen).round).read_volatile() != round {
                for colour in [&raw mut (*seen).colours[0], &raw mut (*seen).colours[1]] {
                    (&raw mut (*colour).first_decided).write_volatile(0);
                    (&raw mut (*colour).first_arrived).write_volatile(0);
                }
                (&raw mut (*seen).round).write_volatile(round);
            }
            let colour = if octet == SwitchLoad::COLOUR_OCTETS[0] {
                &raw mut (*seen).colours[0]
            } else {
                &raw mut (*seen).colours[1]
            };
            (&raw mut (*colour).last_arrived).write_volatile(now);
            (&raw mut (*colour).last_decided).write_volatile(decided);
            if (&raw const (*colour).first_decided).read_volatile() == 0 {
                (&raw mut (*colour).first_arrived).write_volatile(now);
                (&raw mut (*colour).first_decided).write_volatile(decided);
            }
            let frames = (&raw const (*colour).frames).read_volatile();
            (&raw mut (*colour).frames).write_volatile(frames + 1);
        }
        XDP_DROP
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
