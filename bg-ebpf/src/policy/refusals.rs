//! Which connections without a row a colour has refused while a drain lasts.
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
    /// What it is remembered by. It is never zero.
    #[inline(always)]
    fn name(&self, world: &impl World) -> u32 {
        let key = FlowKey6 { client: self.client.address, reserved: 0, port: self.client.port, vip: 0 };
        // A later drain asks again.
        let drain = self.word.generation().wrapping_mul(2) | self.colour & 1;
        (key.hash(self.vip as u16, world.flows6()) ^ drain.wrapping_mul(0x85eb_ca6b)) | 1
    }

    /// Remembers it.
    #[inline(always)]
    pub fn remember(&self, world: &impl World) {
        let name = self.name(world);
        let row = row_of(name);
        let names = world.refusals(row);
        if !holds(names, name) {
            world.set_refusals(row, names << 32 | u64::from(name));
        }
    }

    #[inline(always)]
    fn is_remembered(&self, world: &impl World) -> bool {
        let name = self.name(world);
        holds(world.refusals(row_of(name)), name)
    }
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
    let by = |colour: Colour| Refusal { client: *client, vip: vip.into(), word, colour: colour as u32 };
    if !by(live.colour).is_remembered(world) {
        return (live, false);
    }
    if by(live.colour.other()).is_remembered(world) {
        return (live, true);
    }
    (second_chance(live.colour, deployment, word, world, now).unwrap_or(live), false)
}
