//! Conditions that take a switch back. Packets that open a flow count, and those that bring the first answer of one, and SYNs that are sent again
//! in vain; and they count only while such conditions are armed. Those that open a flow judge, those of flows without an answer, and
//! every command. A packet of a flow that was answered pays nothing.
//!
//! A flow is unanswered if it had no answer for a second. So flows are kept apart by the tick in which they were opened until they are old
//! enough. A SYN that is sent again tells the same a little earlier, and more exactly: a stack repeats it after a second (RFC 6298), and its answer
//! comes right after that. What has come too late does not count any more.

use crate::{
    flow::{
        memory::{RawWords, Words},
        row::FlowRef,
    },
    hint::rolled,
    world::World,
};
use bg_common::{CachedHop, Conditions, Flow, FlowState, Limit, Trips};
use core::mem::offset_of;

macro_rules! word {
    ($field:ident) => {
        const { offset_of!(Trips, $field) / 8 }
    };
}

/// Of a flow that counts. It stands in the place of the next hop towards the client, which is not known before the first answer.
const COUNTED: u32 = 1 << 21;
/// Of such a flow that was judged, since its SYN was sent again.
const JUDGED: u32 = 1 << 22;
const PLACE_SHIFT: u32 = 16;
const PLACES: u32 = Trips::RING - 1;
const MISSING: u32 = 32;
/// A flow without an answer, as it stands in [`Trips::young`].
const UNANSWERED: u64 = 1 << MISSING | 1;
const BASIS: u64 = bg_common::FULL_SHARE as u64;

/// The mark of a flow that counts and is opened in this tick.
#[inline(always)]
pub const fn mark(tick: u32) -> CachedHop {
    CachedHop(COUNTED | (tick & PLACES) << PLACE_SHIFT)
}

/// Whether a flow counts and has no answer yet.
#[inline(always)]
pub const fn is_awaited(flow: &Flow) -> bool {
    flow.hop.0 & COUNTED != 0 && flow.hop.number() == 0 && !flow.state.has(FlowState::ANSWERED)
}

/// The tick in which such a flow was opened. It is too late for one that goes on sending for longer than [`Trips::RING`] ticks.
#[inline(always)]
const fn opened_in(flow: &Flow) -> u32 {
    flow.last_seen.wrapping_sub(flow.last_seen.wrapping_sub(flow.hop.0 >> PLACE_SHIFT) & PLACES)
}

/// Flows that may count: those of a generation at a colour.
#[derive(Clone, Copy)]
pub struct Group {
    /// Index of their deployment.
    pub deployment: u16,
    /// The generation in which they were opened.
    pub generation: u32,
    /// The colour of their backends.
    pub colour: u8,
}

/// The conditions for which flows count: those of their own generation, or, if a ramp has opened them, of the next one. Both may be there, since
/// the conditions of a confirmed switch stay until they are overwritten. But a ramp leads to another colour than the generation before it.
#[inline(always)]
fn conditions_for<W: World>(flows: Group, world: &W) -> RawWords {
    let mut row = of_generation(flows.generation, flows, world);
    if row.is_none() {
        row = of_generation(flows.generation.wrapping_add(1), flows, world);
    }
    row
}

/// The conditions of a generation, if it switches to the colour of these flows.
#[inline(always)]
fn of_generation<W: World>(generation: u32, flows: Group, world: &W) -> RawWords {
    let Some(row) = world.trips(flows.deployment, generation as usize & 1) else { return RawWords::NONE };
    let head = row.load(0);
    let is_theirs = head as u32 == generation && (head >> 48) as u8 == flows.colour;
    if is_theirs { row } else { RawWords::NONE }
}

/// Whether new flows count.
#[inline(always)]
pub fn count<W: World>(flows: Group, world: &W) -> bool {
    !conditions_for(flows, world).is_none()
}

/// Counts a flow that was opened in this tick.
#[inline(always)]
pub fn opened<W: World>(flow: Group, tick: u32, world: &W) {
    let trips = conditions_for(flow, world);
    if trips.is_none() {
        return;
    }
    if trips.load(word!(opened_since_heard)) == 0 && trips.load(word!(silence)) != 0 {
        trips.store(word!(heard_at), world.boot_ns());
    }
    trips.add(word!(opened_since_heard), 1);
    trips.add(word!(opened), 1);
    young(trips, tick).add(0, UNANSWERED);
}

/// Counts the first answer of a flow that is awaited.
#[inline(always)]
pub fn answered<W: World>(group: Group, flow: &Flow, is_reset: bool, world: &W) {
    let trips = conditions_for(group, world);
    if trips.is_none() {
        return;
    }
    let tick = opened_in(flow);
    if flow.hop.0 & JUDGED == 0 && !is_judged(trips, tick) {
        young(trips, tick).add(0, (1_u64 << MISSING).wrapping_neg());
    }
    if is_reset {
        trips.add(word!(reset), 1);
    }
    if trips.load(word!(opened_since_heard)) != 0 {
        if trips.load(word!(silence)) != 0 {
            trips.store(word!(heard_at), world.boot_ns());
        }
        trips.store(word!(opened_since_heard), 0);
    }
}

/// Judges a flow whose SYN is sent again: it had no answer for a second.
#[inline(always)]
pub fn sent_again<W: World>(group: Group, flow: &mut FlowRef, now: u32, world: &W) {
    let tick = opened_in(flow.flow());
    let trips = conditions_for(group, world);
    // It is too early for a stack that sends again: a copy that the network has made. The first and the last tick count in part.
    let is_copy = trips.is_none() || now.wrapping_sub(tick).wrapping_add(1) < second(trips);
    if is_copy || flow.flow().hop.0 & JUDGED != 0 {
        return;
    }
    // Whoever sets the mark counts.
    flow.cache_hop(CachedHop(flow.flow().hop.0 | JUDGED));
    if flow.flow().hop.0 & JUDGED != 0 && !is_judged(trips, tick) {
        young(trips, tick).add(0, UNANSWERED.wrapping_neg());
        trips.add(word!(judged), 1);
        trips.add(word!(missing), 1);
    }
}

/// The conditions of a generation that hold now.
#[inline(always)]
pub fn holding(trips: impl Words, generation: u32, tick: u32, boot: impl Fn() -> u64) -> Conditions {
    let mut holding = Conditions::NONE;
    if trips.load(0) as u32 != generation {
        return holding;
    }
    // Also if nothing is asked of them: their places are needed again.
    let (judged, missing) = grow_older(trips, tick.wrapping_sub(second(trips)));
    let paused_until = trips.load(word!(paused_until));
    if paused_until != 0 && boot() < paused_until {
        return holding;
    }
    if is_over(limit(trips.load(word!(resets))), trips.load(word!(reset)), trips.load(word!(opened))) {
        holding = holding.with(Conditions::RESETS);
    }
    if is_over(limit(trips.load(word!(unanswered))), missing, judged) {
        holding = holding.with(Conditions::UNANSWERED);
    }
    let silence = trips.load(word!(silence));
    if silence != 0
        && trips.load(word!(opened_since_heard)) >= Trips::LEAST_UNHEARD
        && boot().saturating_sub(trips.load(word!(heard_at))) as i64 >= silence as i64
    {
        holding = holding.with(Conditions::SILENCE);
    }
    holding
}

/// Whether `some` of `all` flows are more than a limit allows.
#[inline(always)]
pub const fn is_over(limit: Limit, some: u64, all: u64) -> bool {
    let (share, least) = (limit.share as u64, limit.least as u64);
    least != 0 && all >= least && some as i64 > 0 && some.wrapping_mul(BASIS) > share.wrapping_mul(all)
}

#[inline(always)]
const fn limit(word: u64) -> Limit {
    Limit { share: word as u32, least: (word >> 32) as u32 }
}

/// Judges the flows that were opened before a tick. Returns how many are judged now, and how many of them had no answer. They are added up
/// here, because the program that explains stores nothing.
#[inline(always)]
fn grow_older(trips: impl Words, before: u32) -> (u64, u64) {
    let (mut judged, mut missing) = (trips.load(word!(judged)), trips.load(word!(missing)));
    let mut tick = trips.load(word!(unjudged_tick)) as u32;
    for _ in rolled(Trips::RING) {
        if before.wrapping_sub(tick) as i32 <= 0 {
            return (judged, missing);
        }
        if trips.exchange(word!(unjudged_tick), tick.into(), tick.wrapping_add(1).into()) {
            let place = young(trips, tick);
            let flows = place.load(0);
            // An answer that comes at the same moment may leave less than nothing, and is made good later.
            let all = i64::from(flows as i32);
            let (all, unanswered) = (all as u64, ((flows as i64).wrapping_sub(all) >> MISSING) as u64);
            if flows != 0 {
                place.add(0, flows.wrapping_neg());
                // In this order the share is never too great.
                trips.add(word!(judged), all);
                trips.add(word!(missing), unanswered);
            }
            (judged, missing) = (judged.wrapping_add(all), missing.wrapping_add(unanswered));
        }
        // Or as far as another CPU has come.
        tick = tick.wrapping_add(1);
    }
    // Nothing was opened for so long that all places are empty.
    if before.wrapping_sub(tick) as i32 > 0 {
        trips.exchange(word!(unjudged_tick), tick.into(), before.into());
    }
    (judged, missing)
}

#[inline(always)]
fn is_judged(trips: impl Words, tick: u32) -> bool {
    (trips.load(word!(unjudged_tick)) as u32).wrapping_sub(tick) as i32 > 0
}

#[inline(always)]
fn second(trips: impl Words) -> u32 {
    (trips.load(0) >> 32) as u32 & 0xffff
}

/// The place of the flows that were opened in a tick.
#[inline(always)]
fn young<W: Words>(trips: W, tick: u32) -> W {
    trips.from(word!(young) + (tick & PLACES) as usize)
}
