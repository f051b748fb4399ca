//! The two indexes that tell what a packet can be before the flow table is touched.
//!
//! `vip_index` finds the row of `vips` that a packet's destination is, `backend_index` a row of `backends` that its source
//! is. Both are hash tables with lists: a head holds the number of the first row plus one, and each row the number of the
//! next one plus one. Zero ends a list. User space alone writes them. It writes a row before it links it by one store, and
//! gives a row away only when no program can be at it any more, so a reader needs no lock.

use crate::{Addr, Be16};

/// Hash of an address, port and protocol; its low bits choose the head. It needs no key: who writes the configuration
/// chooses what is in the index.
#[inline(always)]
pub const fn endpoint_hash(addr: &Addr, port: Be16, protocol: u8) -> u32 {
    let [a, b, c, d] = addr.0;
    // For IPv4, whose other words are zero, one multiplication.
    let words = (b as u64 | (c as u64) << 32).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ (d as u64).wrapping_mul(0x94d0_49bb_1331_11eb);
    let sum = words ^ a as u64 ^ (port.0 as u64) << 32 ^ (protocol as u64) << 16;
    (sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_addresses_and_ports_have_heads_of_their_own() {
        const HEADS: usize = 4096;
        let mut heads = [0_u8; HEADS];
        for host in 0..16_u8 {
            for port in 0..64_u16 {
                let hash = endpoint_hash(&Addr::v4([10, 0, 1, host]), Be16::new(8000 + port), 6);
                heads[hash as usize % HEADS] += 1;
            }
        }
        // 1,024 rows in 4,096 heads: with a random hash a list of six would be one in ten thousand.
        assert!(heads.iter().all(|rows| *rows < 6), "{:?}", heads.iter().max());
        assert_ne!(
            endpoint_hash(&Addr::v4([10, 0, 0, 1]), Be16::new(53), 6),
            endpoint_hash(&Addr::v4([10, 0, 0, 1]), Be16::new(53), 17)
        );
        let mut heads = [0_u8; HEADS];
        for host in 0..64_u8 {
            for port in 0..16_u16 {
                let addr = Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, host / 8, 0, 0, 0, 0, 0, 0, 0, host]);
                heads[endpoint_hash(&addr, Be16::new(8000 + port), 6) as usize % HEADS] += 1;
            }
        }
        assert!(heads.iter().all(|rows| *rows < 6), "{:?}", heads.iter().max());
    }
}
