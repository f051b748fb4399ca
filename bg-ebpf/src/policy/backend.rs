//! Which backend a new flow gets: an entry of the colour's Maglev table.

use crate::{
    flow::row::FlowRef,
    rows::BackendRef,
    step::Step,
    wire::headers::IpVersion,
    world::{World, note},
};
use bg_common::{Be16, Colour, FlowBackend, NO_BACKEND, Protocol, ServiceRow, TableSpan};

/// A backend that was chosen.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// Its slot in `backends`, and the epoch of it that the flow will remember.
    pub name: FlowBackend,
    /// The row.
    pub backend: BackendRef,
}

/// The backend of a flow, if it is still there.
#[inline(always)]
pub fn of_flow(flow: &FlowRef, world: &impl World) -> Option<BackendRef> {
    let backend = BackendRef(world.backend(flow.backend().slot())?);
    backend.is(flow.backend()).then_some(backend)
}

/// The backend of a flow, if it is still there and has this address, port and protocol.
#[inline(always)]
pub fn of_flow_at<V: IpVersion>(
    flow: &FlowRef,
    address: V::Address,
    port: Be16,
    protocol: Protocol,
    world: &impl World,
) -> Option<BackendRef> {
    let backend = BackendRef(world.backend(flow.backend().slot())?);
    // At once: in two steps, replies cost a twelfth more.
    let is_it = backend.is(flow.backend()) && backend.is_at::<V>(address, port, protocol);
    is_it.then_some(backend)
}

/// Where the Maglev table of a colour stands.
#[inline(always)]
pub const fn table(row: &ServiceRow, colour: Colour) -> TableSpan {
    match colour {
        Colour::Blue => row.tables[0],
        Colour::Green => row.tables[1],
    }
}

/// The backend at this hash's entry of a Maglev table, as a step of the packet's way.
#[inline(always)]
pub fn at(table: TableSpan, hash: u32, world: &impl World) -> Option<Chosen> {
    let chosen = entry(table, hash, world)?;
    note!(
        world,
        Step::Backend { slot: chosen.name.slot().into(), entry: (hash % table.len).into(), len: table.len.into() }
    );
    Some(chosen)
}

/// Whether the flow at this hash gets no backend because all of them are down, and are to get none then.
#[inline(always)]
pub fn is_refused(table: TableSpan, hash: u32, world: &impl World) -> bool {
    let TableSpan { base, len } = table;
    len != 0 && world.maglev(base.wrapping_add(hash % len)) == Some(NO_BACKEND)
}

/// The backend at this hash's entry of a Maglev table.
#[inline(always)]
pub fn entry(table: TableSpan, hash: u32, world: &impl World) -> Option<Chosen> {
    let TableSpan { base, len } = table;
    if len == 0 {
        return None;
    }
    let entry = hash % len;
    let slot = world.maglev(base.wrapping_add(entry))?;
    let backend = BackendRef(world.backend(slot)?);
    let identity = backend.identity();
    if identity.in_use == 0 {
        return None;
    }
    Some(Chosen { name: FlowBackend::new(slot, identity.epoch), backend })
}
