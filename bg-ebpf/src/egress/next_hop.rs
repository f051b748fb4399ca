//! The next hop: a route look-up, cached.
//!
//! For a backend the cache is its row. For a client it is its flow's row, which has room for a number only: next
//! hops towards clients are few, and numbered. So neither a MAC nor a route is configured by hand, and a packet of
//! an open flow pays nothing for it.
//!
//! A redirect to a MAC address does not pass the kernel's neighbour code, so the kernel would take the neighbour for unused
//! and never ask whether the address is still right. Therefore the packet that looks the route up leaves by
//! [`Action::Resolve`] in tc, and XDP leaves one packet of each hop to tc every [`ASKED_EVERY`] ticks. The same action
//! finds neighbours that nobody has talked to yet, so that such packets do not need the host's stack.

use crate::{
    flow::{
        memory::{RawWords, Words as _},
        row::FlowRef,
    },
    hint::unlikely,
    hook::{Direction, Hook},
    rows::{BackendRef, HopCache},
    step::Step,
    verdict::{Action, Exit},
    wire::{
        ethernet,
        headers::{Headers, IpVersion},
        icmp::IcmpError,
    },
    world::{EXPLAINS, World, note},
};
use bg_common::{Addr, CachedHop, Event, Family, MAX_NEXT_HOPS, NextHop, Protocol};

/// Ticks that a look-up is trusted for: a quarter of a second to three, by the kernel's tick rate.
const TRUSTED: u32 = 4;

/// Ticks after which XDP leaves a packet to tc again.
const ASKED_EVERY: u32 = 4;

/// Ticks within which tc answers such a packet.
const ANSWERED_WITHIN: u32 = 2;

/// The number that says: the host's stack has to find the way.
const BY_STACK: u32 = MAX_NEXT_HOPS - 1;

/// The way to a backend.
#[inline(always)]
pub fn to_backend<V: IpVersion>(backend: BackendRef, headers: &Headers<V>, hook: &Hook<'_, impl World>) -> Exit {
    let cache = backend.next_hop();
    let mut hop = cache.read();
    let mut action = Action::Redirect;
    if unlikely(hook.now.wrapping_sub(hop.learned) >= TRUSTED || is_to_answer(hop.asked, hook)) {
        hop = look_up(V::widen(headers.src), V::widen(backend.address::<V>()), V::FAMILY, hook.world);
        keep(cache, hop.ifindex_and_dmac, hop.mtu_and_smac, hook.now);
        hop.asked = cache.read().asked;
        action = Action::Resolve;
    } else {
        note_cached(hop, hook.world);
    }
    leave(action, hop, cache, headers, hook)
}

/// The way to a backend that replies to clients directly, for a packet from `src`. [`NextHop::NONE`]: there is none. A backend that
/// `must_be_neighbour` is not reached by a gateway, which would take the packet for its own, or send it back. Whether the packet fits, and
/// whether XDP can send it, is to be asked yet: [`leave_direct`].
#[inline(always)]
pub fn to_direct(backend: BackendRef, src: Addr, must_be_neighbour: bool, hook: &Hook<'_, impl World>) -> Exit {
    let cache = backend.next_hop();
    let mut hop = cache.read();
    let mut action = Action::Redirect;
    if unlikely(hook.now.wrapping_sub(hop.learned) >= TRUSTED || is_to_answer(hop.asked, hook)) {
        let dst = backend.whole_address();
        let family = if backend.family() == Family::V6 as u8 { Family::V6 } else { Family::V4 };
        hop = look_up(src, dst, family, hook.world);
        if must_be_neighbour && !is_found_at(dst, hook.world) {
            hop = NextHop::NONE;
        }
        keep(cache, hop.ifindex_and_dmac, hop.mtu_and_smac, hook.now);
        hop.asked = cache.read().asked;
        action = Action::Resolve;
    } else {
        note_cached(hop, hook.world);
    }
    Exit { action, hop }
}

/// Whether the next hop that was just looked up has this address.
#[inline(always)]
fn is_found_at(dst: Addr, world: &impl World) -> bool {
    let Some(call) = world.route_call() else { return false };
    // SAFETY: this CPU's memory, for the packet that it processes.
    let Addr([a, b, c, d]) = unsafe { (*call).dst };
    let [e, f, g, h] = dst.0;
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
}

/// The exit that [`to_direct`] has found. XDP leaves to tc what it cannot redirect at once, and from time to time a packet more.
#[inline(always)]
pub fn leave_direct(exit: Exit, backend: BackendRef, hook: &Hook<'_, impl World>) -> Exit {
    if hook.direction != Direction::Early { exit } else { leave_early(exit.hop, backend.next_hop(), hook) }
}

/// The way to the client of a reply that will bear the source `vip`.
#[inline(always)]
pub fn to_client<V: IpVersion>(
    flow: &mut FlowRef,
    vip: V::Address,
    headers: &Headers<V>,
    hook: &Hook<'_, impl World>,
) -> Exit {
    let cached = flow.flow().hop;
    let mut number = cached.number();
    // Ages are kept modulo 65,536 ticks. A flow without a reply for so long is the only one whose hop could look young again.
    let is_stale = number == 0 || cached.age(hook.now) >= TRUSTED;
    let mut asked = 0;
    if hook.direction == Direction::Ingress
        && !is_stale
        && let Some(row) = hook.world.numbered_hop(number)
    {
        asked = HopCache(row).read().asked;
    }
    if unlikely(is_stale || is_to_answer(asked, hook)) {
        let found = look_up(V::widen(vip), V::widen(headers.dst), V::FAMILY, hook.world);
        number = if !found.is_some() {
            BY_STACK
        } else if found.is_resolved() {
            hook.world.hop_number(found.ifindex_and_dmac, found.mtu_and_smac)
        } else {
            0
        };
        flow.cache_hop(CachedHop::new(number, hook.now));
        if hook.direction == Direction::Ingress {
            return fitting(Action::Resolve, found, headers, hook);
        }
    }
    // The rows of zero and of [`BY_STACK`] hold no hop.
    let Some(row) = hook.world.numbered_hop(number) else { return Exit::DEFERRED };
    let cache = HopCache(row);
    if EXPLAINS && !is_stale {
        note_cached(cache.read(), hook.world);
    }
    leave(Action::Redirect, cache.read(), cache, headers, hook)
}

#[inline(always)]
fn note_cached(NextHop { ifindex_and_dmac, mtu_and_smac, .. }: NextHop, world: &impl World) {
    note!(world, Step::CachedHop { ifindex_and_dmac, mtu_and_smac });
}

/// The way of an ICMP error, for which no next hop is cached: there are few.
#[inline(always)]
pub fn of_error(family: Family, src: &Addr, dst: &Addr, error: &IcmpError, hook: &Hook<'_, impl World>) -> Exit {
    let hop = look_up(*src, *dst, family, hook.world);
    if must_pass_stack(hop, error.l3.into(), hook.world) {
        return by_stack(Event::NextHopByStack, hook);
    }
    if error.ip_len > hop.mtu() {
        return by_stack(Event::TooBig, hook);
    }
    if hook.direction != Direction::Early {
        return Exit { action: Action::Resolve, hop };
    }
    if !hop.is_resolved() || !hook.world.prepare_redirect(hop.ifindex()) {
        return Exit::DEFERRED;
    }
    Exit { action: Action::Redirect, hop }
}

/// Whether XDP has left a packet to tc a moment ago, which is probably this one.
#[inline(always)]
fn is_to_answer(asked: u32, hook: &Hook<'_, impl World>) -> bool {
    hook.direction == Direction::Ingress && hook.now.wrapping_sub(asked) < ANSWERED_WITHIN
}

/// Leaves by a hop. XDP leaves to tc whatever it cannot redirect at once, and from time to time a packet more.
#[inline(always)]
fn leave<V: IpVersion>(
    action: Action,
    hop: NextHop,
    cache: HopCache,
    headers: &Headers<V>,
    hook: &Hook<'_, impl World>,
) -> Exit {
    let exit = fitting(action, hop, headers, hook);
    if hook.direction != Direction::Early || exit.action == Action::Defer {
        exit
    } else {
        leave_early(hop, cache, hook)
    }
}

/// Leaves XDP by a hop, or leaves the packet to tc.
#[inline(always)]
fn leave_early(hop: NextHop, cache: HopCache, hook: &Hook<'_, impl World>) -> Exit {
    if unlikely(!hop.is_resolved() || !hook.world.prepare_redirect(hop.ifindex())) {
        note!(hook.world, Step::NoRedirect { ifindex: hop.ifindex().into() });
        return Exit::DEFERRED;
    }
    if unlikely(hook.now.wrapping_sub(hop.asked) >= ASKED_EVERY) {
        note!(hook.world, Step::Asks {});
        cache.write_times(NextHop { asked: hook.now, ..hop });
        return Exit::DEFERRED;
    }
    Exit { action: Action::Redirect, hop }
}

/// The exit by this hop. By the host's stack, counted, if there is no route, the frame is of a VLAN, or the packet is too
/// big; XDP leaves these to tc.
#[inline(always)]
fn fitting<V: IpVersion>(action: Action, hop: NextHop, headers: &Headers<V>, hook: &Hook<'_, impl World>) -> Exit {
    if unlikely(must_pass_stack(hop, headers.l3, hook.world)) {
        return by_stack(Event::NextHopByStack, hook);
    }
    // A GSO packet is cut into segments on the way out; those have to fit, not the whole.
    if unlikely(headers.ip_len > hop.mtu() && !segments_fit(headers, hook.world.gso_size(), hop.mtu())) {
        return by_stack(Event::TooBig, hook);
    }
    Exit { action, hop }
}

/// Whether only the host's stack knows the way of a frame whose IP header stands at `l3`. A tag must not leave by an interface for
/// which it was not meant, and routes are told apart by VLAN interfaces, which only the stack knows.
#[inline(always)]
fn must_pass_stack(hop: NextHop, l3: usize, world: &impl World) -> bool {
    ethernet::is_tagged(l3) || world.is_tagged() || !hop.is_some()
}

#[inline(always)]
fn by_stack(why: Event, hook: &Hook<'_, impl World>) -> Exit {
    note!(hook.world, Step::ByStack { event: why as u64 });
    if hook.direction == Direction::Early {
        return Exit::DEFERRED;
    }
    hook.world.count(why);
    Exit::TO_STACK
}

/// The way to `dst`, by the kernel's routes.
#[inline(always)]
pub fn look_up(src: Addr, dst: Addr, family: Family, world: &impl World) -> NextHop {
    let Some(call) = world.route_call() else { return NextHop::NONE };
    // SAFETY: this CPU's memory, for the packet that it processes.
    let call = unsafe { &mut *call };
    // Field by field: as a whole the compiler would copy it byte by byte.
    call.src = src;
    call.dst = dst;
    call.family = family;
    call.hop = NextHop::NONE;
    world.route(call);
    if EXPLAINS {
        let NextHop { ifindex_and_dmac, mtu_and_smac, .. } = call.hop;
        world.note(Step::Route { ifindex_and_dmac, mtu_and_smac });
    }
    call.hop
}

/// Caches a look-up. A neighbour that is not resolved is looked for again by the next packet. A call, for the sake of the
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
/// taken, so it holds no hop. A world makes it a call, since it is seldom needed.
#[inline(always)]
pub fn number_of(ifindex_and_dmac: u64, mtu_and_smac: u64, world: &impl World) -> u32 {
    let mixed = (ifindex_and_dmac ^ mtu_and_smac.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = (mixed >> 48) as u32;
    for nth in 0..4 {
        let number = hash ^ nth;
        let Some(row) = world.numbered_hop(number) else { return 0 };
        if number != 0 && number != BY_STACK && has_or_takes(row, ifindex_and_dmac, mtu_and_smac) {
            return number;
        }
    }
    0
}

/// Whether a GSO packet's segments fit. They have a transport header without options. Options count towards the segment
/// too, but a sender keeps segments and options together below its own MTU, so the difference matters on no path
/// that works. It does where outer headers are added: see `path::direct`.
#[inline(always)]
fn segments_fit<V: IpVersion>(headers: &Headers<V>, gso_size: u32, mtu: u32) -> bool {
    let transport_header = match headers.protocol() {
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
