//! The packet engine: what happens to a frame, decided once, for the kernel and for the host alike.
//!
//! The way of a packet, in the order of the modules:
//!
//! ```text
//! ethernet -> headers -> known flow? --yes--> over? --no---------------------> rewrite -> verdict
//!                             |                 '-yes-.                          ^
//!                             '-no-> a VIP's? --yes---'-> choice -> flow opened -'
//!                                        '-no--> Pass
//! ```
//!
//! - [`ethernet`], [`headers`]: where the headers stand and what they say, over [`packet`], the only accessor
//!   of packet bytes.
//! - [`forward`]: client to backend; [`choice`] picks colour and backend of a new flow, [`lifetime`] tells when
//!   a flow is over.
//! - [`reply`]: backend to client.
//! - [`next_hop`], [`rewrite`], [`checksum`]: the way out.
//! - [`tables`]: what the engine asks of maps, clock and routes; [`flow_table`]: how flows are kept there;
//!   [`flow_ref`]: access to what is shared.
//!
//! The library is `no_std`, does not allocate, panics nowhere and has no global state. `main.rs` and
//! `kernel/` put XDP and tc around it; tests put buffers and plain collections around it.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "compare-exchange: the target has no atomics in core")
)]

#[cfg(target_endian = "big")]
compile_error!("addresses and MACs are kept as little-endian words; a big-endian port needs them reviewed");

pub mod checksum;
pub mod choice;
pub mod desk;
pub mod ethernet;
pub mod flow_ref;
pub mod flow_table;
pub mod forward;
pub mod headers;
pub mod lifetime;
pub mod next_hop;
pub mod packet;
pub mod reply;
pub mod rewrite;
pub mod tables;
mod verdict;

use bg_common::{Event, FlowKey4, FlowKey6};
use headers::{Parsed, V4, V6};
use packet::Packet;
use rewrite::{Rewritable, Writer};
use tables::{Aside, FlowTable, Tables};

pub use verdict::{Action, Verdict};

/// The condition, which seldom holds: what depends on it stands aside of the code of most packets.
#[inline(always)]
pub fn unlikely(condition: bool) -> bool {
    #[cfg(target_arch = "bpf")]
    if condition {
        core::hint::cold_path();
    }
    condition
}

/// The value, of which the compiler knows nothing any more: like `core::hint::black_box`, but it stays in its register.
#[inline(always)]
pub(crate) fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    let value = {
        let mut value = value;
        // One instruction: with none, two lines of source would claim the same one, and the kernel refuses that.
        // SAFETY: a move of the register to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
        value
    };
    value
}

/// Which way frames cross the interface at the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into this host, at XDP: what cannot be redirected at once is left to tc ingress behind it, untouched.
    Early,
    /// Into this host, at tc ingress.
    Ingress,
    /// Out of this host: tc egress. Only replies of the host's own stack are looked for.
    Egress,
}

/// A hook that a frame came by.
pub struct Hook<'a, T, W> {
    /// Which way.
    pub direction: Direction,
    /// Octets of the whole frame.
    pub frame_len: usize,
    /// Maps, clock and routes.
    pub tables: &'a T,
    /// Carries out what is decided.
    pub writer: &'a mut W,
}

/// What is known of the frame beside its bytes.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Which way it crosses the interface.
    pub direction: Direction,
    /// Octets of the whole frame; the packet may hold only the first of them (tc).
    pub len: usize,
}

/// Processes one frame. `packet` is for reading; `writer` makes the changes, and may work on the same
/// bytes, since nothing is read after the first change.
#[inline(always)]
pub fn process<T: Tables + Aside<V4> + Aside<V6>, W: Writer>(
    packet: &Packet<'_>,
    frame: Frame,
    tables: &T,
    writer: &mut W,
) -> Verdict {
    let Some((ether_type, l3)) = ethernet::payload(packet) else { return Verdict::PASS };
    if frame.direction != Direction::Egress {
        let Some(destination) = ethernet::destination(packet) else { return Verdict::PASS };
        // Met on a segment that floods, or by a promiscuous interface: another machine's.
        if unlikely(!tables.is_addressed_here(destination)) {
            return Verdict::PASS;
        }
    }
    match ether_type {
        ethernet::IPV4 => of_version::<V4, T>(packet, l3, frame, tables, writer),
        ethernet::IPV6 => of_version::<V6, T>(packet, l3, frame, tables, writer),
        _ => Verdict::PASS,
    }
}

#[inline(always)]
fn of_version<V: Rewritable, T: Tables + FlowTable<V::Key> + Aside<V>>(
    packet: &Packet<'_>,
    l3: usize,
    frame: Frame,
    tables: &T,
    writer: &mut impl Writer,
) -> Verdict {
    let headers = match V::parse(packet, l3, frame.len) {
        Parsed::Whole(headers) => headers,
        Parsed::Other => return Verdict::PASS,
        Parsed::Malformed(headers) => {
            return match tables.service(&choice::service_key(&headers)) {
                Some(_) if frame.direction != Direction::Egress => Verdict::drop(tables, Event::Malformed),
                _ => Verdict::PASS,
            };
        }
    };
    let key = V::key(headers.src, headers.dst, headers.ports, headers.protocol);
    let hook = Hook { direction: frame.direction, frame_len: frame.len, tables, writer };
    let now = tables.tick();
    let there = tables.flow(&key);
    match there {
        Some(flow) if flow.is_reply() => return reply::restore(&headers, flow, hook, now),
        _ if frame.direction == Direction::Egress => return Verdict::PASS,
        _ => {}
    }
    match forward::target(&headers, there, frame.direction, tables, now) {
        Ok(target) => forward::send(&headers, target, hook, now),
        Err(verdict) => verdict,
    }
}

const _: () = {
    // Keys are hashed and compared as bytes: no padding, and words only.
    assert!(size_of::<FlowKey4>() == 4 * 4 && size_of::<FlowKey6>() == 10 * 4);
};
