//! Keys of flows, as words, and their hash.

use super::memory::Memory;
use crate::wire::headers::{IpVersion, V4, V6};
use bg_common::{Be16, FlowKey4, FlowKey6};

/// A key as words. The last word holds the client's port in bits 32 to 47 and the row of the virtual address in bits
/// 48 to 63, for all keys alike.
pub trait Key: Copy {
    /// Words of a row.
    const ROW: usize;
    /// Words of the key: the row's head follows them.
    const HEAD: usize;
    /// A word of the key.
    fn word(&self, index: usize) -> u64;
    /// Keyed hash of the client's end and a salt; see [`bg_common::Vip::salt`]. The virtual address is no part of it, so a reply
    /// has the same.
    fn hash(&self, salt: u16, memory: &impl Memory<Self>) -> u32;
}

/// Bits of a key's last word that tell the virtual address.
pub const VIP_SHIFT: u32 = 48;

/// What of a key has to be the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// All of it: a packet from a client.
    Whole,
    /// The client's end: a packet to a client. Which virtual address it is for, the row tells.
    Client,
}

impl Match {
    /// Bits of the last word that are compared.
    #[inline(always)]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Whole => u64::MAX,
            Self::Client => (1 << VIP_SHIFT) - 1,
        }
    }
}

/// Sum of products, of which the upper half is uniform.
#[inline(always)]
fn product<K>(memory: &impl Memory<K>, index: usize, a: u32, b: u32) -> u64 {
    let sum = |key: usize, word: u32| memory.hash_key(key).wrapping_add(word.into());
    sum(index, a).wrapping_mul(sum(index + 1, b))
}

/// The hash out of the sum of products. Where one word alone differs the sum is linear in it: ports in order would be a
/// progression, which by some keys falls into few buckets. Folded and multiplied, it is one no more.
#[inline(always)]
fn mixed(sum: u64) -> u32 {
    ((sum ^ sum >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// The hash for a salt. The salt comes last, because it takes two look-ups to know it: so they and the hash of the client's end
/// are done at the same time.
#[inline(always)]
fn salted(hash: u32, salt: u16) -> u32 {
    hash ^ u32::from(salt).wrapping_mul(0x9e37_79b1)
}

impl Key for FlowKey4 {
    const ROW: usize = 4;
    const HEAD: usize = 1;

    #[inline(always)]
    fn word(&self, _index: usize) -> u64 {
        u64::from(self.client) | u64::from(self.port.0) << 32 | u64::from(self.vip) << VIP_SHIFT
    }

    #[inline(always)]
    fn hash(&self, salt: u16, memory: &impl Memory<Self>) -> u32 {
        let sum = memory.hash_key(0).wrapping_add(product(memory, 1, self.client, self.port.0.into()));
        salted(mixed(sum), salt)
    }
}

impl Key for FlowKey6 {
    const ROW: usize = 8;
    const HEAD: usize = 3;

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        let [a, b, c, d] = self.client.0;
        // Not by index: the bound check would be a panic.
        let (low, high) = match index {
            0 => (a, b),
            1 => (c, d),
            _ => (self.reserved, u32::from(self.port.0) | u32::from(self.vip) << 16),
        };
        u64::from(low) | u64::from(high) << 32
    }

    #[inline(always)]
    fn hash(&self, salt: u16, memory: &impl Memory<Self>) -> u32 {
        let [a, b, c, d] = self.client.0;
        let sum = memory
            .hash_key(0)
            .wrapping_add(product(memory, 1, a, b))
            .wrapping_add(product(memory, 3, c, d))
            .wrapping_add(product(memory, 5, self.port.0.into(), 0));
        salted(mixed(sum), salt)
    }
}

/// The version of IP of a flow's packets.
pub trait FlowVersion: IpVersion {
    /// Key of its flows.
    type Key: Key;
    /// The key of a client's end and a row of `vips`.
    fn key(client: Self::Address, port: Be16, vip: u16) -> Self::Key;
}

impl FlowVersion for V4 {
    type Key = FlowKey4;

    #[inline(always)]
    fn key(client: u32, port: Be16, vip: u16) -> FlowKey4 {
        FlowKey4 { client, port, vip }
    }
}

impl FlowVersion for V6 {
    type Key = FlowKey6;

    #[inline(always)]
    fn key(client: [u64; 2], port: Be16, vip: u16) -> FlowKey6 {
        FlowKey6 { client: V6::widen(client), reserved: 0, port, vip }
    }
}
