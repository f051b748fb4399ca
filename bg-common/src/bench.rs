//! What the benchmarks' programs and their drivers agree on. Not part of the ABI.

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
    /// The template of the next packet. Each template numbers its flows by itself.
    pub next: u32,
}

impl FrameTemplate {
    /// Templates that can take turns.
    pub const TURNS: u32 = 2;
    /// Octets of the frame.
    pub const LEN: usize = 96;
    /// Bits of a flow's number that go into the port; the others go into the address.
    pub const PORT_BITS: u32 = 14;
    /// The lowest port.
    pub const FIRST_PORT: u16 = 1024;
}

crate::assert_layout!(FrameTemplate, size 128, align 8, frame at 0, address_at at 96, next at 124);

/// Where the wrapper is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Turn {
    /// Number of the flow that each template had last.
    pub numbers: [u32; FrameTemplate::TURNS as usize],
    /// The template of the next packet.
    pub next: u32,
    /// Number of the present packet's flow.
    pub number: u32,
}

crate::assert_layout!(Turn, size 16, align 4, numbers at 0, next at 8, number at 12);

/// A cache line.
pub type Line = [u64; 8];

/// A frame to send over and over, each time as the next flow's.
///
/// Where it goes checksums are verified, so what varies is made up for: the one's complement of each varying word
/// goes into a word that is zero in the template, and the template's checksums hold for all flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LiveFrame {
    /// The frame, as the first flow's.
    pub frame: [u64; LiveFrame::MAX_LEN / 8],
    /// Interface that it is sent by.
    pub ifindex: u32,
    /// Offset of the last two octets of the source address.
    pub address_at: u32,
    /// Those two octets of the first flow, in the host's byte order.
    pub address: u32,
    /// Offset of the source port.
    pub port_at: u32,
    /// Offset of IPv4's identification, which makes up for the address in the header's checksum; with IPv6, which has
    /// none, of the first filler.
    pub identification_at: u32,
    /// Offset of two words of the payload that make up for address and port in the transport checksum.
    pub filler_at: u32,
    /// Number of flows less one; a power of two less one.
    pub mask: u32,
    /// As of [`FrameTemplate`].
    pub multiplier: u32,
    /// As of [`FrameTemplate`].
    pub increment: u32,
    /// Always zero.
    pub reserved: u32,
}

impl LiveFrame {
    /// Octets of a frame at least.
    pub const MIN_LEN: usize = 72;
    /// Octets of a frame at most.
    pub const MAX_LEN: usize = 80;
}

crate::assert_layout!(LiveFrame, size 120, align 8, frame at 0, ifindex at 80, reserved at 116);

/// The destination that a frame must have to be counted as delivered, as read from the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Destination {
    /// The last four octets of the address.
    pub address: u32,
    /// The port.
    pub port: u32,
}

/// What a receiver has counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Received {
    /// Frames to the [`Destination`], dropped once counted.
    pub delivered: u64,
    /// Others, passed on.
    pub others: u64,
}

crate::assert_layout!(Received, size 16, align 8, delivered at 0, others at 8);
