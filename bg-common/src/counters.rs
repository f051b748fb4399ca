//! Counters. All are per CPU: programs use plain additions, and user space computes the sums.

use bytemuck::{Pod, Zeroable};

/// The traffic of one service and colour from clients to backends: row `2 * service + colour` of the
/// `traffic` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets that were sent to backends. In mode tc, a GSO packet counts as one.
    pub packets: u64,
    /// Bytes of these packets' frames, as received.
    pub bytes: u64,
    /// Flows that were opened.
    pub flows_opened: u64,
    /// Copies of datagrams that were sent to backends of this colour, because the service has a mirror. They count nowhere else.
    pub mirrored: u64,
}

/// When new flows were decided around a switch: a row of the `receipts` map, for each CPU. Nanoseconds of `CLOCK_MONOTONIC`; zero if
/// there was none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SwitchTimes {
    /// The first one by the new word, on its live colour.
    pub first_new: u64,
    /// The last one by an older word.
    pub last_old: u64,
}

/// The rows of the `events` map: the reasons of all drops, and other events that an operator wants to
/// see.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Drop: a packet for a VIP is truncated, or its length fields are wrong.
    Malformed = 0,
    /// Drop: the backend could not distinguish the flow from another open flow of the same client, and no other backend of
    /// the colour could.
    ReplyCollision = 1,
    /// Drop: a UDP reply from a colour whose flow was ended by a cut.
    EndedFlow = 2,
    /// Drop: the map row to which the packet's service refers does not exist. The instance is damaged.
    MissingRow = 3,
    /// No longer counted. Before rewriting, XDP checks whether the egress interface takes redirected frames, and
    /// leaves the packet to tc if it does not. The row and its name remain.
    EgressGone = 4,
    /// Not dropped: passed to the host's stack because there is no route, or because the frame has a VLAN tag.
    NextHopByStack = 5,
    /// Not dropped: passed to the host's stack because its TTL or hop limit does not allow another hop.
    TtlExpired = 6,
    /// Not dropped: passed to the host's stack because it exceeds the egress MTU.
    TooBig = 7,
    /// Not dropped: sent to the backend without a row, because the flow table had none.
    Unpinned = 8,
    /// Drop: the reset by which a backend refused a connection that was picked up in mid-stream. The connection may be one
    /// of the other colour, which gets its next segment.
    SecondChance = 9,
    /// Not dropped: a new flow has evicted an open flow in which both ends had taken part.
    PushedOut = 10,
    /// Not dropped: a TCP segment of a flow that a switch or a drain has ended was answered with a reset.
    EndedReset = 11,
    /// Drop: it would have opened a flow of a deployment that was frozen to drop such packets.
    Frozen = 12,
    /// Not dropped for good: it would have opened a flow of a frozen deployment, and is played back when that is thawed.
    Held = 13,
    /// Drop: it would have been held, but there was no room, or its frame was too long, or one that is yet to be segmented.
    HoldOverflow = 14,
    /// Drop: when a held packet was to be played back, it was too old, or its interface was gone.
    HeldTooLong = 15,
    /// Drop: a tester's packet, or one to a preview address, while the idle colour of its service has no backend for new flows. A TCP client
    /// gets a reset in its place.
    IdleNotReady = 16,
    /// Drop: the copy of a datagram, because it could not be made, or the idle colour has no backend for it, or one that could not tell it from a
    /// flow of the client. The datagram itself went on.
    MirrorLost = 17,
    /// Drop: what a backend of the idle colour has answered to a copy, or an ICMP error about a copy.
    MirrorAnswer = 18,
    /// Drop: it would have opened a flow, but every backend of the colour is down, and the health checks are configured to refuse it then. The
    /// client of a new connection gets a reset in its place, and that of an open one, whose row was lost, nothing.
    AllDown = 19,
    /// Drop: a packet for a backend in mode `l2dsr`, `ipip` or `gue`, to which there is no way: no route, in mode `l2dsr` a route by a
    /// gateway, or no address of this host to send from.
    NoWay = 20,
    /// Drop: with the outer headers of `ipip` or `gue`, or as it is in `l2dsr`, the packet exceeds the egress MTU. The client is told so by an
    /// ICMP error, as far as their rate allows.
    DirectTooBig = 21,
    /// Drop: a packet for such a backend whose TTL or hop limit does not allow another hop. The client is told so in the same way.
    DirectExpired = 22,
}

impl Event {
    /// All events, in the order of their rows.
    pub const ALL: [Self; 23] = [
        Self::Malformed,
        Self::ReplyCollision,
        Self::EndedFlow,
        Self::MissingRow,
        Self::EgressGone,
        Self::NextHopByStack,
        Self::TtlExpired,
        Self::TooBig,
        Self::Unpinned,
        Self::SecondChance,
        Self::PushedOut,
        Self::EndedReset,
        Self::Frozen,
        Self::Held,
        Self::HoldOverflow,
        Self::HeldTooLong,
        Self::IdleNotReady,
        Self::MirrorLost,
        Self::MirrorAnswer,
        Self::AllDown,
        Self::NoWay,
        Self::DirectTooBig,
        Self::DirectExpired,
    ];
    /// The number of rows of the `events` map.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Whether the packet was dropped.
    pub const fn is_drop(self) -> bool {
        (self as u32) < Self::NextHopByStack as u32
            || matches!(
                self,
                Self::SecondChance
                    | Self::Frozen
                    | Self::HoldOverflow
                    | Self::HeldTooLong
                    | Self::IdleNotReady
                    | Self::MirrorLost
                    | Self::MirrorAnswer
                    | Self::AllDown
                    | Self::NoWay
                    | Self::DirectTooBig
                    | Self::DirectExpired
            )
    }

    /// Its name in `bgctl status --json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::ReplyCollision => "reply_collision",
            Self::EndedFlow => "ended_flow",
            Self::MissingRow => "missing_row",
            Self::EgressGone => "egress_gone",
            Self::NextHopByStack => "next_hop_by_stack",
            Self::TtlExpired => "ttl_expired",
            Self::TooBig => "too_big",
            Self::Unpinned => "unpinned",
            Self::SecondChance => "second_chance",
            Self::PushedOut => "pushed_out",
            Self::EndedReset => "ended_reset",
            Self::Frozen => "frozen",
            Self::Held => "held",
            Self::HoldOverflow => "hold_overflow",
            Self::HeldTooLong => "held_too_long",
            Self::IdleNotReady => "idle_not_ready",
            Self::MirrorLost => "mirror_lost",
            Self::MirrorAnswer => "mirror_answer",
            Self::AllDown => "all_down",
            Self::NoWay => "no_way",
            Self::DirectTooBig => "direct_too_big",
            Self::DirectExpired => "direct_expired",
        }
    }
}

crate::assert_layout!(SwitchTimes, size 16, align 8, first_new at 0, last_old at 8);
crate::assert_layout!(Traffic, size 32, align 8, packets at 0, bytes at 8, flows_opened at 16, mirrored at 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_stands_at_its_own_row() {
        for (row, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, row);
        }
    }
}
