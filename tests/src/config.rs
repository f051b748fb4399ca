//! Configurations for labs.

use crate::{
    server::{HTTP_PORT, UDP_PORT},
    topology::{Backend, Lab, address},
};
use bg_common::Colour;
use std::net::{IpAddr, SocketAddr};

/// The name of the deployment that labs switch.
pub const DEPLOYMENT: &str = "shop";
/// The name of the deployment before it, which no lab switches.
pub const NEIGHBOUR: &str = "mail";
/// Port at the VIP of the HTTP service.
pub const VIP_HTTP_PORT: u16 = 80;
/// Port at the VIP of the UDP service.
pub const VIP_UDP_PORT: u16 = 53;
/// Port of the preview addresses.
pub const PREVIEW_PORT: u16 = 9080;

/// The address of the HTTP service of a family.
pub fn http_vip(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, VIP_HTTP_PORT)
}

/// The address of the UDP service of a family.
pub fn udp_vip(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, VIP_UDP_PORT)
}

/// The configuration of labs: [`NEIGHBOUR`], which is the first deployment, and [`DEPLOYMENT`], which is under test. With only one
/// deployment, code that always uses the first one would pass.
pub fn shop(lab: &Lab, mode: &str, deployment_keys: &str) -> String {
    neighbour(lab, mode) + &shop_alone(lab, mode, deployment_keys)
}

/// The deployment [`NEIGHBOUR`]. It has the same machines as the other deployment, and differs in everything else. Green
/// is live.
pub fn neighbour(lab: &Lab, mode: &str) -> String {
    let mut config = format!(
        "[deployments.{NEIGHBOUR}]\ninitial = \"green\"\non_switch = \"cut\"\ndrain_timeout = \"1h\"\n\
         tcp_idle_timeout = \"1h\"\nudp_idle_timeout = \"5s\"\ntesters = [\"192.0.2.200\", \"2001:db8:77::/48\"]\n"
    );
    for (family, vip) in [address::NEIGHBOUR_V4, address::NEIGHBOUR_V6].into_iter().enumerate() {
        let [blue, green] = Colour::ALL.map(|colour| backends(lab, family, colour, HTTP_PORT));
        config += &format!(
            "\n[[deployments.{NEIGHBOUR}.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"{mode}\"\n\
             blue = [{blue}]\ngreen = [{green}]\n",
            http_vip(vip)
        );
    }
    config + "\n"
}

fn backends(lab: &Lab, family: usize, colour: Colour, port: u16) -> String {
    let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
    let address = |backend: &Backend| format!("\"{}\"", SocketAddr::new(backend.addresses[family], port));
    of_colour.map(address).collect::<Vec<_>>().join(", ")
}

/// Only [`DEPLOYMENT`]: HTTP with a preview address, and UDP, over IPv4 and IPv6, with
/// the client's second address as a tester.
pub fn shop_alone(lab: &Lab, mode: &str, deployment_keys: &str) -> String {
    let mut config = format!(
        "[deployments.{DEPLOYMENT}]\ntesters = [\"{}/24\", \"{}/48\"]\n{deployment_keys}\n",
        address::TESTER_V4.to_string().replace(".2", ".0"),
        address::TESTER_V6.to_string().replace("::2", "::"),
    );
    for (family, vip) in [address::VIP_V4, address::VIP_V6].into_iter().enumerate() {
        let version = if vip.is_ipv4() { 4 } else { 6 };
        for (name, protocol, vip_port, port) in
            [("web", "tcp", VIP_HTTP_PORT, HTTP_PORT), ("echo", "udp", VIP_UDP_PORT, UDP_PORT)]
        {
            config += &format!(
                "\n[[deployments.{DEPLOYMENT}.services]]\nname = \"{name}{version}\"\nvip = \"{}\"\n\
                 protocol = \"{protocol}\"\nmode = \"{mode}\"\nblue = [{}]\ngreen = [{}]\n",
                SocketAddr::new(vip, vip_port),
                backends(lab, family, Colour::Blue, port),
                backends(lab, family, Colour::Green, port),
            );
            if protocol == "tcp" {
                config += &format!("preview = \"{}\"\n", SocketAddr::new(vip, PREVIEW_PORT));
            }
        }
    }
    config
}
