//! The contract between the data path and user space.
//!
//! Every key, value and word that both sides read lives here and nowhere else. All types are plain
//! old data without implicit padding; their sizes, alignments and offsets are asserted at compile
//! time, for the kernel target and for the host alike. A change to any of them is a change of
//! [`ABI_VERSION`].
//!
//! Addresses and ports are kept as they stand on the wire: [`Addr`] holds four words in network
//! order (an IPv4 address is the first word, the others are zero), [`Be16`] a port in network order.
#![cfg_attr(not(test), no_std)]

mod addr;
mod backend;
mod bench;
mod bench_switch;
mod counters;
mod flow;
mod index;
mod live;
mod service;

pub use addr::{Addr, Be16, Family, Protocol};
pub use backend::{Backend, BackendInfo, Identity, Mode, NextHop, NumberedHop};
pub use bench::{Destination, FrameTemplate, Line, LiveFrame, Received, Turn};
pub use bench_switch::{ColourSeen, SWITCH_CPUS, SwitchLoad, SwitchSeen, SwitchSent};
pub use counters::{Event, Traffic};
pub use flow::{CachedHop, Flow, FlowBackend, FlowHash, FlowKey4, FlowKey6, FlowState, TableSizes};
pub use index::endpoint_hash;
pub use live::{Colour, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms};
pub use service::{DeploymentRow, Role, ServiceInfo, ServiceKey, ServiceRow, TableSpan, TesterKey, Vip};

/// Version of everything in this crate. Pins that carry another one are refused, never guessed at.
pub const ABI_VERSION: u32 = 4;

/// Deployments that one instance can hold: entries of the `live` map.
pub const MAX_DEPLOYMENTS: u32 = 1024;
/// Services that one instance can have room for, over all deployments.
pub const MAX_SERVICES: u32 = 16_384;
/// Backends that one instance can have room for, over all services and both colours.
pub const MAX_BACKENDS: u32 = 262_144;
/// Tester prefixes that one instance can hold, over all deployments.
pub const MAX_TESTERS: u32 = 65_536;
/// Interface indexes that frames can be redirected to are below this: as many as [`NextHop`] has room for, so
/// that the map is an array and a redirect costs no hash.
pub const MAX_INTERFACES: u32 = 65_536;
/// In a row of `interfaces`: frames to any MAC address are taken, since this is a port of a bridge, whose own address may
/// change at any time.
pub const TAKES_ALL: u64 = 1 << 48;
/// Next hops towards clients that an instance can number.
pub const MAX_NEXT_HOPS: u32 = 65_536;
/// Heads of `vip_index` for each service, and of `backend_index` for each backend.
pub const HEADS_PER_ROW: u32 = 1;
/// Rows that share a hash in `vip_index` or `backend_index`, at most.
pub const MAX_CHAIN: u32 = 12;
/// Rows of a bucket of the flow tables.
pub const FLOW_WAYS: u32 = 8;

/// One tick of the data path's clock is `jiffies >> TICK_SHIFT`: coarse enough that a busy flow
/// writes its "last seen" a few times a second, fine enough for time-outs of seconds.
pub const TICK_SHIFT: u32 = 6;

/// What an instance says of itself: the only entry of the `meta` map, written before any program is
/// attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Meta {
    /// [`ABI_VERSION`] of the object that created the maps.
    pub abi_version: u32,
    /// Timer ticks a second of the running kernel (`CONFIG_HZ`), as its coarse clock tells.
    pub hz: u32,
    /// Drawn at random when the instance is made: tells one life of a pin root from the next, and the state
    /// directory of one instance from that of another.
    pub identity: [u64; 2],
    /// Cookie of the network namespace that the instance belongs to (`SO_NETNS_COOKIE`, Linux 5.14). Its interface
    /// indexes mean nothing in any other.
    pub netns_cookie: u64,
    /// Keys of the flow tables' hash.
    pub flow_hash: FlowHash,
}

/// What the `clock` program writes: the two clocks of the data path read at one moment, so that user
/// space can turn ticks into time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Clock {
    /// `bpf_jiffies64()`.
    pub jiffies: u64,
    /// `bpf_ktime_get_ns()`, that is `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
}

/// Asserts the layout of a map type: size, alignment, and the offset of each field named.
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

    /// Map types are `bytemuck::Pod` already, which is stronger than what aya asks for.
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
        Flow,
        FlowKey4,
        FlowKey6,
        TableSizes,
        BackendInfo,
        Vip,
        NumberedHop,
        LiveWord,
        SwitchTerms,
        DeploymentRow,
        ServiceInfo,
        ServiceKey,
        ServiceRow,
        TesterKey
    );
}
