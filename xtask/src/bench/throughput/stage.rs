//! The network for frames and connections, with bgctl in it.

use super::traffic::Traffic;
use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Bgctl, HTTP_PORT, Lab, Offloads, UDP_PORT,
    address::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6},
    config::{DEPLOYMENT, VIP_HTTP_PORT, VIP_UDP_PORT},
};
use std::{net::SocketAddr, path::Path};

/// Port of iperf3, at the VIP and at the backends.
pub(in crate::bench) const STREAM_PORT: u16 = 5201;

/// The services: name, protocol, port of the VIP, port of the backends.
pub(in crate::bench) const SERVICES: [(&str, &str, u16, u16); 3] = [
    ("web", "tcp", VIP_HTTP_PORT, HTTP_PORT),
    ("echo", "udp", VIP_UDP_PORT, UDP_PORT),
    ("stream", "tcp", STREAM_PORT, STREAM_PORT),
];

/// A client, an edge and backends, with routes back to all clients of the traffics.
pub(in crate::bench) fn lab(offloads: Offloads) -> Result<Lab> {
    let lab = Lab::line(offloads)?;
    for (ipv6, via) in [(false, CLIENT_V4), (true, CLIENT_V6)] {
        let clients = Traffic { ipv6, protocol: bg_common::Protocol::Udp, flows: 1 }.clients();
        let family = if ipv6 { "-6 " } else { "" };
        lab.edge.ip(&format!("{family}route add {clients} via {via}"))?;
    }
    Ok(lab)
}

/// Attaches this bgctl to the edge's interfaces in a mode and applies [`SERVICES`], blue live.
pub(in crate::bench) fn attach(lab: &Lab, program: &Path, mode: &str) -> Result<Bgctl> {
    attach_with(lab, program, mode, &config(lab))
}

/// The same with another configuration.
pub(in crate::bench) fn attach_with(lab: &Lab, program: &Path, mode: &str, config: &str) -> Result<Bgctl> {
    let bgctl = lab.bgctl_at(program.to_owned());
    bgctl.run(&[&["attach", "--mode", mode], lab.interfaces.as_slice()].concat())?;
    bgctl.apply(config)?;
    let status = bgctl.json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces in the status")?;
    let as_asked = interfaces.iter().filter(|interface| interface["mode"] == mode).count();
    ensure!(as_asked == lab.interfaces.len(), "expected {:?} attached as {mode}, got {interfaces:?}", lab.interfaces);
    Ok(bgctl)
}

fn config(lab: &Lab) -> String {
    // Flows are opened once and stay silent while others are measured.
    let mut config = format!("[deployments.{DEPLOYMENT}]\nudp_idle_timeout = \"1h\"\n");
    for (family, vip) in [VIP_V4, VIP_V6].into_iter().enumerate() {
        for (name, protocol, vip_port, port) in SERVICES {
            let backend = |colour| {
                let backend = lab.backends.iter().find(|backend| backend.colour == colour);
                backend.map(|backend| SocketAddr::new(backend.addresses[family], port).to_string()).unwrap_or_default()
            };
            config += &format!(
                "[[deployments.{DEPLOYMENT}.services]]\nname = \"{name}{family}\"\nvip = \"{}\"\n\
                 protocol = \"{protocol}\"\nmode = \"nat\"\nblue = [\"{}\"]\ngreen = [\"{}\"]\n",
                SocketAddr::new(vip, vip_port),
                backend(Colour::Blue),
                backend(Colour::Green),
            );
        }
    }
    config
}

/// The counts of bgctl over all services, for blue.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Counted {
    /// Packets from clients.
    pub(in crate::bench) packets: u64,
    pub(in crate::bench) flows_opened: u64,
}

pub(in crate::bench) fn counted(bgctl: &Bgctl) -> Result<Counted> {
    let deployment = bgctl.deployment(DEPLOYMENT)?;
    let services = deployment["services"].as_array().context("no services in the status")?;
    let sum = |key: &str| {
        let of_services = services.iter().map(|service| service["blue"][key].as_u64());
        of_services.sum::<Option<u64>>().with_context(|| format!("no {key} in the status"))
    };
    Ok(Counted { packets: sum("packets")?, flows_opened: sum("flows_opened")? })
}
