//! The way out: a route look-up, cached where the destination is one and the same.
//!
//! For a backend that is its row. For a client it is its flow's reply entry, which has room for a number only: next
//! hops towards clients are few, and numbered. So neither a MAC nor a route is configured by hand, and a packet of
//! an open flow pays nothing for it.

use crate::{
    Hook,
    desk::desk,
    ethernet,
    flow_ref::{BackendRef, FlowRef, RawWords},
    flow_table::Words as _,
    headers::{Headers, IpVersion},
    rewrite::Writer,
    tables::{RouteQuery, Tables},
    unlikely,
};
use bg_common::{CachedHop, Event, MAX_NEXT_HOPS, NextHop, Protocol};

/// Ticks that a look-up is trusted for: a quarter of a second to three, by the kernel's tick rate.
const TRUSTED: u32 = 4;

/// The number that says: the host's stack has to find the way.
const BY_STACK: u32 = MAX_NEXT_HOPS - 1;

/// The next hop to a backend, or [`NextHop::NONE`]: see [`usable`].
#[inline(always)]
pub fn to_backend<V: IpVersion>(
    backend: BackendRef,
    headers: &Headers<V>,
    hook: &Hook<'_, impl Tables, impl Writer>,
    now: u32,
) -> NextHop {
    let cache = backend.next_hop();
    let mut hop = NextHop::NONE;
    if unlikely(!cache.read(&mut hop, now, TRUSTED)) {
        hop = look_up::<V>(headers.src, backend.address::<V>(), hook.tables, now);
        cache.write(hop);
    }
    usable(hop, headers, hook)
}

/// The next hop to the client of a reply that will bear the source `vip`, or [`NextHop::NONE`]: see [`usable`].
#[inline(always)]
pub fn to_client<V: IpVersion>(
    reply: &mut FlowRef,
    vip: V::Address,
    headers: &Headers<V>,
    hook: &Hook<'_, impl Tables, impl Writer>,
    now: u32,
) -> NextHop {
    let cached = reply.cached_hop();
    let mut hop = NextHop::NONE;
    // Ages are kept modulo 65,536: after a longer silence the cached one may look young again.
    if !unlikely(cached.place() == 0 || cached.age(now) >= TRUSTED || reply.is_first_in_span(now)) {
        if let Some(row) = hook.tables.numbered_hop(cached.place()) {
            (hop.ifindex_and_dmac, hop.mtu_and_smac) = (row.load(0), row.load(1));
        }
    } else {
        hop = look_up::<V>(vip, headers.dst, hook.tables, now);
        let number = number(hop.ifindex_and_dmac, hop.mtu_and_smac, hook.tables);
        reply.set_note(CachedHop::new(number, now).0);
    }
    usable(hop, headers, hook)
}

#[inline(always)]
fn look_up<V: IpVersion>(src: V::Address, dst: V::Address, tables: &impl Tables, now: u32) -> NextHop {
    let Some(desk) = desk::<V>(tables) else { return NextHop::NONE };
    // SAFETY: it is this CPU's, and the packet's that the CPU is at.
    let desk = unsafe { &mut *desk };
    desk.query = RouteQuery { family: V::FAMILY, src: V::widen(src), dst: V::widen(dst) };
    desk.hop = NextHop::NONE;
    tables.route(&desk.query, &mut desk.hop);
    NextHop { learned: now, ..desk.hop }
}

/// The hop itself, or [`NextHop::NONE`], counted: the host's stack has to find the way, because the neighbour is not
/// resolved, the egress interface cannot be redirected to, the packet is too big for it, or the frame is of a VLAN.
#[inline(always)]
fn usable<V: IpVersion>(hop: NextHop, headers: &Headers<V>, hook: &Hook<'_, impl Tables, impl Writer>) -> NextHop {
    // A tag must not leave by an interface for which it was not meant, and routes are told apart by VLAN interfaces, which
    // only the host's stack knows.
    let is_tagged = ethernet::is_tagged(headers.l3) || hook.tables.is_tagged();
    if unlikely(is_tagged || !hop.is_some()) {
        hook.tables.count(Event::NextHopByStack);
        return NextHop::NONE;
    }
    // A GSO packet is cut into segments on the way out; those have to fit, not the whole.
    if unlikely(headers.ip_len > hop.mtu() && !segments_fit(headers, hook.tables.gso_size(), hop.mtu())) {
        hook.tables.count(Event::TooBig);
        return NextHop::NONE;
    }
    hop
}

/// The number of a hop, found or given to it. Zero says that there is none to give. The row of [`BY_STACK`] is never
/// taken, so it holds no hop. A call, since it is seldom needed.
#[inline(never)]
fn number(ifindex_and_dmac: u64, mtu_and_smac: u64, tables: &impl Tables) -> u32 {
    if ifindex_and_dmac == 0 {
        return BY_STACK;
    }
    let hash = (ifindex_and_dmac.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32;
    for nth in 0..4 {
        let number = hash ^ nth;
        let Some(row) = tables.numbered_hop(number) else { return 0 };
        if number != 0 && number != BY_STACK && has_or_takes(row, ifindex_and_dmac) {
            if row.load(1) != mtu_and_smac {
                row.store(1, mtu_and_smac);
            }
            return number;
        }
    }
    0
}

/// Whether a GSO packet's segments fit. They have a transport header without options. Options count towards the segment
/// too, but a sender keeps segments and options together below its own MTU, so the difference matters on no path
/// that works.
#[inline(always)]
fn segments_fit<V: IpVersion>(headers: &Headers<V>, gso_size: u32, mtu: u32) -> bool {
    let transport_header = match headers.protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
    };
    gso_size != 0 && gso_size + (headers.l4 - headers.l3) as u32 + transport_header <= mtu
}

#[inline(always)]
fn has_or_takes(row: RawWords, ifindex_and_dmac: u64) -> bool {
    let held = row.load(0);
    // Of two CPUs that take it at once for the same hop the second finds it there.
    held == ifindex_and_dmac || (held == 0 && (row.exchange(0, 0, ifindex_and_dmac) || row.load(0) == ifindex_and_dmac))
}
