//! What a packet can be, before the flow table is touched: is its destination a virtual address, is its source a backend?
//! If neither, it costs two look-ups in small tables.

use crate::{
    hint::rolled,
    rows::{BackendRef, VipRef},
    wire::headers::IpVersion,
    world::World,
};
use bg_common::{Be16, MAX_CHAIN, Protocol, endpoint_hash};

/// A virtual address that a packet was sent to.
#[derive(Clone, Copy)]
pub struct VipFound {
    /// Its row of `vips`.
    pub number: u16,
    /// The row.
    pub row: VipRef,
}

/// The virtual address at an address and port.
#[inline(always)]
pub fn vip_at<V: IpVersion>(
    address: V::Address,
    port: Be16,
    protocol: Protocol,
    world: &impl World,
) -> Option<VipFound> {
    let mut link = world.vip_head(endpoint_hash(&V::widen(address), port, protocol as u8));
    for _ in 0..rolled(MAX_CHAIN) {
        if link == 0 {
            break;
        }
        let number = link.wrapping_sub(1);
        let row = VipRef(world.vip(number)?);
        if row.is_at::<V>(address, port, protocol) {
            return Some(VipFound { number: number as u16, row });
        }
        link = row.next();
    }
    None
}

/// A backend at an address and port. Of several, which are of different services or colours, one that is in the index.
#[inline(always)]
pub fn backend_at<V: IpVersion>(
    address: V::Address,
    port: Be16,
    protocol: Protocol,
    world: &impl World,
) -> Option<BackendRef> {
    let mut link = world.backend_head(endpoint_hash(&V::widen(address), port, protocol as u8));
    for _ in 0..rolled(MAX_CHAIN) {
        if link == 0 {
            break;
        }
        let row = BackendRef(world.backend(link.wrapping_sub(1))?);
        if row.is_at::<V>(address, port, protocol) {
            return Some(row);
        }
        link = row.next();
    }
    None
}
