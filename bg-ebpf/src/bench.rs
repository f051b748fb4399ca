//! Programs that measure the data path. Not part of the object that bgctl embeds.
//!
//! For test runs, of XDP and of tc: a wrapper that restores the frame and tail-calls the program under test, and programs to
//! compare with: one does nothing, one loads a cache line, one asks the kernel's LRU hash. `BPF_PROG_TEST_RUN` does not restore the packet
//! between its repeats, so a program that rewrites would be measured on its own output.
//!
//! For frames that really cross a network: a generator, a receiver that counts and drops, and a redirect that does
//! nothing else. A live frame is recycled as it has become, so the generator writes it anew as well.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::{
            TC_ACT_OK, TC_ACT_SHOT,
            xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
        },
        btf_maps::{Array, DevMap, LruHashMap, PerCpuArray, ProgramArray},
        helpers::bpf_redirect,
        macros::{btf_map, classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use bg_common::{Destination, FrameTemplate, Line, LiveFrame, Received, Turn};

    /// What to restore, and how flows differ.
    #[btf_map(name = "templates")]
    static TEMPLATES: Array<FrameTemplate, { FrameTemplate::TURNS as usize }> = Array::new();

    /// Where each CPU is.
    #[btf_map(name = "turn")]
    static TURN: PerCpuArray<Turn, 1> = PerCpuArray::new();

    /// Slot 0: the XDP program under test.
    #[btf_map(name = "xdp_target")]
    static XDP_TARGET: ProgramArray<1> = ProgramArray::new();

    /// Slot 0: the tc program under test.
    #[btf_map(name = "tc_target")]
    static TC_TARGET: ProgramArray<1> = ProgramArray::new();

    /// Memory as large as the flow table under test: the loader sets its number of lines, a power of two.
    #[btf_map(name = "lines")]
    static LINES: Array<Line, 1> = Array::new();

    /// The kernel's hash for as many flows, which the loader sets.
    #[btf_map(name = "lru_hash")]
    static LRU_HASH: LruHashMap<[u32; 4], [u64; 2], 1> = LruHashMap::new();

    /// Number of lines less one.
    #[unsafe(no_mangle)]
    static LINE_MASK: u32 = 0;

    /// Writes the next template into an XDP frame, as the next flow's, and hands it on.
    #[xdp]
    fn restore(context: XdpContext) -> u32 {
        if write_next(context.data(), context.data_end()) {
            // SAFETY: a tail call returns only if the slot is empty.
            unsafe { XDP_TARGET.tail_call(&context, 0) };
        }
        XDP_ABORTED
    }

    /// The same in tc.
    #[classifier]
    fn tc_restore(context: TcContext) -> i32 {
        if write_next(context.data(), context.data_end()) {
            // SAFETY: a tail call returns only if the slot is empty.
            unsafe { TC_TARGET.tail_call(&context, 0) };
        }
        TC_ACT_SHOT
    }

    /// Writes the next template into the packet, as the next flow's; false if anything is amiss.
    #[inline(always)]
    fn write_next(start: usize, end: usize) -> bool {
        let Some(turn) = TURN.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own row.
        let turn = unsafe { &mut *turn };
        let Some(template) = TEMPLATES.get(turn.next) else { return false };
        let number = if turn.next == 0 { &mut turn.numbers[0] } else { &mut turn.numbers[1] };
        if start + FrameTemplate::LEN > end {
            return false;
        }
        *number = number.wrapping_mul(template.multiplier).wrapping_add(template.increment) & template.mask;
        let flow = number.wrapping_add(template.first);
        (turn.number, turn.next) = (flow, template.next);
        let frame = start as *mut [u64; FrameTemplate::LEN / 8];
        // SAFETY: so many bytes lie inside the packet.
        unsafe { *frame = template.frame };
        // The verifier wants each offset bounded, and compared with the end as the pointer that is used.
        let address_at = start + (template.address_at & 0x7f) as usize;
        if address_at + 4 > end {
            return false;
        }
        let port_at = start + (template.port_at & 0x7f) as usize;
        if port_at + 2 > end {
            return false;
        }
        // The packet's checksums are wrong now. Nobody looks: they are updated, not computed.
        let address = template.address.wrapping_add(flow >> FrameTemplate::PORT_BITS);
        let port = FrameTemplate::FIRST_PORT + (flow & ((1 << FrameTemplate::PORT_BITS) - 1)) as u16;
        // SAFETY: both lie inside the bytes that were checked.
        unsafe {
            *(address_at as *mut u32) = address.to_be();
            *(port_at as *mut u16) = port.to_be();
        }
        true
    }

    /// Does nothing, as fast as can be.
    #[xdp]
    fn empty(_context: XdpContext) -> u32 {
        XDP_TX
    }

    /// The same in tc.
    #[classifier]
    fn tc_empty(_context: TcContext) -> i32 {
        TC_ACT_OK
    }

    /// Loads one cache line, which is the flow's alone, and does nothing else.
    #[xdp]
    fn line(_context: XdpContext) -> u32 {
        load_line();
        XDP_TX
    }

    /// The same in tc.
    #[classifier]
    fn tc_line(_context: TcContext) -> i32 {
        load_line();
        TC_ACT_OK
    }

    /// Looks the flow up in the kernel's hash, inserts it if it is not there, and does nothing else.
    #[xdp]
    fn lru(_context: XdpContext) -> u32 {
        let Some(turn) = TURN.get_ptr(0) else { return XDP_ABORTED };
        // SAFETY: this CPU's own row.
        let key = [unsafe { (*turn).number }, 0, 0, 6];
        // SAFETY: nobody removes what is found.
        if unsafe { LRU_HASH.get(&key) }.is_none() && LRU_HASH.insert(&key, &[1; 2], 0).is_err() {
            return XDP_ABORTED;
        }
        XDP_TX
    }

    /// Loads the flow's line. The next flow's number depends on what stands there, which is zero: so no load begins
    /// before the last one has ended.
    #[inline(always)]
    fn load_line() {
        let Some(turn) = TURN.get_ptr_mut(0) else { return };
        // SAFETY: a number of the object, which the loader has set.
        let mask = unsafe { (&raw const LINE_MASK).read_volatile() };
        // SAFETY: this CPU's own row.
        let turn = unsafe { &mut *turn };
        // An odd number times each number is another one: no two flows share a line, and they are all over the memory.
        let Some(line) = LINES.get_ptr(turn.number.wrapping_mul(0x9e37_79b1) & mask) else { return };
        // SAFETY: a row of the map.
        let zero = unsafe { line.cast::<u64>().read_volatile() } as u32;
        turn.numbers[0] |= zero;
        turn.numbers[1] |= zero;
    }

    /// What to send, and how flows differ.
    #[btf_map(name = "live_frame")]
    static LIVE_FRAME: Array<LiveFrame, 1> = Array::new();

    /// Number of the flow that this CPU has sent last.
    #[btf_map(name = "flow_number")]
    static FLOW_NUMBER: PerCpuArray<u32, 1> = PerCpuArray::new();

    /// What a frame has to be addressed to.
    #[btf_map(name = "destination")]
    static DESTINATION: Array<Destination, 1> = Array::new();

    /// What has come.
    #[btf_map(name = "received")]
    static RECEIVED: PerCpuArray<Received, 1> = PerCpuArray::new();

    /// The first frame that was delivered since the counter was zero.
    #[btf_map(name = "sample")]
    static SAMPLE: Array<[u64; LiveFrame::MAX_LEN / 8], 1> = Array::new();

    /// The interface that [`redirect`] sends by.
    #[btf_map(name = "way_out")]
    static WAY_OUT: DevMap<1> = DevMap::new();

    const SHORT: usize = LiveFrame::MIN_LEN / 8;

    /// Writes the next flow's frame and sends it. Run as a live frame, it is a generator.
    #[xdp]
    fn generate(context: XdpContext) -> u32 {
        let (start, end) = (context.data(), context.data_end());
        let (Some(live), Some(number)) = (LIVE_FRAME.get(0), FLOW_NUMBER.get_ptr_mut(0)) else { return XDP_ABORTED };
        if start + LiveFrame::MIN_LEN > end {
            return XDP_ABORTED;
        }
        // SAFETY: so many bytes lie inside the packet and the template; the counter is this CPU's own.
        let flow = unsafe {
            *(start as *mut [u64; SHORT]) = (&raw const live.frame).cast::<[u64; SHORT]>().read();
            *number = number.read().wrapping_mul(live.multiplier).wrapping_add(live.increment) & live.mask;
            *number
        };
        if start + LiveFrame::MAX_LEN <= end {
            // SAFETY: this word, too, lies inside both.
            unsafe { *((start + LiveFrame::MIN_LEN) as *mut u64) = live.frame[SHORT] };
        }
        let address = (flow >> FrameTemplate::PORT_BITS) as u16;
        let port = (flow & ((1 << FrameTemplate::PORT_BITS) - 1)) as u16;
        let written = put(start, end, live.address_at, live.address as u16 + address)
            & put(start, end, live.port_at, FrameTemplate::FIRST_PORT + port)
            & put(start, end, live.identification_at, !address)
            & put(start, end, live.filler_at, !address)
            & put(start, end, live.filler_at + 2, !port);
        if !written {
            return XDP_ABORTED;
        }
        // SAFETY: takes two numbers.
        unsafe { bpf_redirect(live.ifindex, 0) as u32 }
    }

    /// Writes a word in network order; false if it is not in the packet.
    #[inline(always)]
    fn put(start: usize, end: usize, at: u32, word: u16) -> bool {
        // The verifier wants the offset bounded, and compared with the end as the pointer that is used.
        let at = start + (at & 0x7f) as usize;
        if at + 2 > end {
            return false;
        }
        // SAFETY: the word lies inside the packet.
        unsafe { *(at as *mut u16) = word.to_be() };
        true
    }

    /// Counts what is addressed as expected and drops it; passes what is not, so that neighbours are found.
    #[xdp]
    fn receive(context: XdpContext) -> u32 {
        let (start, end) = (context.data(), context.data_end());
        let (Some(expected), Some(received)) = (DESTINATION.get(0), RECEIVED.get_ptr_mut(0)) else {
            return XDP_ABORTED;
        };
        if start + LiveFrame::MIN_LEN > end {
            return XDP_PASS;
        }
        // SAFETY: all offsets are below the length that was checked.
        let (address, port) = unsafe {
            match u16::from_be(*((start + 12) as *const u16)) {
                0x0800 => (*((start + 14 + 16) as *const u32), *((start + 14 + 20 + 2) as *const u16)),
                0x86dd => (*((start + 14 + 36) as *const u32), *((start + 14 + 40 + 2) as *const u16)),
                _ => return XDP_PASS,
            }
        };
        // SAFETY: this CPU's own counters.
        let received = unsafe { &mut *received };
        if address != expected.address || u32::from(port) != expected.port {
            received.others += 1;
            return XDP_PASS;
        }
        if received.delivered == 0
            && let Some(sample) = SAMPLE.get_ptr_mut(0)
        {
            // SAFETY: so many bytes lie inside the packet and the map's value.
            unsafe { sample.cast::<[u64; SHORT]>().write((start as *const [u64; SHORT]).read()) };
            if start + LiveFrame::MAX_LEN <= end {
                // SAFETY: this word, too, lies inside both.
                unsafe { (*sample)[SHORT] = *((start + LiveFrame::MIN_LEN) as *const u64) };
            }
        }
        received.delivered += 1;
        XDP_DROP
    }

    /// Sends every frame out of one interface: the least that a program on the way can do.
    #[xdp]
    fn redirect(_context: XdpContext) -> u32 {
        WAY_OUT.redirect(0, XDP_ABORTED.into()).unwrap_or_else(|action| action)
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
