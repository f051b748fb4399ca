//! Which backend a new flow gets: an entry of the colour's Maglev table.

use crate::{rows::BackendRef, world::World};
use bg_common::{Colour, FlowBackend, ServiceRow, TableSpan};

/// A backend that was chosen.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// Its slot in `backends`, and the epoch of it that the flow will remember.
    pub name: FlowBackend,
    /// The row.
    pub backend: BackendRef,
}

/// Where the Maglev table of a colour stands.
#[inline(always)]
pub const fn table(row: &ServiceRow, colour: Colour) -> TableSpan {
    match colour {
        Colour::Blue => row.tables[0],
        Colour::Green => row.tables[1],
    }
}

/// The backend at this hash's entry of a Maglev table.
#[inline(always)]
pub fn at(table: TableSpan, hash: u32, world: &impl World) -> Option<Chosen> {
    let TableSpan { base, len } = table;
    if len == 0 {
        return None;
    }
    let slot = world.maglev(base.wrapping_add(hash % len))?;
    let backend = BackendRef(world.backend(slot)?);
    let identity = backend.identity();
    if identity.in_use == 0 {
        return None;
    }
    Some(Chosen { name: FlowBackend::new(slot, identity.epoch), backend })
}
