//! What the benchmark's wrapper program and its driver agree on. Not part of the ABI.

use bytemuck::{Pod, Zeroable};

/// A frame to restore before each run, and where its flow's number goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FrameTemplate {
    /// The frame.
    pub frame: [u64; FrameTemplate::LEN / 8],
    /// Offset of the last four octets of the address that varies.
    pub address_at: u32,
    /// Offset of the port that varies.
    pub port_at: u32,
    /// That address of the first flow, in the host's byte order.
    pub address: u32,
    /// Number of the first flow.
    pub first: u32,
    /// Number of flows less one; a power of two less one.
    pub mask: u32,
    /// Next flow's number is `(multiplier * number + increment) & mask`: 1 and 1 is in order, a full-period
    /// linear congruence is in an order that no prefetcher guesses.
    pub multiplier: u32,
    /// See `multiplier`.
    pub increment: u32,
    /// Always zero.
    pub reserved: u32,
}

impl FrameTemplate {
    /// Octets of the frame.
    pub const LEN: usize = 96;
    /// Bits of a flow's number that go into the port; the others go into the address.
    pub const PORT_BITS: u32 = 14;
    /// The lowest port.
    pub const FIRST_PORT: u16 = 1024;
}

crate::assert_layout!(FrameTemplate, size 128, align 8, frame at 0, address_at at 96, reserved at 124);
