//! The program of `bgctl decap`, for backends: XDP that unpacks what the modes `ipip` and `gue` have encapsulated. See
//! [`bg_ebpf::unpack`].
//!
//! It is an object of its own, with maps of its own: a backend needs no instance.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::xdp_action::{XDP_DROP, XDP_PASS},
        btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key as PrefixKey},
        helpers::generated::bpf_xdp_adjust_head,
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use bg_common::{Addr, Be16, Family, TesterKey};
    use bg_ebpf::{
        unpack::{Count, DROP, PASS, Unpacking, unpack},
        wire::packet::Packet,
    };

    /// Prefix length that covers a whole key, in bits.
    const WHOLE_KEY: u32 = 8 * size_of::<TesterKey>() as u32;

    /// Addresses of this host.
    #[btf_map(name = "addresses")]
    static ADDRESSES: HashMap<TesterKey, u32, 4096> = HashMap::new();

    /// Prefixes from which encapsulated packets are unpacked.
    #[btf_map(name = "sources")]
    static SOURCES: LpmTrie<TesterKey, u32, 4096> = LpmTrie::new();

    /// The UDP port of GUE, in network order.
    #[btf_map(name = "gue_port")]
    static GUE_PORT: Array<u64, 1> = Array::new();

    /// Counters, by [`Count`].
    #[btf_map(name = "counts")]
    static COUNTS: PerCpuArray<u64, 4> = PerCpuArray::new();

    /// The maps.
    struct Maps;

    impl Unpacking for Maps {
        #[inline(always)]
        fn is_ours(&self, family: Family, address: &Addr) -> bool {
            // SAFETY: nobody looks at the value.
            unsafe { ADDRESSES.get(&key(family, address)) }.is_some()
        }

        #[inline(always)]
        fn may_send(&self, family: Family, address: &Addr) -> bool {
            SOURCES.get(&PrefixKey::new(WHOLE_KEY, key(family, address))).is_some()
        }

        #[inline(always)]
        fn gue_port(&self) -> Be16 {
            GUE_PORT.get(0).map_or(Be16(0), |port| Be16(*port as u16))
        }

        #[inline(always)]
        fn count(&self, what: Count) {
            if let Some(count) = COUNTS.get_ptr_mut(what as u32) {
                // SAFETY: this CPU's own counter.
                unsafe { *count += 1 };
            }
        }
    }

    #[inline(always)]
    fn key(family: Family, address: &Addr) -> TesterKey {
        TesterKey { deployment: 0, family: u32::from(family as u8).to_be(), addr: *address }
    }

    /// Unpacks a frame.
    #[xdp]
    #[inline(always)]
    fn decap(context: XdpContext) -> u32 {
        let (start, end) = (context.data() as *mut u8, context.data_end() as *mut u8);
        // SAFETY: the bounds that the kernel gave. Nothing is read through the first once the second has written.
        let (packet, mut writer) = unsafe { (Packet::new(start, end), Packet::new(start, end)) };
        match unpack(&packet, &mut writer, &Maps) {
            PASS => XDP_PASS,
            DROP => XDP_DROP,
            // SAFETY: the program's own context, of which nothing is read any more.
            cut => match unsafe { bpf_xdp_adjust_head(context.ctx, cut as i32) } {
                0 => XDP_PASS,
                // It cannot be: an IP header, which was read, is left behind the bytes that are cut.
                _ => XDP_DROP,
            },
        }
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here can panic; the verifier refuses the object if that is not so.
    loop {}
}

/// See `main.rs`.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
