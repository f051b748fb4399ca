//! Choosing for a new flow: which colour, which backend.
//!
//! Both follow from one reading of the live word and from the five-tuple alone, so that a flow whose
//! entry was lost is sent where it was before.

use crate::{
    flow_ref::BackendRef,
    headers::{Headers, IpVersion},
    lifetime::{is_past, terms},
    tables::Tables,
};
use bg_common::{
    Colour, Event, FILTER_BITS, FULL_SHARE, FlowBackend, LiveFlags, LiveWord, Protocol, Role, ServiceKey, ServiceRow,
    TableSpan, TesterKey,
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

/// Hash of an address in the filter that spares most packets the look-up of a service: cheap, and of no consequence
/// but time if two are the same. Below [`FILTER_BITS`].
#[inline(always)]
pub const fn filter_hash(key: &ServiceKey) -> u32 {
    let [a, b, c, d] = key.addr.0;
    let words = (a ^ c) as u64 | ((b ^ d) as u64) << 32;
    let rest = key.port.0 as u64 | (key.protocol as u64) << 16;
    let sum = words.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ rest.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (sum.wrapping_mul(0x94d0_49bb_1331_11eb) >> (64 - FILTER_BITS.ilog2())) as u32
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
    terms(row.deployment, word, tables).is_some_and(|terms| !is_past(terms.second_chance_until, now))
}

#[inline(always)]
fn is_tester<V: IpVersion>(headers: &Headers<V>, row: &ServiceRow, tables: &impl Tables) -> bool {
    tables.is_tester(&TesterKey {
        deployment: (row.deployment as u32).to_be(),
        family: (V::FAMILY as u32).to_be(),
        addr: V::widen(headers.src),
    })
}

/// A backend that was chosen.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// Its slot.
    pub slot: u32,
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

/// The backend at this hash's place in a Maglev table.
#[inline(always)]
pub fn backend(table: TableSpan, hash: u32, tables: &impl Tables) -> Option<Chosen> {
    let TableSpan { base, len } = table;
    if len == 0 {
        return None;
    }
    let slot = tables.maglev(base.wrapping_add(hash % len))?;
    let backend = BackendRef(tables.backend(slot)?);
    let identity = backend.identity();
    if identity.in_use == 0 {
        return None;
    }
    Some(Chosen { slot, name: FlowBackend::new(slot, identity.epoch), backend })
}
