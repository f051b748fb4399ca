//! The contract between the data path and user space.
//!
//! Every key, value and word that both sides read is defined in this crate. All types are plain
//! old data without implicit padding. Their sizes, alignments and offsets are asserted at compile
//! time, both for the kernel target and for the host. Every change to one of them requires a new
//! [`ABI_VERSION`].
//!
//! Addresses and ports are kept in network order: [`Addr`] holds four words (an IPv4 address is the first word, and the others are
//! zero), and [`Be16`] holds a port.
#![cfg_attr(not(test), no_std)]

mod addr;
mod backend;
mod bench;
mod bench_switch;
mod check;
mod counters;
mod flow;
mod hold;
mod index;
mod live;
mod service;
mod timing;
mod trips;
mod tunnel;

pub use addr::{Addr, Be16, Family, Protocol};
pub use backend::{Backend, BackendInfo, Identity, Mode, NextHop, NumberedHop};
pub use bench::{Destination, FrameTemplate, Line, LiveFrame, Received, Turn};
pub use bench_switch::{ColourSeen, SWITCH_CPUS, SwitchLoad, SwitchSeen, SwitchSent};
pub use check::{CheckDevice, CheckKey, CheckReplyKey, CheckWay};
pub use counters::{Event, SwitchTimes, Traffic};
pub use flow::{CachedHop, Flow, FlowBackend, FlowHash, FlowKey4, FlowKey6, FlowState, TableSizes};
pub use hold::{
    COPY_FOR, HELD_LOG_BYTES, HELD_LOG_START, HOLD_OPEN, HeldHeader, HeldState, Hold, LAST_HELD_RECORD, MAX_HELD_FRAME,
    MIN_HELD_FRAME, held_record_bytes,
};
pub use index::endpoint_hash;
pub use live::{Colour, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms};
pub use service::{DeploymentRow, Role, ServiceInfo, ServiceKey, ServiceRow, TableSpan, TesterKey, Vip};
pub use timing::{Cause, ClockId, Timing};
pub use trips::{Conditions, Limit, Trips};
pub use tunnel::{GUE_PORT, Tunnel};

/// The version of everything in this crate. Pins of another version are refused.
pub const ABI_VERSION: u32 = 8;

/// The most deployments in an instance: the entries of the `live` map.
pub const MAX_DEPLOYMENTS: u32 = 1024;
/// The most services for which an instance can have room, over all deployments.
pub const MAX_SERVICES: u32 = 16_384;
/// The most backends for which an instance can have room, over all services and both colours.
pub const MAX_BACKENDS: u32 = 262_144;
/// The entries of a Maglev table whose backends are all down, if new flows are to be refused then. It is the slot of no backend.
pub const NO_BACKEND: u32 = u32::MAX;
/// The most tester prefixes in an instance, over all deployments.
pub const MAX_TESTERS: u32 = 65_536;
/// Frames can be redirected to interfaces whose index is below this. It is as many as fit into [`NextHop`], so
/// that the map is an array, and a redirect needs no hash.
pub const MAX_INTERFACES: u32 = 65_536;
/// The flag in a row of `interfaces` that frames to any MAC address are accepted, because the interface is a port of a bridge, whose own
/// address may change at any time.
pub const TAKES_ALL: u64 = 1 << 48;
/// The number of rows of `next_hops`.
pub const MAX_NEXT_HOPS: u32 = 65_536;
/// The number of rows of `refusals`, each with two names of 32 bits. A power of two.
pub const REFUSAL_ROWS: u32 = 131_072;
/// Heads of `vip_index` for each service, and of `backend_index` for each backend.
pub const HEADS_PER_ROW: u32 = 1;
/// The most rows with the same hash in `vip_index` or `backend_index`.
pub const MAX_CHAIN: u32 = 12;
/// Rows of a bucket of the flow tables.
pub const FLOW_WAYS: u32 = 8;

/// A tick of the data path's clock is `jiffies >> TICK_SHIFT`. This is so coarse that a busy flow
/// writes its `last_seen` only a few times per second, and fine enough for time-outs of seconds.
pub const TICK_SHIFT: u32 = 6;

/// The description of an instance: the only entry of the `meta` map. It is written before any program is
/// attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Meta {
    /// The [`ABI_VERSION`] of the object that created the maps.
    pub abi_version: u32,
    /// The running kernel's timer ticks per second (`CONFIG_HZ`), as derived from its coarse clock.
    pub hz: u32,
    /// A random number that is drawn when the instance is created. It distinguishes one life of a pin root from the next, and the state
    /// directories of different instances.
    pub identity: [u64; 2],
    /// The cookie of the instance's network namespace (`SO_NETNS_COOKIE`, Linux 5.14). Its interface
    /// indexes have no meaning in other namespaces.
    pub netns_cookie: u64,
    /// Keys of the flow tables' hash.
    pub flow_hash: FlowHash,
}

/// Two clocks of the data path, read at one moment by the program `read_clock`. With these, user
/// space can convert ticks to time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Clock {
    /// `bpf_jiffies64()`.
    pub jiffies: u64,
    /// `bpf_ktime_get_ns()`, which is `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
}

/// Asserts the layout of a map type: its size, its alignment, and the offset of each named field.
#[macro_export]
macro_rules! assert_layout {
    ($type:ty, size $size:literal, align $align:literal $(, $field:ident at $offset:literal)* $(,)?) => {
        const _: () = {
            assert!(core::mem::size_of::<$type>() == $size);
            assert!(core::mem::align_of::<$type>() == $align);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}

assert_layout!(
    Meta, size 88, align 8,
    abi_version at 0, hz at 4, identity at 8, netns_cookie at 24, flow_hash at 32
);
assert_layout!(Clock, size 16, align 8, jiffies at 0, monotonic_ns at 8);

#[cfg(feature = "user")]
mod pod {
    use super::*;

    /// Map types are already `bytemuck::Pod`, which is stronger than what aya requires.
    macro_rules! impl_pod {
        ($($type:ty),*) => {
            // SAFETY: each type is `bytemuck::Pod`: any bit pattern is valid and there is no padding.
            $(unsafe impl aya::Pod for $type {})*
        };
    }
    impl_pod!(
        FrameTemplate,
        Turn,
        Destination,
        LiveFrame,
        Received,
        SwitchLoad,
        SwitchSent,
        SwitchSeen,
        Meta,
        Clock,
        Backend,
        Traffic,
        SwitchTimes,
        Flow,
        FlowKey4,
        FlowKey6,
        TableSizes,
        BackendInfo,
        Vip,
        NumberedHop,
        LiveWord,
        SwitchTerms,
        Timing,
        Trips,
        DeploymentRow,
        Hold,
        ServiceInfo,
        ServiceKey,
        ServiceRow,
        TesterKey,
        Tunnel,
        CheckDevice,
        CheckKey,
        CheckReplyKey,
        CheckWay
    );
}
