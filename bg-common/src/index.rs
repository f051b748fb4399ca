//! The two indexes that classify a packet before the flow table is touched.
//!
//! `vip_index` finds the row of `vips` for a packet's destination, and `backend_index` a row of `backends` for its
//! source. Both are hash tables with lists: a head holds the number of the first row plus one, and each row the number of the
//! next row plus one. Zero ends a list. Only user space writes them. It writes a row before it links the row with one store, and
//! reuses a row only when no program can be reading it any more. So a reader needs no lock.

use crate::{Addr, Be16};

/// The hash of an address, port and protocol. Its low bits select the head. It needs no key, because the content of the index comes
/// from the configuration.
#[inline(always)]
pub const fn endpoint_hash(addr: &Addr, port: Be16, protocol: u8) -> u32 {
    let [a, b, c, d] = addr.0;
    // For IPv4, where the other words are zero, this is one multiplication.
    let words = (b as u64 | (c as u64) << 32).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ (d as u64).wrapping_mul(0x94d0_49bb_1331_11eb);
    let sum = words ^ a as u64 ^ (port.0 as u64) << 32 ^ (protocol as u64) << 16;
    // The upper bits of a product depend on all bits of its factors, the lower bits only on a few. There are at most 2^18 heads.
    (sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 46) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the longest list of an index that has as many heads as rows, or up to twice as many.
    fn longest(rows: impl Iterator<Item = (Addr, u16, u8)>) -> usize {
        let hashes: Vec<u32> =
            rows.map(|(addr, port, protocol)| endpoint_hash(&addr, Be16::new(port), protocol)).collect();
        let heads = (hashes.len() * crate::HEADS_PER_ROW as usize).next_power_of_two();
        let mut lists = vec![0; heads];
        hashes.iter().for_each(|hash| lists[*hash as usize & (heads - 1)] += 1);
        *lists.iter().max().unwrap()
    }

    #[test]
    fn neighbouring_addresses_and_ports_do_not_make_long_lists() {
        let v4 = |host: u16| Addr::v4([10, 0, (host >> 8) as u8, host as u8]);
        let v6 = |net: u8, host: u8| Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, host]);
        let ports = |addr: Addr, ports: u16| (1..=ports).map(move |port| (addr, port, 6));
        // Random hashes would have 5 to 8.
        for longest in [
            longest((1..200).flat_map(|port| [(v4(10), port, 17), (v4(10), port + 10_000, 17)])),
            longest(ports(v4(10), 1024)),
            longest(ports(v6(0, 1), 4096)),
            longest((0..65_535).map(|host| (v4(host), 443, 6))),
            longest((0..1000).flat_map(|host| [(v4(host), 53, 6), (v4(host), 53, 17)])),
            longest((0..64).flat_map(|host| (0..256).map(move |port| (v4(host), 30_000 + port, 6)))),
            longest((0..64).flat_map(|host| (0..16).map(move |port| (v6(host / 8, host), 8000 + port, 6)))),
            longest((0..=255).flat_map(|net| (0..=255).map(move |host| (v6(net, host), 443, 6)))),
        ] {
            assert!(longest <= crate::MAX_CHAIN as usize - 2, "{longest}");
        }
    }

    #[test]
    fn all_heads_are_within_the_hash() {
        assert!(
            (crate::HEADS_PER_ROW * crate::MAX_BACKENDS.max(2 * crate::MAX_SERVICES)).next_power_of_two() <= 1 << 18
        );
    }
}
