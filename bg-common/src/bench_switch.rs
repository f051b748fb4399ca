//! Types that the programs which measure the instant of a switch share with user space. They are not part of the ABI.

use bytemuck::{Pod, Zeroable};

/// The frame that the generator sends, each time for another flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SwitchLoad {
    /// The frame: Ethernet, IPv4 without options, UDP without a checksum, [`SwitchLoad::STAMP_AT`].
    pub frame: [u64; SwitchLoad::LEN / 8],
    /// Source address of the first flow, in the host's byte order.
    pub address: u32,
    /// Always zero.
    pub reserved: u32,
}

impl SwitchLoad {
    /// Bytes of the frame.
    pub const LEN: usize = 96;
    /// Offset of the time of `CLOCK_MONOTONIC` at which the frame was passed to the program under test.
    pub const STAMP_AT: usize = 48;
    /// Offset of the byte of the destination address that distinguishes the colours.
    pub const COLOUR_AT: usize = 32;
    /// The values of that byte, by colour.
    pub const COLOUR_OCTETS: [u8; 2] = [1, 2];
    /// Bits of a flow's number that go into the source port. The others go into the address.
    pub const PORT_BITS: u32 = 14;
    /// The lowest port.
    pub const FIRST_PORT: u16 = 1024;
    /// Port of the backends, which distinguishes these frames from others.
    pub const BACKEND_PORT: u16 = 5353;
}

/// Rows of the maps that have one for each CPU.
pub const SWITCH_CPUS: u32 = 256;

/// The counts of the generator on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SwitchSent {
    /// Frames.
    pub frames: u64,
    /// Number of the first flow of this CPU. Each frame belongs to the next flow.
    pub first_flow: u64,
    /// Padding, so that no two CPUs write the same cache line.
    pub reserved: [u64; 6],
}

/// The counts of the receiver on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SwitchSeen {
    /// The round to which the times in `colours` belong.
    pub round: u64,
    /// The counts by colour.
    pub colours: [ColourSeen; 2],
    /// Padding, so that no two CPUs write the same cache line.
    pub reserved: [u64; 5],
}

/// The frames of one colour. Times are nanoseconds of `CLOCK_MONOTONIC`. Zero is never.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ColourSeen {
    /// Frames, of all rounds.
    pub frames: u64,
    /// When the first frame of the round was passed to the program under test.
    pub first_decided: u64,
    /// When it arrived.
    pub first_arrived: u64,
    /// When the last frame was passed to the program under test.
    pub last_decided: u64,
    /// When it arrived.
    pub last_arrived: u64,
}

crate::assert_layout!(SwitchLoad, size 104, align 8, frame at 0, address at 96);
crate::assert_layout!(SwitchSent, size 64, align 8, frames at 0, first_flow at 8);
crate::assert_layout!(SwitchSeen, size 128, align 8, round at 0, colours at 8);
crate::assert_layout!(ColourSeen, size 40, align 8, frames at 0, last_arrived at 32);
