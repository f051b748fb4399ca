//! Configurations for labs.

use crate::{
    server::{HTTP_PORT, UDP_PORT},
    topology::{Lab, address},
};
use bg_common::Colour;
use std::net::{IpAddr, SocketAddr};

/// The deployment that labs switch.
pub const DEPLOYMENT: &str = "shop";
/// Port at the VIP of the HTTP service.
pub const VIP_HTTP_PORT: u16 = 80;
/// Port at the VIP of the UDP service.
pub const VIP_UDP_PORT: u16 = 53;
/// Port of the preview addresses.
pub const PREVIEW_PORT: u16 = 9080;

/// Where the HTTP service of a family is found.
pub fn http_vip(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, VIP_HTTP_PORT)
}

/// Where the UDP service of a family is found.
pub fn udp_vip(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, VIP_UDP_PORT)
}

/// The deployment [`DEPLOYMENT`] of a lab: HTTP with a preview address and UDP, over IPv4 and IPv6, with
/// the client's second address as a tester.
pub fn shop(lab: &Lab, mode: &str, deployment_keys: &str) -> String {
    let mut config = format!(
        "[deployments.{DEPLOYMENT}]\ntesters = [\"{}/24\", \"{}/48\"]\n{deployment_keys}\n",
        address::TESTER_V4.to_string().replace(".2", ".0"),
        address::TESTER_V6.to_string().replace("::2", "::"),
    );
    for (family, vip) in [address::VIP_V4, address::VIP_V6].into_iter().enumerate() {
        let version = if vip.is_ipv4() { 4 } else { 6 };
        let backends = |colour: Colour, port: u16| {
            let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
            of_colour
                .map(|backend| format!("\"{}\"", SocketAddr::new(backend.addresses[family], port)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        for (name, protocol, vip_port, port) in
            [("web", "tcp", VIP_HTTP_PORT, HTTP_PORT), ("echo", "udp", VIP_UDP_PORT, UDP_PORT)]
        {
            config += &format!(
                "\n[[deployments.{DEPLOYMENT}.services]]\nname = \"{name}{version}\"\nvip = \"{}\"\n\
                 protocol = \"{protocol}\"\nmode = \"{mode}\"\nblue = [{}]\ngreen = [{}]\n",
                SocketAddr::new(vip, vip_port),
                backends(Colour::Blue, port),
                backends(Colour::Green, port),
            );
            if protocol == "tcp" {
                config += &format!("preview = \"{}\"\n", SocketAddr::new(vip, PREVIEW_PORT));
            }
        }
    }
    config
}
