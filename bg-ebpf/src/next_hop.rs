//! The way out: a route look-up, cached where the destination is one and the same.
//!
//! For a backend that is its row. For a client it is its flow's reply entry, which has room for a number only: next
//! hops towards clients are few, and numbered. So neither a MAC nor a route is configured by hand, and a packet of
//! an open flow pays nothing for it.
//!
//! A redirect to a MAC address does not pass the kernel's neighbour code, so the kernel would take the neighbour for unused
//! and never ask whether the address is still right. Therefore the packet that looks the route up leaves by
//! [`Action::Resolve`] in tc, and XDP leaves one packet of each hop to tc every [`ASKED_EVERY`] ticks. The same action
//! finds neighbours that nobody has talked to yet, so that such packets do not need the host's stack.

use crate::{
    Action, Direction, Hook,
    desk::desk,
    ethernet,
    flow_ref::{BackendRef, FlowRef, HopCache, RawWords},
    flow_table::Words as _,
    headers::{Headers, IpVersion},
    rewrite::Writer,
    tables::{RouteQuery, Tables},
    unlikely,
};
use bg_common::{CachedHop, Event, MAX_NEXT_HOPS, NextHop, Protocol};

/// Ticks that a look-up is trusted for: a quarter of a second to three, by the kernel's tick rate.
const TRUSTED: u32 = 4;

/// Ticks after which XDP leaves a packet to tc again.
const ASKED_EVERY: u32 = 4;

/// Ticks within which tc answers such a packet.
const ANSWERED_WITHIN: u32 = 2;

/// The number that says: the host's stack has to find the way.
const BY_STACK: u32 = MAX_NEXT_HOPS - 1;

/// How a packet leaves.
#[derive(Clone, Copy)]
pub struct Exit {
    /// Any but [`Action::Pass`] and [`Action::Drop`].
    pub action: Action,
    /// Where to, of [`Action::Redirect`] and [`Action::Resolve`]; else [`NextHop::NONE`].
    pub hop: NextHop,
}

impl Exit {
    /// By this host's stack, or to it.
    pub const TO_STACK: Self = Self { action: Action::Deliver, hop: NextHop::NONE };
    /// To the client, which runs on this host.
    pub const TO_SELF: Self = Self { action: Action::ToSelf, hop: NextHop::NONE };
    const DEFERRED: Self = Self { action: Action::Defer, hop: NextHop::NONE };
}

/// The way to a backend.
#[inline(always)]
pub fn to_backend<V: IpVersion>(
    backend: BackendRef,
    headers: &Headers<V>,
    hook: &Hook<'_, impl Tables, impl Writer>,
    now: u32,
) -> Exit {
    let cache = backend.next_hop();
    let mut hop = cache.read();
    let mut action = Action::Redirect;
    if unlikely(now.wrapping_sub(hop.learned) >= TRUSTED || is_to_answer(hop.asked, hook, now)) {
        hop = look_up::<V>(headers.src, backend.address::<V>(), hook.tables);
        keep(cache, hop.ifindex_and_dmac, hop.mtu_and_smac, now);
        hop.asked = cache.read().asked;
        action = Action::Resolve;
    }
    leave(action, hop, cache, headers, hook, now)
}

/// The way to the client of a reply that will bear the source `vip`.
#[inline(always)]
pub fn to_client<V: IpVersion>(
    reply: &mut FlowRef,
    vip: V::Address,
    headers: &Headers<V>,
    hook: &Hook<'_, impl Tables, impl Writer>,
    now: u32,
) -> Exit {
    let cached = reply.cached_hop();
    let mut number = cached.place();
    // Ages are kept modulo 65,536: after a longer silence the cached one may look young again.
    let is_stale = number == 0 || cached.age(now) >= TRUSTED || reply.is_first_in_span(now);
    let mut asked = 0;
    if !is_stale && let Some(row) = hook.tables.numbered_hop(number) {
        asked = HopCache(row).read().asked;
    }
    if unlikely(is_stale || is_to_answer(asked, hook, now)) {
        let found = look_up::<V>(vip, headers.dst, hook.tables);
        number = if !found.is_some() {
            BY_STACK
        } else if found.is_resolved() {
            number_of(found.ifindex_and_dmac, found.mtu_and_smac, hook.tables)
        } else {
            0
        };
        reply.set_note(CachedHop::new(number, now).0);
        if hook.direction == Direction::Ingress {
            return fitting(Action::Resolve, found, headers, hook);
        }
    }
    // The rows of zero and of [`BY_STACK`] hold no hop.
    let Some(row) = hook.tables.numbered_hop(number) else { return Exit::DEFERRED };
    let cache = HopCache(row);
    leave(Action::Redirect, cache.read(), cache, headers, hook, now)
}

/// Whether XDP has left a packet to tc a moment ago, which is probably this one.
#[inline(always)]
fn is_to_answer(asked: u32, hook: &Hook<'_, impl Tables, impl Writer>, now: u32) -> bool {
    hook.direction == Direction::Ingress && now.wrapping_sub(asked) < ANSWERED_WITHIN
}

/// Leaves by a hop. XDP leaves to tc whatever it cannot redirect at once, and from time to time a packet more.
#[inline(always)]
fn leave<V: IpVersion>(
    action: Action,
    hop: NextHop,
    cache: HopCache,
    headers: &Headers<V>,
    hook: &Hook<'_, impl Tables, impl Writer>,
    now: u32,
) -> Exit {
    let exit = fitting(action, hop, headers, hook);
    if hook.direction != Direction::Early || exit.action == Action::Defer {
        return exit;
    }
    if unlikely(!hop.is_resolved() || !hook.tables.prepare_redirect(hop.ifindex())) {
        return Exit::DEFERRED;
    }
    if unlikely(now.wrapping_sub(hop.asked) >= ASKED_EVERY) {
        cache.write_times(NextHop { asked: now, ..hop });
        return Exit::DEFERRED;
    }
    Exit { action: Action::Redirect, hop }
}

/// The exit by this hop. By the host's stack, counted, if there is no route, the frame is of a VLAN, or the packet is too
/// big; XDP leaves these to tc.
#[inline(always)]
fn fitting<V: IpVersion>(
    action: Action,
    hop: NextHop,
    headers: &Headers<V>,
    hook: &Hook<'_, impl Tables, impl Writer>,
) -> Exit {
    // A tag must not leave by an interface for which it was not meant, and routes are told apart by VLAN interfaces, which
    // only the host's stack knows.
    let is_tagged = ethernet::is_tagged(headers.l3) || hook.tables.is_tagged();
    if unlikely(is_tagged || !hop.is_some()) {
        return by_stack(Event::NextHopByStack, hook);
    }
    // A GSO packet is cut into segments on the way out; those have to fit, not the whole.
    if unlikely(headers.ip_len > hop.mtu() && !segments_fit(headers, hook.tables.gso_size(), hop.mtu())) {
        return by_stack(Event::TooBig, hook);
    }
    Exit { action, hop }
}

#[inline(always)]
fn by_stack(why: Event, hook: &Hook<'_, impl Tables, impl Writer>) -> Exit {
    if hook.direction == Direction::Early {
        return Exit::DEFERRED;
    }
    hook.tables.count(why);
    Exit::TO_STACK
}

#[inline(always)]
fn look_up<V: IpVersion>(src: V::Address, dst: V::Address, tables: &impl Tables) -> NextHop {
    let Some(desk) = desk::<V>(tables) else { return NextHop::NONE };
    // SAFETY: it is this CPU's, and the packet's that the CPU is at.
    let desk = unsafe { &mut *desk };
    desk.query = RouteQuery { src: V::widen(src), dst: V::widen(dst), family: V::FAMILY };
    desk.hop = NextHop::NONE;
    tables.route(&mut desk.query, &mut desk.hop);
    desk.hop
}

/// Keeps a look-up. A neighbour that is not resolved is looked for again by the next packet. A call, for the sake of the
/// caller's stack.
#[inline(never)]
fn keep(cache: HopCache, ifindex_and_dmac: u64, mtu_and_smac: u64, now: u32) {
    let found = NextHop { ifindex_and_dmac, mtu_and_smac, learned: now, asked: cache.read().asked };
    let is_pending = found.is_some() && !found.is_resolved();
    cache.write(if is_pending {
        NextHop { learned: now.wrapping_sub(TRUSTED), asked: found.asked, ..NextHop::NONE }
    } else {
        found
    });
}

/// The number of a hop, found or given to it. Zero says that there is none to give. The row of [`BY_STACK`] is never
/// taken, so it holds no hop. A call, since it is seldom needed.
#[inline(never)]
fn number_of(ifindex_and_dmac: u64, mtu_and_smac: u64, tables: &impl Tables) -> u32 {
    let mixed = (ifindex_and_dmac ^ mtu_and_smac.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = (mixed >> 48) as u32;
    for nth in 0..4 {
        let number = hash ^ nth;
        let Some(row) = tables.numbered_hop(number) else { return 0 };
        if number != 0 && number != BY_STACK && has_or_takes(row, ifindex_and_dmac, mtu_and_smac) {
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

/// Of two CPUs that take a row at once for the same hop, one takes the next row, too: a hop may have two numbers.
#[inline(always)]
fn has_or_takes(row: RawWords, ifindex_and_dmac: u64, mtu_and_smac: u64) -> bool {
    let held = row.load(0);
    if held == 0 && row.exchange(0, 0, ifindex_and_dmac) {
        row.store(1, mtu_and_smac);
        return true;
    }
    held == ifindex_and_dmac && row.load(1) == mtu_and_smac
}
