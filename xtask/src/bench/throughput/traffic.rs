//! The traffic: frames of a number of flows of one family and protocol.

use anyhow::Result;
use bg_common::{FrameTemplate, LiveFrame, Protocol};
use bg_tests::{
    HTTP_PORT, UDP_PORT,
    address::{BACKENDS, VIP_V4, VIP_V6},
    config::{http_vip, udp_vip},
    frames::{PacketSpec, tcp_flags},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Small frames of open flows, in random order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) struct Traffic {
    pub(in crate::bench) ipv6: bool,
    pub(in crate::bench) protocol: Protocol,
    /// A power of two.
    pub(in crate::bench) flows: u32,
}

/// The offsets of the varying parts of a frame.
pub(super) struct Offsets {
    pub(super) address: usize,
    pub(super) port: usize,
    pub(super) identification: usize,
    pub(super) filler: usize,
}

impl Traffic {
    const ETHERNET: usize = 14;

    /// Bytes of a frame.
    pub(in crate::bench) fn len(self) -> usize {
        if self.ipv6 { LiveFrame::MAX_LEN } else { LiveFrame::MIN_LEN }
    }

    pub(in crate::bench) fn name(self) -> String {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        format!("{family} {protocol}")
    }

    /// The first of the clients.
    pub(in crate::bench) fn client(self) -> IpAddr {
        match self.ipv6 {
            false => Ipv4Addr::new(198, 18, 0, 1).into(),
            true => Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    /// The network of all clients, which is reserved for benchmarks (RFC 2544, RFC 5180).
    pub(in crate::bench) fn clients(self) -> &'static str {
        if self.ipv6 { "2001:2::/48" } else { "198.18.0.0/15" }
    }

    /// The address to which clients send.
    pub(in crate::bench) fn vip(self) -> SocketAddr {
        let vip = if self.ipv6 { VIP_V6 } else { VIP_V4 };
        match self.protocol {
            Protocol::Tcp => http_vip(vip),
            Protocol::Udp => udp_vip(vip),
        }
    }

    /// The address at which it should arrive, that of the blue backend.
    pub(in crate::bench) fn backend(self) -> SocketAddr {
        let port = match self.protocol {
            Protocol::Tcp => HTTP_PORT,
            Protocol::Udp => UDP_PORT,
        };
        SocketAddr::new(BACKENDS[0].2[usize::from(self.ipv6)], port)
    }

    /// The frame of the first flow to this address, in the middle of a connection.
    pub(super) fn frame(self, to: SocketAddr) -> Result<Vec<u8>> {
        let from = SocketAddr::new(self.client(), FrameTemplate::FIRST_PORT);
        let spec = match self.protocol {
            Protocol::Tcp => PacketSpec::tcp(from, to, tcp_flags::ACK),
            Protocol::Udp => PacketSpec::udp(from, to),
        };
        let payload = vec![0; self.len() - self.headers()];
        Ok(PacketSpec { payload, ..spec }.frame())
    }

    /// Bytes of all headers.
    fn headers(self) -> usize {
        let transport = match self.protocol {
            Protocol::Tcp => 20,
            Protocol::Udp => 8,
        };
        self.transport_at() + transport
    }

    fn transport_at(self) -> usize {
        Self::ETHERNET + if self.ipv6 { 40 } else { 20 }
    }

    pub(super) fn offsets(self) -> Offsets {
        let filler = self.headers();
        let (address, identification) = match self.ipv6 {
            false => (Self::ETHERNET + 14, Self::ETHERNET + 4),
            true => (Self::ETHERNET + 22, filler),
        };
        Offsets { address, port: self.transport_at(), identification, filler }
    }
}
