//! What to do with a frame.
//!
//! Invariant 9 is held by the compiler: whoever drops a frame has to name a reason, which is counted.
//!
//! ```compile_fail
//! let silently = bg_ebpf::Verdict { action: bg_ebpf::Action::Drop, ifindex: 0 };
//! ```

use crate::{
    hook::{Direction, Hook},
    wire::{
        ethernet,
        headers::{Headers, IpVersion},
    },
    world::World,
};
use bg_common::{Event, NextHop, Protocol};

/// What to do with a frame. A frame that is passed, deferred, not decided or to be answered is unmodified, the others are rewritten.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Not ours, or not ours to answer: the next program or the host's stack gets it unmodified.
    Pass = 0,
    /// Ours, but this hook cannot send it: tc ingress on the same interface, which meets it next, does. Nothing has been
    /// counted but a flow that it has opened.
    Defer = 1,
    /// Ours, for the stack of this host.
    Deliver = 2,
    /// Out of the verdict's interface, to the MAC address that it bears.
    Redirect = 3,
    /// Out of the verdict's interface, to the next hop whose address is the destination of [`World::route_call`]. The
    /// kernel's neighbour code finds the MAC address, and sees that the neighbour is in use.
    Resolve = 4,
    /// Ours, for the client, which runs on this host: back by its loopback interface.
    ToSelf = 5,
    /// Dropped; the reason has been counted.
    Drop = 6,
    /// Not decided yet: an ICMP message, of which [`crate::process_icmp`] decides.
    Icmp = 7,
    /// A TCP segment of a flow that a switch has ended: [`crate::turn_into_reset`] makes two resets of it, one that goes back where
    /// the segment came from, and one in its place.
    Reset = 8,
    /// A TCP segment to which no backend is to answer: [`crate::turn_into_reset`] makes a reset of it, which goes back where the segment
    /// came from.
    Refuse = 9,
    /// A datagram to which no backend is to answer: [`crate::room_for_error`] and [`crate::turn_into_error`] make an ICMP error of it, which goes
    /// back where the datagram came from.
    Unreachable = 10,
    /// Not decided yet: a packet for a backend that replies to clients directly, of which [`crate::process_direct`] decides.
    Direct = 11,
    /// A packet that does not fit: it becomes an ICMP error as one of [`Action::Unreachable`], which tells the verdict's MTU.
    TooBig = 12,
    /// A packet whose TTL or hop limit is spent: it becomes an ICMP error as one of [`Action::Unreachable`].
    TimeExceeded = 13,
}

/// Why a packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No backend is to have it.
    Refused,
    /// It does not fit: packets of so many bytes do.
    TooBig(u32),
    /// Its TTL or hop limit is spent.
    TimeExceeded,
    /// There is no way to the one that it is for.
    NoHost,
}

impl Reason {
    const REFUSED: u32 = u32::MAX;
    const TIME_EXCEEDED: u32 = u32::MAX - 1;
    const NO_HOST: u32 = u32::MAX - 2;

    /// For a global function to be given.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::Refused => Self::REFUSED,
            Self::TimeExceeded => Self::TIME_EXCEEDED,
            Self::NoHost => Self::NO_HOST,
            Self::TooBig(mtu) => mtu,
        }
    }

    /// From what it was given.
    #[inline(always)]
    pub const fn from_u32(reason: u32) -> Self {
        match reason {
            Self::REFUSED => Self::Refused,
            Self::TIME_EXCEEDED => Self::TimeExceeded,
            Self::NO_HOST => Self::NoHost,
            mtu => Self::TooBig(mtu),
        }
    }
}

/// How a packet leaves.
#[derive(Clone, Copy)]
pub struct Exit {
    /// Any but [`Action::Pass`] and [`Action::Drop`].
    pub action: Action,
    /// Where to, of [`Action::Redirect`] and [`Action::Resolve`]; else [`NextHop::NONE`].
    pub hop: NextHop,
}

impl Exit {
    /// By this host's stack, or to it.
    pub const TO_STACK: Self = Self { action: Action::Deliver, hop: NextHop::NONE };
    /// To the client, which runs on this host.
    pub const TO_SELF: Self = Self { action: Action::ToSelf, hop: NextHop::NONE };
    /// Left to tc.
    pub const DEFERRED: Self = Self { action: Action::Defer, hop: NextHop::NONE };
}

/// An [`Action`] and the interface it may concern.
///
/// A struct, not an enum with a payload: a payload that only some variants have is left undefined by
/// the compiler in the others, and the verifier refuses a program that so much as copies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    action: Action,
    /// Egress ifindex of [`Action::Redirect`] and [`Action::Resolve`], MTU of [`Action::TooBig`], else zero.
    ifindex: u32,
}

impl Verdict {
    /// [`Action::Pass`].
    pub const PASS: Self = Self { action: Action::Pass, ifindex: 0 };

    /// [`Action::Defer`].
    pub const DEFER: Self = Self { action: Action::Defer, ifindex: 0 };

    /// [`Action::Icmp`].
    pub const ICMP: Self = Self { action: Action::Icmp, ifindex: 0 };

    /// [`Action::Direct`].
    pub const DIRECT: Self = Self { action: Action::Direct, ifindex: 0 };

    /// [`Action::TimeExceeded`].
    pub const TIME_EXCEEDED: Self = Self { action: Action::TimeExceeded, ifindex: 0 };

    /// [`Action::TooBig`]: packets of so many bytes fit.
    #[inline(always)]
    pub const fn too_big(mtu: u32) -> Self {
        Self { action: Action::TooBig, ifindex: mtu }
    }

    /// The answer to a TCP segment of a flow that a switch has ended: [`Action::Reset`], counted. XDP leaves it to tc, which sends
    /// out of any interface.
    #[inline(always)]
    pub fn reset(direction: Direction, world: &impl World) -> Self {
        if direction == Direction::Early {
            return Self::DEFER;
        }
        world.count(Event::EndedReset);
        Self { action: Action::Reset, ifindex: 0 }
    }

    /// [`Action::Refuse`] or [`Action::Unreachable`], with its reason counted; XDP leaves it to tc, too. What must not be answered is dropped: what is
    /// itself the end of a connection, or comes from no single host, and datagrams beyond the rate of ICMP errors.
    #[inline(always)]
    pub fn refuse<V: IpVersion>(headers: &Headers<V>, hook: &Hook<'_, impl World>, reason: Event) -> Self {
        let (is_udp, world) = (headers.protocol() == Protocol::Udp, hook.world);
        if !V::is_of_one_host(headers.src) || !(is_udp || headers.transport.can_be_refused()) {
            return Self::drop(world, reason);
        }
        if hook.direction == Direction::Early {
            return Self::DEFER;
        }
        if is_udp && (ethernet::is_tagged(headers.l3) || !world.may_send_error(false)) {
            return Self::drop(world, reason);
        }
        world.count(reason);
        Self { action: if is_udp { Action::Unreachable } else { Action::Refuse }, ifindex: 0 }
    }

    /// Why an ICMP error answers the packet, if one does.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self.action {
            Action::TooBig => Reason::TooBig(self.ifindex),
            Action::TimeExceeded => Reason::TimeExceeded,
            _ => Reason::Refused,
        }
    }

    /// What an exit says.
    #[inline(always)]
    pub const fn out_of(exit: Exit) -> Self {
        Self { action: exit.action, ifindex: exit.hop.ifindex() }
    }

    /// [`Action::Drop`], with its reason counted. There is no other way to drop a frame.
    #[inline(always)]
    pub fn drop(world: &impl World, reason: Event) -> Self {
        world.count(reason);
        Self { action: Action::Drop, ifindex: 0 }
    }

    /// From what a global function has returned.
    #[inline(always)]
    pub const fn from_u64(verdict: u64) -> Self {
        let action = match (verdict >> 32) as u32 {
            1 => Action::Defer,
            2 => Action::Deliver,
            3 => Action::Redirect,
            4 => Action::Resolve,
            5 => Action::ToSelf,
            6 => Action::Drop,
            11 => Action::Direct,
            12 => Action::TooBig,
            13 => Action::TimeExceeded,
            _ => Action::Pass,
        };
        Self { action, ifindex: verdict as u32 }
    }

    /// For a global function to return. It decides: [`Action::Icmp`], [`Action::Reset`] and the two that refuse are no results.
    #[inline(always)]
    pub const fn to_u64(self) -> u64 {
        (self.action as u64) << 32 | self.ifindex as u64
    }

    /// What to do.
    #[inline(always)]
    pub const fn action(self) -> Action {
        self.action
    }

    /// Egress ifindex of [`Action::Redirect`] and [`Action::Resolve`], MTU of [`Action::TooBig`], else zero.
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        self.ifindex
    }
}
