//! Choosing for a new flow: which colour, which backend.
//!
//! Both follow from one reading of the live word and from the five-tuple alone, so that a flow whose
//! entry was lost is sent where it was before.

use crate::{
    flow_ref::BackendRef,
    headers::{Headers, IpVersion},
    lifetime::is_past,
    tables::Tables,
};
use bg_common::{
    Colour, Event, FULL_SHARE, LiveFlags, LiveWord, Protocol, Role, ServiceKey, ServiceRow, TableSpan, TesterKey,
};

/// Where a new flow's colour comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ColourChoice {
    /// The colour.
    pub colour: Colour,
    /// The flow is a tester's or came by the preview address: it must never be on the live colour.
    pub idle_only: bool,
    /// Generation that the flow counts as opened in: the word's, or the one before for a flow that was open
    /// before the switch.
    pub generation: u32,
}

/// The key under which the packet's destination would be a virtual address.
#[inline(always)]
pub fn service_key<V: IpVersion>(headers: &Headers<V>) -> ServiceKey {
    ServiceKey {
        addr: V::widen(headers.dst),
        port: headers.dst_port(),
        protocol: headers.protocol as u8,
        family: V::FAMILY as u8,
    }
}

/// Chooses the colour of a flow that has no entry.
#[inline(always)]
pub fn colour<V: IpVersion>(
    headers: &Headers<V>,
    hash: u32,
    row: &ServiceRow,
    word: LiveWord,
    tables: &impl Tables,
    now: u32,
) -> ColourChoice {
    if row.role == Role::Preview as u8 || (row.has_testers != 0 && is_tester(headers, row, tables)) {
        return ColourChoice { colour: word.live().other(), idle_only: true, generation: word.generation() };
    }
    // Second chance: while a drain lasts, a segment that opens nothing belongs to a connection from
    // before the switch whose entry was lost.
    let of_open_connection = headers.protocol == Protocol::Tcp && !headers.opens_connection();
    if of_open_connection && word.flags().has(LiveFlags::DRAINING) && has_second_chance(row, word, tables, now) {
        tables.count(Event::SecondChance);
        let generation = word.generation().wrapping_sub(1);
        return ColourChoice { colour: of_share(word.previous_share(), hash), idle_only: false, generation };
    }
    ColourChoice { colour: of_share(word.target_share(), hash), idle_only: false, generation: word.generation() }
}

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
fn has_second_chance(row: &ServiceRow, word: LiveWord, tables: &impl Tables, now: u32) -> bool {
    tables.terms(row.deployment, word.terms_slot()).is_some_and(|terms| !is_past(terms.second_chance_until, now))
}

#[inline(always)]
fn is_tester<V: IpVersion>(headers: &Headers<V>, row: &ServiceRow, tables: &impl Tables) -> bool {
    tables.is_tester(&TesterKey {
        deployment: (row.deployment as u32).to_be(),
        family: (V::FAMILY as u32).to_be(),
        addr: V::widen(headers.src),
    })
}

/// A backend that was chosen: its slot, the epoch of it that the flow will remember, its row.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// Slot in `backends`.
    pub slot: u32,
    /// Epoch of the slot.
    pub epoch: u32,
    /// The row.
    pub backend: BackendRef,
}

/// The backend at this hash's place in the colour's Maglev table.
#[inline(always)]
pub fn backend(row: &ServiceRow, colour: Colour, hash: u32, tables: &impl Tables) -> Result<Chosen, Event> {
    let TableSpan { base, len } = match colour {
        Colour::Blue => row.tables[0],
        Colour::Green => row.tables[1],
    };
    if len == 0 {
        return Err(Event::MissingRow);
    }
    let slot = tables.maglev(base.wrapping_add(hash % len)).ok_or(Event::MissingRow)?;
    let backend = BackendRef(tables.backend(slot).ok_or(Event::MissingRow)?);
    let identity = backend.identity();
    if identity.in_use == 0 {
        return Err(Event::MissingRow);
    }
    Ok(Chosen { slot, epoch: identity.epoch, backend })
}
