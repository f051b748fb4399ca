//! Types that the benchmarks' programs share with user space. They are not part of the ABI.

use bytemuck::{Pod, Zeroable};

/// A frame that is restored before each run, and where the number of its flow is written.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FrameTemplate {
    /// The frame.
    pub frame: [u64; FrameTemplate::LEN / 8],
    /// Offset of the last four bytes of the address that varies.
    pub address_at: u32,
    /// Offset of the port that varies.
    pub port_at: u32,
    /// The varying address of the first flow, in the host's byte order.
    pub address: u32,
    /// Number of the first flow.
    pub first: u32,
    /// Number of flows less one; a power of two less one.
    pub mask: u32,
    /// The next flow's number is `(multiplier * number + increment) & mask`. With 1 and 1, flows are in order. With a full-period
    /// linear congruence, no prefetcher can predict the order.
    pub multiplier: u32,
    /// See `multiplier`.
    pub increment: u32,
    /// The template of the next packet. Each template has its own flow numbers.
    pub next: u32,
}

impl FrameTemplate {
    /// The number of templates that can take turns.
    pub const TURNS: u32 = 2;
    /// Bytes of the frame.
    pub const LEN: usize = 96;
    /// Bits of a flow's number that go into the port. The others go into the address.
    pub const PORT_BITS: u32 = 14;
    /// The lowest port.
    pub const FIRST_PORT: u16 = 1024;
}

crate::assert_layout!(FrameTemplate, size 128, align 8, frame at 0, address_at at 96, next at 124);

/// The present state of the wrapper.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Turn {
    /// Number of the last flow of each template.
    pub numbers: [u32; FrameTemplate::TURNS as usize],
    /// The template of the next packet.
    pub next: u32,
    /// Number of the present packet's flow.
    pub number: u32,
}

crate::assert_layout!(Turn, size 16, align 4, numbers at 0, next at 8, number at 12);

/// A cache line.
pub type Line = [u64; 8];

/// A frame that is sent repeatedly, each time for the next flow.
///
/// The receiver verifies checksums, so varying words are compensated: the one's complement of each varying word
/// is written into a word that is zero in the template. So the template's checksums are right for all flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LiveFrame {
    /// The frame of the first flow.
    pub frame: [u64; LiveFrame::MAX_LEN / 8],
    /// The interface by which it is sent.
    pub ifindex: u32,
    /// Offset of the last two bytes of the source address.
    pub address_at: u32,
    /// These two bytes of the first flow, in the host's byte order.
    pub address: u32,
    /// Offset of the source port.
    pub port_at: u32,
    /// Offset of IPv4's identification, which compensates for the address in the header's checksum. IPv6 has no such checksum,
    /// so there it is the offset of the first filler.
    pub identification_at: u32,
    /// Offset of two words of the payload that compensate for address and port in the transport checksum.
    pub filler_at: u32,
    /// Number of flows less one; a power of two less one.
    pub mask: u32,
    /// As in [`FrameTemplate`].
    pub multiplier: u32,
    /// As in [`FrameTemplate`].
    pub increment: u32,
    /// Always zero.
    pub reserved: u32,
}

impl LiveFrame {
    /// The fewest bytes of a frame.
    pub const MIN_LEN: usize = 72;
    /// The most bytes of a frame.
    pub const MAX_LEN: usize = 80;
}

crate::assert_layout!(LiveFrame, size 120, align 8, frame at 0, ifindex at 80, reserved at 116);

/// The destination that a frame must have to be counted as delivered, as read from the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Destination {
    /// The last four bytes of the address.
    pub address: u32,
    /// The port.
    pub port: u32,
}

/// The counts of a receiver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Received {
    /// Frames to the [`Destination`], which were dropped after counting.
    pub delivered: u64,
    /// Other frames, which were passed on.
    pub others: u64,
}

crate::assert_layout!(Received, size 16, align 8, delivered at 0, others at 8);
