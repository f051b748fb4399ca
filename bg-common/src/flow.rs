//! Flows: the table entry of each direction.

use crate::{Addr, NextHop};
use bytemuck::{Pod, Zeroable};

/// Five-tuple of an IPv4 packet as it arrives: client to VIP in the forward direction, backend to
/// client in the reply direction. Words only, so that hashing and comparing never see padding.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey4 {
    /// Source address, network order.
    pub src: u32,
    /// Destination address, network order.
    pub dst: u32,
    /// Source port and destination port, as the four octets stand on the wire.
    pub ports: u32,
    /// [`crate::Protocol`].
    pub protocol: u32,
}

/// Five-tuple of an IPv6 packet as it arrives; see [`FlowKey4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey6 {
    /// Source address, network order.
    pub src: Addr,
    /// Destination address, network order.
    pub dst: Addr,
    /// Source port and destination port, as the four octets stand on the wire.
    pub ports: u32,
    /// [`crate::Protocol`].
    pub protocol: u32,
}

/// What kind of entry it is and how it came to its colour: bits of [`Flow::role`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRole;

impl FlowRole {
    /// The entry of the reply direction, backend to client.
    pub const REPLY: u8 = 1;
    /// The client sent to the preview address, which its replies must bear.
    pub const PREVIEW: u8 = 2;
    /// The flow belongs to a tester or came by the preview address: idle colour only.
    pub const IDLE_ONLY: u8 = 4;
}

/// How far one end of a TCP connection has come: bits of [`Flow::client_state`] and
/// [`Flow::backend_state`]. Each end has a byte of its own, so that the CPUs of the two directions
/// never write the same one. UDP leaves both zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState;

impl TcpState {
    /// This end has sent something beyond its SYN.
    pub const ESTABLISHED: u8 = 1;
    /// This end has sent FIN.
    pub const FIN: u8 = 2;
    /// This end has sent RST.
    pub const RESET: u8 = 4;

    /// Whether the connection has ended: both FINs, or a RST from either end.
    #[inline(always)]
    pub const fn ended(client: u8, backend: u8) -> bool {
        (client | backend) & Self::RESET != 0 || client & backend & Self::FIN != 0
    }
}

/// Value of the flow tables, for both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Slot of the backend.
    pub backend: u32,
    /// Epoch that the slot had when the flow was opened.
    pub epoch: u32,
    /// Generation of the live word that the flow was opened by.
    pub generation: u32,
    /// Tick of the last packet in this direction, coarse.
    pub last_seen: u32,
    /// Sequence number of the SYN that opened it, as on the wire: tells a retransmission from a new
    /// connection. Zero for UDP, and for a connection that was picked up in its middle.
    pub isn: u32,
    /// Index of the service.
    pub service: u16,
    /// Index of the deployment.
    pub deployment: u16,
    /// Bits of [`FlowRole`].
    pub role: u8,
    /// [`crate::Colour`] of the backend.
    pub colour: u8,
    /// Bits of [`TcpState`] for the client's end; in the forward entry.
    pub client_state: u8,
    /// Bits of [`TcpState`] for the backend's end; in the forward entry. In a reply entry
    /// [`TcpState::RESET`] says that its flow is over and the entry rewrites nothing any more.
    pub backend_state: u8,
    /// Always zero.
    pub reserved: u32,
    /// Next hop towards the client; used in the reply direction, where destinations are many.
    pub next_hop: NextHop,
}

crate::assert_layout!(FlowKey4, size 16, align 8, src at 0, dst at 4, ports at 8, protocol at 12);
crate::assert_layout!(FlowKey6, size 40, align 8, src at 0, dst at 16, ports at 32, protocol at 36);
crate::assert_layout!(
    Flow, size 56, align 8,
    backend at 0, epoch at 4, generation at 8, last_seen at 12, isn at 16, service at 20, deployment at 22,
    role at 24, colour at 25, client_state at 26, backend_state at 27, reserved at 28, next_hop at 32
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_ends_by_two_fins_or_one_reset() {
        use TcpState as S;
        assert!(!S::ended(S::ESTABLISHED, S::ESTABLISHED));
        assert!(!S::ended(S::ESTABLISHED | S::FIN, S::ESTABLISHED));
        assert!(!S::ended(0, S::FIN));
        assert!(S::ended(S::FIN, S::ESTABLISHED | S::FIN));
        assert!(S::ended(S::RESET, 0) && S::ended(0, S::RESET));
    }
}
