//! Which connections without a row a colour has refused while they may be of the other one.
//!
//! A backend refuses a segment of a connection that it does not know, and the connection's next segment goes to the other colour. The row of the
//! connection says so. But a table that is too small has lost the row again when that segment comes, the connection would go to the colour
//! that has refused it, and so on until its client gives up. So the refusal itself is remembered, in four bytes instead of a row, for as
//! long as no two younger ones need the place. Whoever floods this memory with forged segments takes it away, and no row of an open flow.

use super::colour::{Client, ColourChoice, second_chance};
use crate::{flow::key::Key as _, world::World};
use bg_common::{Colour, FlowKey6, LiveWord, REFUSAL_ROWS};

/// A refusal, as a call of the slow path.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Refusal {
    /// The client's end.
    pub client: Client,
    /// Row of `vips`.
    pub vip: u32,
    /// The live word in force.
    pub word: LiveWord,
    /// The colour that has refused the connection.
    pub colour: u32,
}

impl Refusal {
    /// Remembers it.
    #[inline(always)]
    pub fn remember(&self, world: &impl World) {
        let name = name(hash_of(&self.client, self.vip as u16, world), self.word, self.colour);
        let row = row_of(name);
        let names = world.refusals(row);
        if !holds(names, name) {
            world.set_refusals(row, names << 32 | u64::from(name));
        }
    }
}

/// The hash of a client's end and a virtual address.
#[inline(always)]
fn hash_of(client: &Client, vip: u16, world: &impl World) -> u32 {
    FlowKey6 { client: client.address, reserved: 0, port: client.port, vip: 0 }.hash(vip, world.flows6())
}

/// What a refusal is remembered by. It is never zero, and another one in the next drain.
#[inline(always)]
const fn name(hash: u32, word: LiveWord, colour: u32) -> u32 {
    let drain = word.generation().wrapping_mul(2) | colour & 1;
    (hash ^ drain.wrapping_mul(0x85eb_ca6b)) | 1
}

/// The row of a name. The upper bits of the product depend on all bits of the name.
#[inline(always)]
const fn row_of(name: u32) -> u32 {
    const { assert!(REFUSAL_ROWS.is_power_of_two()) };
    name.wrapping_mul(0x9e37_79b9) >> (32 - REFUSAL_ROWS.ilog2())
}

/// Whether a row holds a name. It has room for two.
#[inline(always)]
const fn holds(names: u64, name: u32) -> bool {
    names as u32 == name || (names >> 32) as u32 == name
}

/// Whether this colour has refused the connection of that hash.
#[inline(always)]
fn is_remembered(hash: u32, colour: Colour, word: LiveWord, world: &impl World) -> bool {
    let name = name(hash, word, colour as u32);
    holds(world.refusals(row_of(name)), name)
}

/// The other colour of a connection without a row that has got one whose backends are all down, unless the other one has refused it.
#[inline(always)]
pub fn instead_of_down(
    down: Colour,
    client: &Client,
    vip: u16,
    deployment: u16,
    word: LiveWord,
    world: &impl World,
    now: u32,
) -> Option<ColourChoice> {
    if is_remembered(hash_of(client, vip, world), down.other(), word, world) {
        return None;
    }
    second_chance(down, deployment, word, world, now)
}

/// The choice for a connection without a row, which `live` has got for now, and whether both colours have refused it: then its client
/// has to hear so.
#[inline(always)]
pub fn instead(
    live: ColourChoice,
    client: &Client,
    vip: u16,
    deployment: u16,
    word: LiveWord,
    world: &impl World,
    now: u32,
) -> (ColourChoice, bool) {
    let hash = hash_of(client, vip, world);
    let is_remembered = |colour| is_remembered(hash, colour, word, world);
    if !is_remembered(live.colour) {
        return (live, false);
    }
    if is_remembered(live.colour.other()) {
        return (live, true);
    }
    (second_chance(live.colour, deployment, word, world, now).unwrap_or(live), false)
}
