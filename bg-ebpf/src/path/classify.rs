//! What a packet can be, before the flow table is touched: is its destination a virtual address, is its source a backend?
//! If neither, it costs two look-ups in small tables.

use crate::{
    hint::{rolled, unlikely},
    rows::{BackendRef, VipRef},
    wire::headers::IpVersion,
    world::World,
};
use bg_common::{Be16, MAX_CHAIN, Protocol, endpoint_hash};

/// A row that an index has found. All fields have a value in any case: of what a missing row would leave undefined, the
/// compiler makes code that the verifier refuses.
#[derive(Clone, Copy)]
pub struct Found {
    /// Whether there is one.
    pub is_some: bool,
    /// Its number.
    pub number: u32,
    /// See [`bg_common::Vip::salt`].
    pub salt: u16,
    /// See [`bg_common::Vip::is_mirrored`]; never of a backend.
    pub is_mirrored: bool,
    /// The link to the next row of its list.
    pub next: u32,
}

impl Found {
    /// None.
    pub const NONE: Self = Self { is_some: false, number: 0, salt: 0, is_mirrored: false, next: 0 };
}

/// The row of `vips` with this address, port and protocol.
#[inline(always)]
pub fn vip_at<V: IpVersion>(address: V::Address, port: Be16, protocol: Protocol, world: &impl World) -> Found {
    let head = world.vip_head(endpoint_hash(&V::widen(address), port, protocol as u8));
    first_of(head, |number| {
        let Some(row) = world.vip(number).map(VipRef) else { return Found::NONE };
        Found {
            is_some: row.is_at::<V>(address, port, protocol),
            number,
            salt: row.salt(),
            is_mirrored: row.is_mirrored(),
            next: row.next(),
        }
    })
}

/// A row of `backends` with this address, port and protocol. Of several, which are of different services or colours, one that
/// is in the index.
#[inline(always)]
pub fn backend_at<V: IpVersion>(address: V::Address, port: Be16, protocol: Protocol, world: &impl World) -> Found {
    let head = world.backend_head(endpoint_hash(&V::widen(address), port, protocol as u8));
    first_of(head, |number| {
        let Some(row) = world.backend(number).map(BackendRef) else { return Found::NONE };
        Found {
            is_some: row.is_at::<V>(address, port, protocol),
            number,
            salt: row.salt(),
            is_mirrored: false,
            next: row.next(),
        }
    })
}

/// The first row of a list that is what is looked for. `row` reads a row by its number. Most lists have one row.
#[inline(always)]
fn first_of(head: u32, row: impl Fn(u32) -> Found) -> Found {
    if head == 0 {
        return Found::NONE;
    }
    let mut found = row(head.wrapping_sub(1));
    if !unlikely(!found.is_some) {
        return found;
    }
    for _ in rolled(MAX_CHAIN - 1) {
        if found.next == 0 {
            break;
        }
        found = row(found.next.wrapping_sub(1));
        if found.is_some {
            return found;
        }
    }
    Found::NONE
}
