//! Which colour a new flow gets. It follows from one reading of the live word and from the five-tuple alone, so that a flow
//! whose row was lost is sent where it was before.

use crate::{
    flow::key::Key as _,
    policy::lifetime::ended_by_switch,
    step::Step,
    world::{World, note},
};
use bg_common::{
    Addr, Be16, Colour, FULL_SHARE, Family, Flow, FlowKey6, LiveFlags, LiveWord, Role, ServiceRow, TesterKey,
};

/// The client's end of a flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Client {
    /// Its address.
    pub address: Addr,
    /// Its port.
    pub port: Be16,
    /// Family of the address.
    pub family: Family,
}

/// The colour of a new flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ColourChoice {
    /// The colour.
    pub colour: Colour,
    /// The flow is a tester's or came by the preview address: it must never be on the live colour.
    pub idle_only: bool,
    /// Generation that the flow counts as opened in.
    pub generation: u32,
}

/// Chooses the colour of a flow that has no row.
#[inline(always)]
pub fn choose(client: &Client, hash: u32, row: &ServiceRow, word: LiveWord, world: &impl World) -> ColourChoice {
    let generation = word.generation();
    if row.role == Role::Preview as u8 || (row.has_testers != 0 && is_tester(client, row, world)) {
        note!(world, idle_only(row, word));
        return ColourChoice { colour: word.live().other(), idle_only: true, generation };
    }
    let colour = match word.target_share() {
        0 => Colour::Blue,
        FULL_SHARE => Colour::Green,
        share => of_share(share, divided(client, hash, row.deployment, world)),
    };
    note!(world, Step::Live { deployment: row.deployment.into(), word: word.0, colour: colour as u64 });
    ColourChoice { colour, idle_only: false, generation }
}

/// Why a flow is confined to the idle colour.
#[inline(always)]
fn idle_only(row: &ServiceRow, word: LiveWord) -> Step {
    let (deployment, word) = (row.deployment.into(), word.0);
    if row.role == Role::Preview as u8 { Step::Preview { deployment, word } } else { Step::Tester { deployment, word } }
}

/// The hash by which a share divides: that of the flow, or of its client, if all flows of a client are to go to one colour.
#[inline(always)]
fn divided(client: &Client, flow_hash: u32, deployment: u16, world: &impl World) -> u32 {
    match world.deployment(deployment) {
        Some(row) if row.divides_clients() => {
            let length = match client.family {
                Family::V4 => row.client_prefix[0],
                Family::V6 => row.client_prefix[1],
            };
            client_hash(prefix(client.address, length), deployment, world)
        }
        _ => flow_hash,
    }
}

/// The first bits of an address.
#[inline(always)]
fn prefix(address: Addr, length: u8) -> Addr {
    let word = |at: usize| {
        let bits = (length as u32).saturating_sub(32 * at as u32);
        // In 64 bits, a shift by 32 is one too.
        let mask = if bits >= 32 { u32::MAX } else { !((1_u64 << (32 - bits)) - 1) as u32 };
        address.0[at] & mask.to_be()
    };
    Addr([word(0), word(1), word(2), word(3)])
}

/// The hash of a client. Its keys are drawn once for an instance, so a client stays where it is for as long as the instance lives, and
/// a growing share only moves clients to green.
#[inline(always)]
fn client_hash(client: Addr, deployment: u16, world: &impl World) -> u32 {
    FlowKey6 { client, reserved: 0, port: Be16(0), vip: 0 }.hash(deployment, world.flows6())
}

/// Whether a connection without a row may be one of the colour that it does not get: a drain has left that colour connections, or a share
/// divides new flows, which may have been another one when the connection was opened. A ramp moves it all the time, and is no drain.
#[inline(always)]
pub fn may_be_of_other(word: LiveWord) -> bool {
    word.flags().has(LiveFlags::DRAINING) || !matches!(word.target_share(), 0 | FULL_SHARE)
}

/// The other colour of a connection that was picked up in mid-stream and that its colour has refused, if it may be one of
/// that colour. It counts as opened before the switch if that colour gets no new flows any more.
#[inline(always)]
pub fn second_chance(
    refused_by: Colour,
    deployment: u16,
    word: LiveWord,
    world: &impl World,
    now: u32,
) -> Option<ColourChoice> {
    if !may_be_of_other(word) {
        return None;
    }
    let colour = refused_by.other();
    let gets_no_new_flows = word.target_share() == refused_by.full_share();
    let generation = word.generation().wrapping_sub(gets_no_new_flows.into());
    let flow = Flow { generation, ..EMPTY };
    if ended_by_switch(&flow, colour, deployment, word, world, now) {
        return None;
    }
    note!(world, Step::SecondChance { colour: colour as u64 });
    Some(ColourChoice { colour, idle_only: false, generation })
}

/// A flow of which nothing is known.
const EMPTY: Flow = Flow::from_words([0; 3]);

/// The colour that a share of green flows gives to this hash. Uses the upper half of the hash; the
/// table entry follows from its remainder.
#[inline(always)]
fn of_share(share: u16, hash: u32) -> Colour {
    if share == 0 {
        return Colour::Blue;
    }
    let basis_point = ((hash >> 16) * FULL_SHARE as u32) >> 16;
    if basis_point < share as u32 { Colour::Green } else { Colour::Blue }
}

#[inline(always)]
fn is_tester(client: &Client, row: &ServiceRow, world: &impl World) -> bool {
    world.is_tester(&TesterKey {
        deployment: (row.deployment as u32).to_be(),
        family: (client.family as u32).to_be(),
        addr: client.address,
    })
}
