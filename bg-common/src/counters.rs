//! Counters, all per CPU: written by plain adds, summed by user space.

use bytemuck::{Pod, Zeroable};

/// Traffic of one service and colour from clients to backends: row `2 * service + colour` of the
/// `traffic` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets sent on. A GSO packet in tc mode counts as one.
    pub packets: u64,
    /// Octets of those packets' frames, as received.
    pub bytes: u64,
    /// Flows opened.
    pub flows_opened: u64,
}

/// Rows of the `events` map: every drop has its reason here, beside what an operator wants to see
/// though nothing was dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Drop: a packet for a VIP is cut short or its length fields lie.
    Malformed = 0,
    /// Drop: two open flows of one client would look alike to the backend, and no other backend of
    /// the colour could tell them apart.
    ReplyCollision = 1,
    /// Drop: a UDP reply from the colour that a cut has taken the flow away from.
    EndedFlow = 2,
    /// Drop: the map row that the packet's service refers to is not there. A damaged instance.
    MissingRow = 3,
    /// Never counted any more: XDP looks before it rewrites whether the egress interface takes redirected frames, and
    /// leaves the packet to tc if not. The row and its name stay.
    EgressGone = 4,
    /// Not dropped: handed to the host's stack because there is no route, or because the frame is of a VLAN.
    NextHopByStack = 5,
    /// Not dropped: left to the host because its TTL or hop limit does not allow another hop.
    TtlExpired = 6,
    /// Not dropped: left to the host because it exceeds the egress MTU.
    TooBig = 7,
    /// Not dropped: sent on without a row, because the flow table would not take one.
    Unpinned = 8,
    /// Drop: the reset by which a backend refused a connection that was picked up in mid-stream. The connection may be one
    /// of the other colour, which gets its next segment.
    SecondChance = 9,
    /// Not dropped: a new flow has evicted one that was open, and in which both ends had taken part.
    PushedOut = 10,
}

impl Event {
    /// All, in the order of their rows.
    pub const ALL: [Self; 11] = [
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
    ];
    /// Number of rows of the `events` map.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Whether the packet was dropped.
    pub const fn is_drop(self) -> bool {
        (self as u32) < Self::NextHopByStack as u32 || matches!(self, Self::SecondChance)
    }

    /// Name as in `bgctl status --json`.
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
        }
    }
}

crate::assert_layout!(Traffic, size 24, align 8, packets at 0, bytes at 8, flows_opened at 16);

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
