//! Ethernet, with up to two VLAN tags (IEEE 802.1Q, 802.1ad). Tags are parsed through and kept.

use super::packet::{
    Header, Packet,
    bytes::{load16, load32},
};
use crate::hint::unlikely;
use bg_common::{Be16, NextHop};

/// Ethernet header of bytes alone: at any address, unlike one with a 16-bit field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ethernet {
    /// Destination and source MAC, one after the other.
    pub macs: [u8; 12],
    /// EtherType, or the tag protocol of the first VLAN tag.
    pub ether_type: [u8; 2],
}

/// The addresses of an Ethernet header, in the parts that a next hop has them in.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Macs {
    /// First four bytes of the destination.
    pub dmac: [u8; 4],
    /// Its last two.
    pub dmac_end: [u8; 2],
    /// First two bytes of the source.
    pub smac: [u8; 2],
    /// Its last four.
    pub smac_end: [u8; 4],
}

/// What follows an Ethernet header whose type is a tag protocol.
#[repr(C)]
#[derive(Clone, Copy)]
struct VlanTag {
    _tci: [u8; 2],
    ether_type: [u8; 2],
}

// SAFETY: a struct of byte arrays.
unsafe impl Header for Ethernet {}
// SAFETY: a struct of byte arrays.
unsafe impl Header for Macs {}
// SAFETY: a struct of byte arrays.
unsafe impl Header for VlanTag {}

/// EtherType of IPv4, as on the wire.
pub const IPV4: Be16 = Be16::new(0x0800);
/// EtherType of IPv6, as on the wire.
pub const IPV6: Be16 = Be16::new(0x86dd);
const DOT1Q: Be16 = Be16::new(0x8100);
const DOT1AD: Be16 = Be16::new(0x88a8);

/// The EtherType behind at most two tags, and the offset of what it announces.
#[inline(always)]
pub fn payload(packet: &Packet<'_>) -> Option<(Be16, usize)> {
    let mut ether_type = Be16(load16(&packet.header::<Ethernet>(0)?.ether_type));
    let mut offset = size_of::<Ethernet>();
    for _ in 0..2 {
        if unlikely(ether_type == DOT1Q || ether_type == DOT1AD) {
            ether_type = Be16(load16(&packet.header::<VlanTag>(offset)?.ether_type));
            offset += size_of::<VlanTag>();
        }
    }
    Some((ether_type, offset))
}

/// The destination's MAC address: 48 bits, first byte lowest.
#[inline(always)]
pub fn destination(packet: &Packet<'_>) -> Option<u64> {
    let macs = packet.header::<Macs>(0)?;
    Some(u64::from(load32(&macs.dmac)) | u64::from(load16(&macs.dmac_end)) << 32)
}

/// Both MAC addresses in the order of a frame that goes back: three words as they stand on the wire. `None`: the frame was sent to a group, and is
/// not answered (RFC 1122, section 3.2.2).
#[inline(always)]
pub fn swapped_macs(packet: &Packet<'_>) -> Option<[u32; 3]> {
    let macs = packet.header::<Macs>(0)?;
    let (dmac, dmac_end) = (load32(&macs.dmac), load16(&macs.dmac_end));
    let (smac, smac_end) = (load16(&macs.smac), load32(&macs.smac_end));
    if dmac & 1 != 0 {
        return None;
    }
    let (smac, dmac) = (u64::from(smac) | u64::from(smac_end) << 16, u64::from(dmac) | u64::from(dmac_end) << 32);
    Some([smac as u32, (smac >> 32) as u32 | (dmac as u32) << 16, (dmac >> 16) as u32])
}

/// Whether there are tags before what begins at `offset`.
#[inline(always)]
pub const fn is_tagged(offset: usize) -> bool {
    offset != size_of::<Ethernet>()
}

/// Both MAC addresses of a frame on its way to a next hop: three words as they stand on the wire.
#[inline(always)]
pub const fn macs_towards(hop: NextHop) -> [u32; 3] {
    let (dmac, smac) = (hop.dmac(), hop.smac());
    [dmac as u32, (dmac >> 32) as u32 | (smac as u32) << 16, (smac >> 16) as u32]
}
