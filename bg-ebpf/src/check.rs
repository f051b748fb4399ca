//! The programs of health checks that go to a virtual address at a backend, as the packets of clients do (`bgctl serve`).
//!
//! A check is a connection from a TUN device of the controller. There, one pair of addresses stands for all checks, and the ports tell them apart.
//!
//! - `check_out`, on the way out of the device, gives the packet the addresses that it has on the wire, this host's own and the virtual one. It encapsulates the
//!   packet as the data path does, and sends it to the one backend that is checked.
//! - `check_in`, on the interfaces by which replies come, gives a reply to such a check the device's addresses, and hands it to the device. So the host's stack sees no packet from
//!   outside whose source may be an address of its own. Everything else passes unmodified.
//!
//! It is an object of its own, with maps of its own, and nothing of it is pinned: it ends with the controller.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::{
            __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
            BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
            TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
        },
        btf_maps::{Array, HashMap},
        helpers::{
            bpf_redirect, bpf_skb_store_bytes,
            generated::{
                bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_adjust_room, bpf_skb_change_head,
            },
        },
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use bg_common::{Addr, CheckDevice, CheckKey, CheckReplyKey, CheckWay, Family, Mode, NextHop, Protocol};
    use bg_ebpf::{
        egress::{
            outer::{self, Outer},
            rewrite::End,
        },
        wire::{
            ethernet,
            headers::{Headers, IpVersion, Parsed, V4, V6},
            packet::Packet,
            transport::{self, checksum_offset},
        },
    };
    use core::mem::offset_of;
    use network_types::ip::Ipv4Hdr;

    /// Checks at a time: more than there are ports to come from.
    const CHECKS: usize = 65_536;

    /// Bytes of an Ethernet header.
    const L3: usize = 14;

    /// Bytes that the longest headers take: Ethernet, IPv4 with all options, TCP with all options.
    const LONGEST_HEADERS: u32 = 14 + 60 + 60;

    /// The same with outer headers: IPv6, UDP and GUE.
    const LONGEST_OUTER: u32 = 14 + 40 + 8 + 4 + 60 + 60;

    /// Families as `bpf_redirect_neigh` wants them (linux/socket.h).
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;

    /// `PACKET_HOST` (linux/if_packet.h).
    const TO_THIS_HOST: u32 = 0;

    /// The checks that are under way.
    #[btf_map(name = "checks")]
    static CHECKS_OUT: HashMap<CheckKey, CheckWay, CHECKS> = HashMap::new();

    /// The replies that are expected.
    #[btf_map(name = "check_replies")]
    static REPLIES: HashMap<CheckReplyKey, u32, CHECKS> = HashMap::new();

    /// The device.
    #[btf_map(name = "check_device")]
    static DEVICE: Array<CheckDevice, 1> = Array::new();

    /// Sends a packet of a check to the virtual address at its backend. Nothing else leaves the device.
    #[classifier]
    #[inline(always)]
    fn check_out(context: TcContext) -> i32 {
        let skb = context.skb.skb;
        // SAFETY: a field of the program's own context.
        let protocol = unsafe { (*skb).protocol };
        // The device has no link layer. What comes first is the Ethernet header that other interfaces expect.
        // SAFETY: the program's own context, of which nothing was read yet.
        if unsafe { bpf_skb_change_head(skb, L3 as u32, 0) } != 0 {
            return TC_ACT_SHOT;
        }
        let sent = match protocol {
            _ if protocol == u32::from(ethernet::IPV4.0) => send::<V4>(&context),
            _ if protocol == u32::from(ethernet::IPV6.0) => send::<V6>(&context),
            _ => None,
        };
        sent.unwrap_or(TC_ACT_SHOT)
    }

    /// Hands a reply to a check to the device.
    #[classifier]
    #[inline(always)]
    fn check_in(context: TcContext) -> i32 {
        let skb = context.skb.skb;
        // SAFETY: fields of the program's own context.
        let (protocol, kind, has_tag) = unsafe { ((*skb).protocol, (*skb).pkt_type, (*skb).vlan_present) };
        if kind != TO_THIS_HOST || has_tag != 0 {
            return TC_ACT_UNSPEC;
        }
        let taken = match protocol {
            _ if protocol == u32::from(ethernet::IPV4.0) => take::<V4>(&context),
            _ if protocol == u32::from(ethernet::IPV6.0) => take::<V6>(&context),
            _ => None,
        };
        taken.unwrap_or(TC_ACT_UNSPEC)
    }

    #[inline(always)]
    fn send<V: IpVersion>(context: &TcContext) -> Option<i32> {
        let headers = tcp::<V>(context)?;
        let key = CheckKey { ports: headers.ports, family: V::FAMILY as u32 };
        // SAFETY: user space writes an entry before the first packet, and not again while there are any.
        let way = unsafe { CHECKS_OUT.get(&key) }?;
        let device = DEVICE.get(0)?;
        let at = family_index::<V>();
        readdress(context, &headers, [device.own[at], device.peer[at]], [way.client, way.vip])?;
        let skb = context.skb.skb;
        // SAFETY: a field of the program's own context.
        let is_gso = unsafe { (*skb).gso_size } != 0;
        let outer = Outer {
            hop: NextHop::NONE,
            src: way.outer_source,
            dst: way.backend,
            hash: way.hash,
            ip_len: headers.ip_len,
            port: way.gue_port,
            inner: V::FAMILY as u8,
            family: way.family,
            mode: way.mode,
            room: outer::room(way.mode, way.family),
            is_gso: is_gso.into(),
            resolves: 1,
        };
        make_room(skb, &outer)?;
        let packet = packet(context, LONGEST_OUTER);
        // SAFETY: the same bounds. Nothing is read through the first once the second has written.
        let mut writer = unsafe { Packet::new(context.data() as *mut u8, context.data_end() as *mut u8) };
        outer::write(&packet, &outer, &mut writer)?;
        let mut hop = bpf_redir_neigh {
            nh_family: if way.next_hop_family == Family::V6 as u8 { AF_INET6 } else { AF_INET },
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: way.next_hop.0 },
        };
        // SAFETY: a struct of the size that is told.
        Some(unsafe { bpf_redirect_neigh(way.ifindex, &mut hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 })
    }

    #[inline(always)]
    fn take<V: IpVersion>(context: &TcContext) -> Option<i32> {
        let headers = tcp::<V>(context)?;
        let (vip, client) = (V::widen(headers.src), V::widen(headers.dst));
        let key = CheckReplyKey { vip, client, ports: headers.ports, family: V::FAMILY as u32 };
        // SAFETY: nobody looks at the value.
        unsafe { REPLIES.get(&key) }?;
        let device = DEVICE.get(0)?;
        let at = family_index::<V>();
        // What was changed in part must not go on.
        let Some(()) = readdress(context, &headers, [vip, client], [device.peer[at], device.own[at]]) else {
            return Some(TC_ACT_SHOT);
        };
        // SAFETY: takes two numbers.
        Some(unsafe { bpf_redirect(device.ifindex, u64::from(BPF_F_INGRESS)) as i32 })
    }

    /// Where the addresses of a family are in [`CheckDevice`].
    #[inline(always)]
    const fn family_index<V: IpVersion>() -> usize {
        match V::FAMILY {
            Family::V4 => 0,
            Family::V6 => 1,
        }
    }

    /// The headers of a whole TCP segment.
    #[inline(always)]
    fn tcp<V: IpVersion>(context: &TcContext) -> Option<Headers<V>> {
        match transport::parse::<V>(&packet(context, LONGEST_HEADERS), L3, context.len() as usize) {
            Parsed::Whole(headers) if headers.protocol() == Protocol::Tcp => Some(headers),
            _ => None,
        }
    }

    /// Inserts bytes for the outer headers, and tells the kernel what they are.
    #[inline(always)]
    fn make_room(skb: *mut __sk_buff, outer: &Outer) -> Option<()> {
        if outer.room == 0 {
            return Some(());
        }
        let is_v6 = outer.family == Family::V6 as u8;
        let ip = if is_v6 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
        let udp = if outer.mode == Mode::Gue as u8 { BPF_F_ADJ_ROOM_ENCAP_L4_UDP } else { 0 };
        let flags = u64::from(ip | udp | BPF_F_ADJ_ROOM_FIXED_GSO);
        // SAFETY: the program's own context.
        let made = unsafe { bpf_skb_adjust_room(skb, outer.room.into(), BPF_ADJ_ROOM_MAC, flags) };
        (made == 0).then_some(())
    }

    /// Replaces source and destination address.
    #[inline(always)]
    fn readdress<V: IpVersion>(
        context: &TcContext,
        headers: &Headers<V>,
        old: [Addr; 2],
        new: [Addr; 2],
    ) -> Option<()> {
        let check = (headers.l4 + checksum_offset(Protocol::Tcp)) as u32;
        let l3 = headers.l3;
        let ends = match V::FAMILY {
            Family::V4 => [l3 + End::Source.v4_offset(), l3 + End::Destination.v4_offset()],
            Family::V6 => [l3 + End::Source.v6_offset(), l3 + End::Destination.v6_offset()],
        };
        let skb = context.skb.skb;
        let ([Addr(old_source), Addr(old_destination)], [Addr(source), Addr(destination)]) = (old, new);
        replace::<V>(skb, ends[0], check, old_source, source)?;
        replace::<V>(skb, ends[1], check, old_destination, destination)
    }

    /// Replaces one address.
    #[inline(always)]
    fn replace<V: IpVersion>(
        skb: *mut __sk_buff,
        at: usize,
        check: u32,
        [a, b, c, d]: [u32; 4],
        [e, f, g, h]: [u32; 4],
    ) -> Option<()> {
        let at = at as u32;
        let failed = match V::FAMILY {
            Family::V4 => replace_v4(skb, at, check, a, e),
            Family::V6 => {
                replace_word(skb, at, check, a, e)
                    | replace_word(skb, at + 4, check, b, f)
                    | replace_word(skb, at + 8, check, c, g)
                    | replace_word(skb, at + 12, check, d, h)
            }
        };
        (failed == 0).then_some(())
    }

    /// Replaces an IPv4 address. Zero: it was replaced.
    #[inline(never)]
    fn replace_v4(skb: *mut __sk_buff, at: u32, check: u32, old: u32, new: u32) -> i64 {
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | 4;
        // SAFETY: the program's own context, and a word of the stack.
        unsafe {
            bpf_l3_csum_replace(skb, (L3 + offset_of!(Ipv4Hdr, check)) as u32, old.into(), new.into(), 4)
                | bpf_l4_csum_replace(skb, check, old.into(), new.into(), pseudo)
                | bpf_skb_store_bytes(skb.cast(), at, (&raw const new).cast(), 4, 0)
        }
    }

    /// Replaces a word of an IPv6 address. Zero: it was replaced. No header checksum takes the change of the address, so that the sum of all bytes, if the kernel has
    /// one, needs it by the store.
    #[inline(never)]
    fn replace_word(skb: *mut __sk_buff, at: u32, check: u32, old: u32, new: u32) -> i64 {
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | 4;
        // SAFETY: the program's own context, and a word of the stack.
        unsafe {
            bpf_l4_csum_replace(skb, check, old.into(), new.into(), pseudo)
                | bpf_skb_store_bytes(skb.cast(), at, (&raw const new).cast(), 4, u64::from(BPF_F_RECOMPUTE_CSUM))
        }
    }

    /// The frame's bytes, so many at least as are looked at.
    #[inline(always)]
    fn packet(context: &TcContext, longest: u32) -> Packet<'_> {
        let needed = context.len().min(longest);
        if ((context.data_end() - context.data()) as u32) < needed {
            let _ = context.pull_data(needed);
        }
        // SAFETY: the bounds that the kernel gave; nothing is read through them once a helper may have moved the packet.
        unsafe { Packet::new(context.data() as *mut u8, context.data_end() as *mut u8) }
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
