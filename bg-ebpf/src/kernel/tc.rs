//! tc, both directions: on interfaces to virtual machines, containers and the host's own stack.
//!
//! There a packet may be GSO and its checksum unfinished (`CHECKSUM_PARTIAL`), so the bytes cannot be
//! edited by plain arithmetic. The kernel's helpers know what the checksum field means at the moment.

use super::{
    routes::{redirect_to_neighbour, redirect_to_self},
    skb::Skb,
    slow::{find_receiver, find_relayed},
    world::{EXPLAINS, World},
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{
        bpf_redirect,
        generated::{bpf_clone_redirect, bpf_csum_update, bpf_skb_adjust_room, bpf_skb_change_tail},
    },
    macros::classifier,
    programs::TcContext,
};
use bg_common::{Addr, Event, Family, Protocol};
use bg_ebpf::{
    Action, Direction, Frame, Reason, Verdict,
    egress::{
        reset::Sequence,
        rewrite::{Edit, Rewritable, Writer},
        unreachable::Room,
    },
    path::{
        direct::{decide, find_way, kind},
        error, relay,
        slow::Receiver,
    },
    process, room_for_error, room_for_outer, turn_into_error, turn_into_reset,
    wire::{checksum::Sum, ethernet, headers::Headers, packet::Packet, transport::checksum_offset},
    write_outer,
};
use core::mem::offset_of;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

/// Bytes that the longest headers take: Ethernet, two tags, IPv4 with all options, TCP with all options.
const LONGEST_HEADERS: u32 = 14 + 2 * 4 + 60 + 60;

/// The same up to a transport checksum that an ICMP error quotes: an IPv4 header with all options and ICMP in between.
const LONGEST_OF_ERROR: u32 = 14 + 2 * 4 + 60 + 8 + 60 + 18;

/// The same with an error about outer headers, up to the transport ports of what is in them: all of IPv6, but the last header.
const LONGEST_OF_RELAYED: u32 = 14 + 40 + 8 + 40 + 8 + 4 + 60 + 8;

/// The same with an error of the data path's own, all of whose bytes are summed.
const LONGEST_OWN_ERROR: u32 = 14 + 1280;

/// The same with outer headers: IPv6, UDP and GUE.
const LONGEST_OUTER: u32 = 14 + 40 + 8 + 4 + 60 + 60;

/// The switch.
#[classifier]
#[inline(always)]
pub(super) fn tc_ingress(context: TcContext) -> i32 {
    run(context, Direction::Ingress)
}

/// Restores replies that this host's own stack sends, or forwards.
#[classifier]
#[inline(always)]
pub(super) fn tc_egress(context: TcContext) -> i32 {
    run(context, Direction::Egress)
}

#[inline(always)]
fn run(context: TcContext, direction: Direction) -> i32 {
    let world = World::<false> { context: context.as_ptr() };
    let packet = packet(&context, LONGEST_HEADERS);
    let frame = Frame { direction, len: context.len() as usize };
    let verdict = process(&packet, frame, &world, &mut SkbWriter(&context));
    let verdict = if verdict.action() == Action::Icmp { icmp(&context, direction, &world) } else { verdict };
    let verdict = match verdict.action() {
        Action::Direct if direction == Direction::Ingress => direct(&context, &world),
        _ => verdict,
    };
    #[cfg(feature = "explain")]
    super::steps::finish(verdict);
    let verdict = match verdict.action() {
        Action::Resolve => match redirect_to_neighbour(verdict.ifindex()) {
            TC_ACT_OK => Verdict::drop(&world, Event::MissingRow),
            redirected => return redirected,
        },
        _ => verdict,
    };
    match verdict.action() {
        // Whoever comes next on this hook sees rewritten packets too.
        Action::Pass | Action::Defer | Action::Deliver | Action::Resolve => TC_ACT_UNSPEC,
        Action::Icmp | Action::Direct => TC_ACT_UNSPEC,
        // SAFETY: takes two numbers.
        Action::Redirect => unsafe { bpf_redirect(verdict.ifindex(), 0) as i32 },
        Action::ToSelf => redirect_to_self(),
        Action::Drop => TC_ACT_SHOT,
        Action::Reset => reset(&context, direction, &world),
        Action::Refuse | Action::Unreachable | Action::TooBig | Action::TimeExceeded => {
            refuse(&context, verdict, &world)
        }
    }
}

/// Ends a connection by one of its segments. A clone goes back where the segment came from, and resets its sender. The rest
/// takes the segment's place, and comes by this hook again, as a reset from the sender.
#[inline(always)]
fn reset(context: &TcContext, direction: Direction, world: &World<false>) -> i32 {
    // Into this host or out of it. From the loopback interface all comes back, with the route that it needs.
    let (back, onward) = match direction {
        _ if world.is_loopback() => (0, 0),
        Direction::Egress => (u64::from(BPF_F_INGRESS), 0),
        _ => (0, u64::from(BPF_F_INGRESS)),
    };
    let (skb, ifindex) = (context.skb.skb, world.ingress_ifindex());
    // SAFETY: the program's own context, and two numbers.
    unsafe {
        let sequence = tc_turn_into_reset(skb, ACKNOWLEDGED);
        if sequence == ACKNOWLEDGED {
            return TC_ACT_SHOT;
        }
        if !EXPLAINS {
            // What cannot be sent now is sent when the end speaks again.
            let _ = bpf_clone_redirect(skb, ifindex, back);
        }
        if tc_turn_into_reset(skb, sequence) == ACKNOWLEDGED {
            return TC_ACT_SHOT;
        }
        bpf_redirect(ifindex, onward) as i32
    }
}

/// Answers a packet of a client with a reset or an error, which goes back where the packet came from.
#[inline(always)]
fn refuse(context: &TcContext, verdict: Verdict, world: &World<false>) -> i32 {
    let skb = context.skb.skb;
    // SAFETY: the program's own context, and two numbers.
    unsafe {
        let is_turned = match verdict.action() {
            Action::Refuse => tc_turn_into_reset(skb, ACKNOWLEDGED) != ACKNOWLEDGED,
            _ => tc_turn_into_error(skb, verdict.reason().to_u32()) != 0,
        };
        if is_turned { bpf_redirect(world.ingress_ifindex(), 0) as i32 } else { TC_ACT_SHOT }
    }
}

/// No sequence number: that which the segment acknowledges.
const ACKNOWLEDGED: u64 = u64::MAX;

/// [`turn_into_reset`]. Returns the segment's sequence number. [`ACKNOWLEDGED`]: the frame must not be sent.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_turn_into_reset(skb: *mut __sk_buff, sequence: u64) -> u64 {
    let context = TcContext::new(skb);
    let packet = packet(&context, LONGEST_HEADERS);
    let number = if sequence == ACKNOWLEDGED { Sequence::Acknowledged } else { Sequence::Number(sequence as u32) };
    let Some(turned) = turn_into_reset(&packet, number, &mut SkbWriter(&context)) else { return ACKNOWLEDGED };
    // Payload and options, which no checksum of the reset covers. A GSO packet is none any more.
    // SAFETY: the program's own context.
    match unsafe { bpf_skb_change_tail(skb, turned.len as u32, 0) } {
        0 => turned.sequence.into(),
        _ => ACKNOWLEDGED,
    }
}

/// [`room_for_error`] and [`turn_into_error`]. Zero: the frame must not be sent.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_turn_into_error(skb: *mut __sk_buff, reason: u32) -> u32 {
    let context = TcContext::new(skb);
    let Some(Room { kept, inserted }) = room_for_error(&packet(&context, LONGEST_HEADERS)) else { return 0 };
    // A GSO packet is none any more once its tail is cut off.
    // SAFETY: the program's own context.
    let has_room = unsafe {
        bpf_skb_change_tail(skb, kept as u32, 0) == 0
            && bpf_skb_adjust_room(skb, inserted as i32, BPF_ADJ_ROOM_MAC, 0) == 0
    };
    if !has_room {
        return 0;
    }
    let packet = packet(&context, LONGEST_OWN_ERROR);
    turn_into_error(&packet, Reason::from_u32(reason), &mut SkbWriter(&context)).is_some().into()
}

/// Decides of a packet to a backend that replies to clients directly, and changes it.
#[inline(always)]
fn direct(context: &TcContext, world: &World<false>) -> Verdict {
    let skb = context.skb.skb;
    // SAFETY: the program's own context.
    let (verdict, is_written) = unsafe {
        let verdict = match tc_find_way(skb) {
            0 => Verdict::drop(world, Event::MissingRow),
            _ => Verdict::from_u64(tc_decide_direct(skb)),
        };
        let is_sent = matches!(verdict.action(), Action::Redirect | Action::Resolve);
        (verdict, !is_sent || tc_write_outer(skb) != 0)
    };
    if is_written { verdict } else { Verdict::drop(world, Event::NoWay) }
}

/// [`find_way`]. Zero: `None`.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_find_way(skb: *mut __sk_buff) -> u32 {
    let frame = Frame { direction: Direction::Ingress, len: 0 };
    find_way(frame, &World::<false> { context: skb.cast() }).is_some().into()
}

/// [`decide`].
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_decide_direct(skb: *mut __sk_buff) -> u64 {
    let context = TcContext::new(skb);
    let frame = Frame { direction: Direction::Ingress, len: context.len() as usize };
    decide(&packet(&context, LONGEST_HEADERS), frame, &World::<false> { context: context.as_ptr() }).to_u64()
}

/// [`room_for_outer`] and [`write_outer`]. Zero: the frame must not be sent.
///
/// The kernel is told what the new headers are: it needs to know when it cuts the packet into segments, and then
/// writes their lengths. Segments keep their size, since they fit.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_write_outer(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let world = World::<false> { context: context.as_ptr() };
    let Some(room) = room_for_outer(&world) else { return 0 };
    if room != 0 {
        let Some((family, is_gue)) = kind(&world) else { return 0 };
        let ip = if family == Family::V6 as u8 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
        let udp = if is_gue { BPF_F_ADJ_ROOM_ENCAP_L4_UDP } else { 0 };
        let flags = u64::from(ip | udp | BPF_F_ADJ_ROOM_FIXED_GSO);
        // SAFETY: the program's own context, of which nothing was read yet.
        if unsafe { bpf_skb_adjust_room(skb, room as i32, BPF_ADJ_ROOM_MAC, flags) } != 0 {
            return 0;
        }
    }
    let packet = packet(&context, LONGEST_OUTER);
    write_outer(&packet, &world, &mut SkbWriter(&context)).is_some().into()
}

/// The frame's bytes, so many at least as the engine looks at.
#[inline(always)]
fn packet(context: &TcContext, longest: u32) -> Packet<'_> {
    let needed = context.len().min(longest);
    if ((context.data_end() - context.data()) as u32) < needed {
        // What lies beyond the first part of the packet is not readable as bytes: bring headers there. If
        // that fails, the engine sees a short packet.
        let _ = context.pull_data(needed);
    }
    // SAFETY: the bounds that the kernel gave; the engine reads nothing through them once the writer has
    // called the first helper that may move the packet.
    unsafe { Packet::new(context.data() as *mut u8, context.data_end() as *mut u8) }
}

/// Decides of an ICMP message.
#[inline(always)]
fn icmp(context: &TcContext, direction: Direction, world: &World<false>) -> Verdict {
    let skb = context.skb.skb;
    // SAFETY: the program's own context.
    unsafe {
        let family = tc_read_error(skb);
        let receiver = find_receiver(family);
        let verdict = Verdict::from_u64(tc_send_error(skb, receiver, family, direction as u32));
        let is_left = verdict.action() == Action::Pass && direction == Direction::Ingress;
        if !is_left || tc_read_relayed(skb) == 0 || find_relayed() == 0 {
            return verdict;
        }
        let verdict = Verdict::from_u64(tc_relayed_way(skb));
        let is_written = verdict.action() != Action::Resolve || tc_write_relayed(skb) != 0;
        if is_written { verdict } else { Verdict::drop(world, Event::NoWay) }
    }
}

/// [`relay::read`]. Zero: `None`.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_read_relayed(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let packet = packet(&context, LONGEST_OF_RELAYED);
    let world = World::<false> { context: context.as_ptr() };
    relay::read(&packet, context.len() as usize, &world).is_some().into()
}

/// [`relay::way`].
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_relayed_way(skb: *mut __sk_buff) -> u64 {
    relay::way(&World::<false> { context: skb.cast() }).to_u64()
}

/// [`relay::room`] and [`relay::write()`]. Zero: the frame must not be sent.
///
/// Only when it inserts headers can the kernel be told, before Linux 6.3, that they are of another version of IP. That comes first: what is left after a
/// cut has to be a header of the version at least that the kernel knows of.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_write_relayed(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let world = World::<false> { context: context.as_ptr() };
    let Some(relay::Room { kept, cut, inserted, family }) = relay::room(&world) else { return 0 };
    // SAFETY: a field of the program's own context.
    let old = unsafe { (*skb).protocol };
    let flag = match family {
        Family::V4 if old == u32::from(ethernet::IPV6.0) => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        Family::V6 if old == u32::from(ethernet::IPV4.0) => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        _ => 0,
    };
    // SAFETY: the program's own context.
    let has_room = unsafe {
        bpf_skb_change_tail(skb, kept as u32, 0) == 0
            && bpf_skb_adjust_room(skb, inserted as i32, BPF_ADJ_ROOM_MAC, flag.into()) == 0
            && bpf_skb_adjust_room(skb, -(cut as i32), BPF_ADJ_ROOM_MAC, 0) == 0
    };
    if !has_room {
        return 0;
    }
    let packet = packet(&context, LONGEST_OWN_ERROR);
    relay::write(&packet, &world, &mut SkbWriter(&context)).is_some().into()
}

/// [`error::read`]. Zero: `None`.
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_read_error(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let packet = packet(&context, LONGEST_OF_ERROR);
    let world = World::<false> { context: context.as_ptr() };
    error::read(&packet, context.len() as usize, &world).map_or(0, |family| family as u32)
}

/// [`error::send`].
///
/// # Safety
///
/// The context must be the program's own.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tc_send_error(skb: *mut __sk_buff, receiver: u32, family: u32, direction: u32) -> u64 {
    let Some(family) = Family::from_u8(family as u8) else { return Verdict::PASS.to_u64() };
    let context = TcContext::new(skb);
    let frame = Frame { direction: Direction::from_u32(direction), len: context.len() as usize };
    let world = World::<false> { context: context.as_ptr() };
    error::send(Receiver::from_u32(receiver), family, frame, &world, &mut SkbWriter(&context)).to_u64()
}

/// Carries edits out by the kernel's helpers.
///
/// What they leave behind is right for each state of `skb->ip_summed`. `CHECKSUM_NONE`: the checksum field alone counts.
/// `CHECKSUM_PARTIAL`: the field holds the sum of the pseudo-header, which addresses change and ports do not.
/// `CHECKSUM_COMPLETE`: `skb->csum` is the sum of all bytes from the network header on.
///
/// | replaced | what keeps `skb->csum` right |
/// | --- | --- |
/// | port | the transport checksum, replaced by the opposite |
/// | IPv4 address | the header checksum takes its change, and `l4_csum_replace` that of the transport checksum, by `BPF_F_PSEUDO_HDR` |
/// | IPv4 TTL | the header checksum |
/// | IPv6 address | there is no header checksum, but `l4_csum_replace` takes the change all the same: [`RECOMPUTE`] gives it back |
/// | IPv6 hop limit | [`RECOMPUTE`] |
/// | anything in an ICMP error | [`RECOMPUTE`] |
/// | MAC | nothing: `skb->csum` does not cover it on the way in, and on the way out it stays |
///
/// A datagram without a checksum is the exception: a port there has no opposite, and nobody looks at `skb->csum`. Linux 6.16
/// has `BPF_F_IPV6` for the IPv6 address; it counts only where the change is told as one sum, which is not so here.
struct SkbWriter<'a>(&'a TcContext);

/// Makes a store change `skb->csum` as it changes the bytes, where that is a sum of them. Since Linux 4.1.
const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;

/// Flags of the helpers that replace an address.
#[derive(Clone, Copy)]
struct Flags {
    checksum: u64,
    store: u64,
}

impl SkbWriter<'_> {
    /// Replaces one 32-bit word of an address: in the transport checksum, then in place.
    #[inline(always)]
    fn replace_address_word(&self, at: usize, checksum: usize, old: u32, new: u32, flags: Flags) -> Option<()> {
        let pseudo = flags.checksum | u64::from(BPF_F_PSEUDO_HDR) | 4;
        self.0.l4_csum_replace(checksum, old.into(), new.into(), pseudo).ok()?;
        Skb(self.0).store(at, &new, flags.store).ok()
    }
}

impl Writer for SkbWriter<'_> {
    #[inline(always)]
    fn rewrite<V: Rewritable>(&mut self, headers: &Headers<V>, edit: &Edit<V>) -> Option<()> {
        let context = self.0;
        let (old_address, old_port) = edit.end.of(headers);
        let (old, Addr(new)) = (V::widen(old_address).0, V::widen(edit.address));
        let checksum = headers.l4 + checksum_offset(headers.protocol());
        // A UDP checksum of zero stays, and a computed zero is sent as its twin.
        let mangled = match headers.protocol() {
            Protocol::Udp => BPF_F_MARK_MANGLED_0.into(),
            Protocol::Tcp => 0,
        };
        match V::FAMILY {
            Family::V4 => {
                let check = headers.l3 + offset_of!(Ipv4Hdr, check);
                context.l3_csum_replace(check, old[0].into(), new[0].into(), 4).ok()?;
                let flags = Flags { checksum: mangled, store: 0 };
                self.replace_address_word(headers.l3 + edit.end.v4_offset(), checksum, old[0], new[0], flags)?;
                if edit.hop.is_some() {
                    // TTL and protocol share a word of the checksum.
                    let word = |ttl| u16::from_ne_bytes([ttl, headers.protocol() as u8]);
                    let (old, new) = (word(headers.hop_limit), word(headers.hop_limit.wrapping_sub(1)));
                    context.l3_csum_replace(check, old.into(), new.into(), 2).ok()?;
                    Skb(context).store(headers.l3 + offset_of!(Ipv4Hdr, ttl), &new, 0).ok()?;
                }
            }
            Family::V6 => {
                let at = headers.l3 + edit.end.v6_offset();
                let flags = Flags { checksum: mangled, store: RECOMPUTE };
                self.replace_address_word(at, checksum, old[0], new[0], flags)?;
                self.replace_address_word(at + 4, checksum, old[1], new[1], flags)?;
                self.replace_address_word(at + 8, checksum, old[2], new[2], flags)?;
                self.replace_address_word(at + 12, checksum, old[3], new[3], flags)?;
                if edit.hop.is_some() {
                    let hop_limit = headers.hop_limit.wrapping_sub(1);
                    Skb(context).store(headers.l3 + offset_of!(Ipv6Hdr, hop_limit), &hop_limit, RECOMPUTE).ok()?;
                }
            }
        }
        context.l4_csum_replace(checksum, old_port.0.into(), edit.port.0.into(), mangled | 2).ok()?;
        Skb(context).store(headers.l4 + edit.end.port_offset(), &edit.port.0, 0).ok()?;
        if edit.hop.is_some() {
            Skb(context).store(0, &ethernet::macs_towards(edit.hop), 0).ok()?;
        }
        Some(())
    }

    #[inline(always)]
    fn put16(&mut self, at: usize, word: u16) -> Option<()> {
        Skb(self.0).store(at, &word, RECOMPUTE).ok()
    }

    #[inline(always)]
    fn put32(&mut self, at: usize, word: u32) -> Option<()> {
        Skb(self.0).store(at, &word, RECOMPUTE).ok()
    }

    /// The helper leaves the field alone if the state is `CHECKSUM_PARTIAL`, and else makes the finished checksum of it: what it is
    /// told to replace zero by is the difference.
    #[inline(always)]
    fn put_checksum(&mut self, at: usize, unfinished: u16, finished: u16) -> Option<()> {
        self.put16(at, unfinished)?;
        let difference = Sum::ZERO.word(unfinished).word(!finished).fold();
        self.0.l4_csum_replace(at, 0, difference.into(), 2).ok()?;
        // `skb->csum` has seen the unfinished one stored. If it is no sum of all bytes, this does nothing.
        let change = Sum::ZERO.word(finished).word(!unfinished).fold();
        // SAFETY: the program's own context.
        unsafe { bpf_csum_update(self.0.skb.skb, change.into()) };
        Some(())
    }

    #[inline(always)]
    fn put_macs(&mut self, macs: [u32; 3]) -> Option<()> {
        Skb(self.0).store(0, &macs, 0).ok()
    }
}
