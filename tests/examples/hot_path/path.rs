//! What each path consists of: a scenario, the packets that come before, the packet that is counted.

use bg_common::{Mode, Protocol};
use bg_ebpf::Action;
use bg_tests::{
    frames::{PacketSpec, tcp_flags},
    twin::{BackendAt, Scenario, ServiceAt},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A path through the engine.
pub(crate) struct Path {
    /// Name of its budget.
    pub(crate) name: &'static str,
    /// Which of the ways.
    pub(crate) kind: Kind,
    /// IPv6, else IPv4.
    pub(crate) v6: bool,
    /// Transport protocol.
    pub(crate) protocol: Protocol,
    /// VLAN tags.
    pub(crate) tags: u8,
}

/// Ways through the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Client to backend, of a flow that was seen both ways, this tick already.
    Open,
    /// Backend to client, of such a flow.
    Reply,
    /// The first packet of a flow.
    New,
    /// To an address that no service has.
    Other,
}

impl Path {
    /// What stands in the maps.
    pub(crate) fn scenario(&self) -> Scenario {
        let mut scenario = Scenario::default();
        let deployment = scenario.deployment();
        let backends = vec![BackendAt { address: self.backend(), out_of: Some(3) }];
        scenario.service(&ServiceAt {
            deployment,
            vip: self.vip(),
            preview: None,
            protocol: self.protocol,
            mode: Mode::Nat,
            backends: [backends.clone(), backends],
        });
        scenario
    }

    /// What must become of the packet.
    pub(crate) fn action(&self) -> Action {
        match self.kind {
            Kind::Other => Action::Pass,
            // Only the host's stack knows the VLAN's interface: XDP leaves the frame to tc.
            _ if self.tags > 0 => Action::Defer,
            _ => Action::Redirect,
        }
    }

    /// What each flow has sent before, from both ends; a frame of the first flow, for [`Path::of_flow`].
    pub(crate) fn before(&self) -> Vec<Vec<u8>> {
        if !matches!(self.kind, Kind::Open | Kind::Reply) {
            return Vec::new();
        }
        let (client, backend) = (self.client(0), self.backend());
        let handshake = [
            (client, self.vip(), tcp_flags::SYN),
            (backend, client, tcp_flags::SYN | tcp_flags::ACK),
            (client, self.vip(), tcp_flags::ACK),
            (backend, client, tcp_flags::ACK),
        ];
        handshake.map(|(from, to, flags)| self.packet(from, to, flags)).into()
    }

    /// The packet that is counted, as the first flow's.
    pub(crate) fn counted(&self) -> Vec<u8> {
        let client = self.client(0);
        match self.kind {
            Kind::Open => self.packet(client, self.vip(), tcp_flags::ACK),
            Kind::Reply => self.packet(self.backend(), client, tcp_flags::ACK),
            Kind::New => self.packet(client, self.vip(), tcp_flags::SYN),
            Kind::Other => self.packet(client, self.at([192, 0, 2, 99], 443), tcp_flags::ACK),
        }
    }

    /// A frame of the first flow as another's. Its checksums stay, and are wrong then: the engine updates them, and
    /// looks at none. Building each frame anew would be nearly all of what callgrind has to go through.
    pub(crate) fn of_flow(&self, first: &[u8], flow: u16) -> Vec<u8> {
        let [known, wanted] = [0, flow].map(|flow| {
            let client = self.client(flow);
            let address = match client.ip() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            (address, client.port().to_be_bytes())
        });
        let len = known.0.len();
        let addresses = 14 + 4 * usize::from(self.tags) + if self.v6 { 8 } else { 12 };
        let (source, ports) = (addresses..addresses + len, addresses + 2 * len);
        let mut frame = first.to_vec();
        let (address, port) = match first[source.clone()] == known.0 {
            true => (source, ports..ports + 2),
            false => (addresses + len..ports, ports + 2..ports + 4),
        };
        assert!(frame[address.clone()] == known.0 && frame[port.clone()] == known.1, "a frame of the first flow");
        frame[address].copy_from_slice(&wanted.0);
        frame[port].copy_from_slice(&wanted.1);
        frame
    }

    fn packet(&self, from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
        let spec = match self.protocol {
            Protocol::Tcp => PacketSpec::tcp(from, to, flags),
            Protocol::Udp => PacketSpec::udp(from, to),
        };
        PacketSpec { tags: self.tags, ..spec }.frame()
    }

    fn vip(&self) -> SocketAddr {
        self.at([203, 0, 113, 10], 443)
    }

    fn backend(&self) -> SocketAddr {
        self.at([10, 0, 1, 11], 8443)
    }

    /// Addresses and ports differ, as those of many clients do.
    fn client(&self, flow: u16) -> SocketAddr {
        let [high, low] = flow.to_be_bytes();
        self.at([198, 18, high, low], 10_000 + 7 * flow)
    }

    fn at(&self, octets: [u8; 4], port: u16) -> SocketAddr {
        let address: IpAddr = if self.v6 {
            Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(u32::from_be_bytes(octets))).into()
        } else {
            Ipv4Addr::from(octets).into()
        };
        SocketAddr::new(address, port)
    }
}
