//! The addresses of all labs, from the ranges for documentation and private use.

use bg_common::Colour;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// 2001:db8:`net`::`host`.
const fn v6(net: u16, host: [u16; 2]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, host[0], host[1]))
}

/// The client.
pub const CLIENT_V4: IpAddr = v4(192, 0, 2, 2);
pub const CLIENT_V6: IpAddr = v6(0xc, [0, 2]);
/// A second address of the client, from a prefix for testers.
pub const TESTER_V4: IpAddr = v4(198, 51, 100, 2);
pub const TESTER_V6: IpAddr = v6(0x7, [0, 2]);
/// The edge towards the client.
pub const FRONT_V4: IpAddr = v4(192, 0, 2, 1);
pub const FRONT_V6: IpAddr = v6(0xc, [0, 1]);
/// The edge towards the backends.
pub const BACK_V4: IpAddr = v4(10, 0, 0, 1);
pub const BACK_V6: IpAddr = v6(0xb, [0, 1]);
/// The router between the edge and the backends, if there is one.
pub const ROUTER_V4: IpAddr = v4(10, 0, 0, 2);
pub const ROUTER_V6: IpAddr = v6(0xb, [0, 2]);
/// The VIPs of the services.
pub const VIP_V4: IpAddr = v4(203, 0, 113, 10);
pub const VIP_V6: IpAddr = v6(0xf, [0, 0x10]);
/// The VIPs of the deployment that is not under test.
pub const NEIGHBOUR_V4: IpAddr = v4(203, 0, 113, 20);
pub const NEIGHBOUR_V6: IpAddr = v6(0xf, [0, 0x20]);

/// Name, colour and addresses of the backends.
pub const BACKENDS: [(&str, Colour, [IpAddr; 2]); 4] = [
    ("blue1", Colour::Blue, [v4(10, 0, 1, 11), v6(0xb, [1, 0x11])]),
    ("blue2", Colour::Blue, [v4(10, 0, 1, 12), v6(0xb, [1, 0x12])]),
    ("green1", Colour::Green, [v4(10, 0, 2, 11), v6(0xb, [2, 0x11])]),
    ("green2", Colour::Green, [v4(10, 0, 2, 12), v6(0xb, [2, 0x12])]),
];
