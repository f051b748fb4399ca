//! ICMP errors about packets in outer headers, of machines between this host and a backend (modes `ipip` and `gue`). Nobody but the client can send less, so it
//! hears what fits, or that the backend cannot be reached, as if a router on its packet's own way had said so (RFC 2003, section 4; RFC 2473, section 8).
//!
//! | the error says | the client hears |
//! | --- | --- |
//! | fragmentation needed, packet too big | the same, with the MTU less the outer headers; of IPv6, 1,280 at least |
//! | unreachable, time exceeded, parameter problem | host unreachable, of IPv6 address unreachable |
//!
//! It hears nothing unless the error quotes so much that it shows one of its open flows, of a backend that has the outer destination as its address and this
//! mode. Nor does it of a size that its packet had not exceeded. This host believes no such error itself: all that it does not pass on in this way goes to the host's
//! stack, as it has come.
//!
//! Only tc does this, in steps that leave what they have found in the scratch buffer: [`read`], [`find`], [`way`], [`write()`].

use super::slow;
use crate::{
    egress::{next_hop, outer, rewrite::Writer, unreachable},
    flow::{
        key::{Key as _, Match},
        table::find as find_flow,
    },
    path::classify::vip_at,
    policy::backend,
    rows::TunnelRef,
    verdict::{Action, Exit, Reason, Verdict},
    wire::{
        ethernet::{self, Ethernet},
        headers::{FRAGMENT_OFFSET, IpHeader as _, IpVersion, V4, V6},
        icmp,
        packet::{Packet, bytes::load16},
    },
    world::{Flows, World},
};
use bg_common::{Addr, Be16, Family, Mode, Protocol};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

/// Offset of the IP header: frames with tags pass.
const L3: usize = size_of::<Ethernet>();

/// Offset of the EtherType.
const ETHER_TYPE: usize = 12;

/// IANA numbers of the protocols that are encapsulated.
const IPV4: u8 = 4;
const IPV6: u8 = 41;

/// Bytes of UDP and GUE.
const GUE_LEN: usize = UdpHdr::LEN + 4;

/// The least MTU of IPv4 (RFC 791) and of IPv6 (RFC 8200, section 5).
const LEAST_MTU: [u32; 2] = [68, 1280];

/// Bytes that must be quoted of the transport header.
const LEAST_QUOTED: usize = 8;

/// An error about a packet in outer headers.
#[repr(C)]
#[derive(Clone, Copy)]
struct Relayed {
    /// Source of the inner packet.
    client: Addr,
    /// Destination of the inner packet.
    vip: Addr,
    /// Destination of the outer header.
    backend: Addr,
    /// Ports of the inner packet, as they stand on the wire.
    ports: u32,
    /// The MTU that the error tells, then the one that the client is told. Zero: it is about something else.
    mtu: u32,
    /// Bytes of the inner packet.
    ip_len: u32,
    /// Bytes of it that are quoted.
    quoted: u32,
    /// Destination port of GUE.
    port: Be16,
    /// Offset of the inner packet in the frame.
    at: u8,
    /// [`Protocol`] of the inner packet.
    protocol: u8,
    /// [`Family`] of the inner packet.
    inner: u8,
    /// [`Family`] of the outer header.
    outer: u8,
    /// [`Mode`].
    mode: u8,
    /// Always zero.
    reserved: u8,
}

/// First step. `None`: it is no such error.
#[inline(always)]
pub fn read(packet: &Packet<'_>, frame_len: usize, world: &impl World) -> Option<()> {
    let Some((ether_type, L3)) = ethernet::payload(packet) else { return None };
    // A frame to a group is not answered.
    if ethernet::destination(packet)? & 1 != 0 {
        return None;
    }
    match ether_type {
        ethernet::IPV4 => of_outer::<V4>(packet, frame_len, world),
        ethernet::IPV6 => of_outer::<V6>(packet, frame_len, world),
        _ => None,
    }
}

#[inline(always)]
fn of_outer<V: IpVersion>(packet: &Packet<'_>, frame_len: usize, world: &impl World) -> Option<()> {
    // Options of the error's own header are none of a router's. Outer headers have none.
    let header_len = if V::FAMILY == Family::V6 { Ipv6Hdr::LEN } else { Ipv4Hdr::LEN };
    let ip = V::header(packet, L3)?;
    let end = L3 + ip.ip_len() as usize;
    if ip.header_len() != header_len || ip.fragment() != 0 || end > frame_len {
        return None;
    }
    let l4 = L3 + header_len;
    let [kind, code, _, _, a, b, c, d] = *packet.header::<[u8; 8]>(l4)?;
    let (is_about_size, mtu) = match (V::FAMILY, kind, code) {
        (Family::V4, 3, 4) => (true, u32::from_be_bytes([0, 0, c, d])),
        (Family::V6, 2, _) => (true, u32::from_be_bytes([a, b, c, d])),
        (Family::V4, 3 | 11 | 12, _) | (Family::V6, 1 | 3 | 4, _) => (false, 0),
        _ => return None,
    };
    // Zero: a router that does not tell what fits (RFC 792).
    if is_about_size && mtu == 0 {
        return None;
    }
    let quoted_at = l4 + icmp::HEADER_LEN;
    let quoted = V::header(packet, quoted_at)?;
    if quoted.header_len() != header_len || quoted.src() != ip.dst() {
        return None;
    }
    let behind = quoted_at + header_len;
    let (mode, at, inner, port) = match quoted.protocol() {
        inner @ (IPV4 | IPV6) => (Mode::Ipip, behind, inner, Be16(0)),
        protocol if protocol == Protocol::Udp as u8 => {
            let [_, _, high, low, _, _, _, _, version, inner, flags @ ..] = *packet.header::<[u8; GUE_LEN]>(behind)?;
            if version != 0 || flags != [0, 0] {
                return None;
            }
            (Mode::Gue, behind + GUE_LEN, inner, Be16(load16(&[high, low])))
        }
        _ => return None,
    };
    let call = Relayed {
        client: Addr([0; 4]),
        vip: Addr([0; 4]),
        backend: V::widen(quoted.dst()),
        ports: 0,
        mtu,
        ip_len: 0,
        quoted: 0,
        port,
        at: at as u8,
        protocol: 0,
        inner: 0,
        outer: V::FAMILY as u8,
        mode: mode as u8,
        reserved: 0,
    };
    let call = slow::keep(world, call)?;
    match inner {
        IPV4 => of_inner::<V4>(packet, end, call),
        IPV6 => of_inner::<V6>(packet, end, call),
        _ => None,
    }
}

#[inline(always)]
fn of_inner<V: IpVersion>(packet: &Packet<'_>, end: usize, call: &mut Relayed) -> Option<()> {
    let at = usize::from(call.at);
    let ip = V::header(packet, at)?;
    let l4 = at + ip.header_len();
    // The first of several fragments has ports.
    if l4 + LEAST_QUOTED > end || ip.fragment() & FRAGMENT_OFFSET != 0 {
        return None;
    }
    call.inner = V::FAMILY as u8;
    call.protocol = Protocol::from_u8(ip.protocol())? as u8;
    call.client = V::widen(ip.src());
    call.vip = V::widen(ip.dst());
    call.ip_len = ip.ip_len();
    call.quoted = call.ip_len.min((end - at) as u32).min(unreachable::most_quoted(V::FAMILY) as u32);
    call.ports = u32::from_ne_bytes(*packet.header::<[u8; 4]>(l4)?);
    Some(())
}

/// Second step: finds the client's flow. `None`: there is none, or it was not the one.
#[inline(always)]
pub fn find(world: &impl World) -> Option<()> {
    let call = slow::kept::<Relayed>(world)?;
    if call.inner == Family::V6 as u8 { find_of::<V6>(call, world) } else { find_of::<V4>(call, world) }
}

#[inline(always)]
fn find_of<V: Flows>(call: &mut Relayed, world: &impl World) -> Option<()> {
    let (src_port, dst_port) = (Be16(call.ports as u16), Be16((call.ports >> 16) as u16));
    let vip = vip_at::<V>(V::narrow(&call.vip), dst_port, Protocol::from_u8(call.protocol)?, world);
    if !vip.is_some {
        return None;
    }
    let flows = V::flows(world);
    let key = V::key(V::narrow(&call.client), src_port, vip.number as u16);
    let flow = find_flow(flows, &key, key.hash(vip.salt, flows), Match::Whole)?;
    let backend = backend::of_flow(&flow, world)?;
    let (Addr([a, b, c, d]), Addr([e, f, g, h])) = (backend.whole_address(), call.backend);
    if backend.mode() != call.mode || backend.family() != call.outer || (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) != 0 {
        return None;
    }
    if call.mode == Mode::Gue as u8 && TunnelRef(world.tunnel(flow.backend().slot())?).port() != call.port {
        return None;
    }
    if call.mtu != 0 {
        let least = LEAST_MTU[usize::from(V::FAMILY == Family::V6)];
        let fits = call.mtu.saturating_sub(outer::room(call.mode, call.outer).into());
        let is_v6 = V::FAMILY == Family::V6;
        let fits = if is_v6 && fits < least { least } else { fits };
        if fits < least || fits >= call.ip_len {
            return None;
        }
        call.mtu = fits;
    }
    Some(())
}

/// Third step: the way to the client. With [`Action::Resolve`], the frame is to be changed yet: [`room`] and [`write()`].
#[inline(always)]
pub fn way(world: &impl World) -> Verdict {
    let Some(call) = slow::kept::<Relayed>(world) else { return Verdict::PASS };
    if world.is_tagged() {
        return Verdict::PASS;
    }
    let family = if call.inner == Family::V6 as u8 { Family::V6 } else { Family::V4 };
    let hop = next_hop::look_up(call.vip, call.client, family, world);
    if !hop.is_some() || !world.may_send_error(call.mtu != 0) {
        return Verdict::PASS;
    }
    Verdict::out_of(Exit { action: Action::Resolve, hop })
}

/// What to do with the frame before [`write()`].
#[derive(Clone, Copy)]
pub struct Room {
    /// The length that it is cut to.
    pub kept: usize,
    /// Bytes that are inserted behind its Ethernet header then.
    pub inserted: usize,
    /// Bytes that are cut out there after that, no less.
    pub cut: usize,
    /// The version of IP that it has then.
    pub family: Family,
}

/// `None`: there is no scratch buffer.
#[inline(always)]
pub fn room(world: &impl World) -> Option<Room> {
    let call = slow::kept::<Relayed>(world)?;
    let family = if call.inner == Family::V6 as u8 { Family::V6 } else { Family::V4 };
    Some(Room {
        kept: usize::from(call.at) + call.quoted as usize,
        cut: usize::from(call.at) - L3,
        inserted: unreachable::headers_len(family),
        family,
    })
}

/// Last step: the error that the client gets, of a frame in which there is room. `None`: it could not be written, and must not be sent.
#[inline(always)]
pub fn write(packet: &Packet<'_>, world: &impl World, writer: &mut impl Writer) -> Option<()> {
    let &mut Relayed { quoted, mtu, inner, .. } = slow::kept::<Relayed>(world)?;
    let reason = if mtu == 0 { Reason::NoHost } else { Reason::TooBig(mtu) };
    let quoted = Some(quoted as usize);
    let ether_type = if inner == Family::V6 as u8 {
        unreachable::write::<V6>(packet, reason, quoted, writer)?;
        ethernet::IPV6
    } else {
        unreachable::write::<V4>(packet, reason, quoted, writer)?;
        ethernet::IPV4
    };
    writer.put16(ETHER_TYPE, ether_type.0)
}
