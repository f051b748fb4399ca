//! The network of a contender: a client, an edge, and a machine with all backends.

use super::{crew::Crew, plan::Plan, server};
use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{Lab, Offloads, address};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

/// Backends of each colour.
pub(super) const BACKENDS: usize = 16;
/// Addresses from which connections come.
const SOURCES: u8 = 64;
const SOURCE_NET: &str = "198.18.0.0/24";
/// The service at the edge.
pub(super) const VIP_PORT: u16 = 80;

/// A network, with the backends' server running.
pub(super) struct Arena {
    _server: Crew,
    /// This is the last field, so that it is removed after what runs in it.
    pub(super) lab: Lab,
}

/// The service's address.
pub(super) fn vip() -> SocketAddr {
    SocketAddr::new(address::VIP_V4, VIP_PORT)
}

/// The address of a backend, from 0.
pub(super) fn backend(colour: Colour, number: usize) -> Ipv4Addr {
    let host = 11 + number as u8;
    Ipv4Addr::new(10, 0, 1 + colour as u8, host)
}

/// The clients' addresses.
pub(super) fn sources() -> Vec<Ipv4Addr> {
    (1..=SOURCES).map(|host| Ipv4Addr::new(198, 18, 0, host)).collect()
}

impl Arena {
    /// For so many connections. A thread of the backends' server may have so many files.
    pub(super) fn build(connections: u32, plan: &Plan) -> Result<Self> {
        let lab = Lab::line(Offloads::Wire)?;
        lab.client.ip(&format!("route add local {SOURCE_NET} dev lo"))?;
        lab.edge.ip(&format!("route add {SOURCE_NET} via {}", address::CLIENT_V4))?;
        // The backends' addresses are private. Else the client would reset what it gets from one without translation.
        lab.client.ip("route add blackhole 10.0.0.0/8")?;
        let machine = &lab.backends[0].namespace;
        for backend in Colour::ALL.into_iter().flat_map(|colour| (1..BACKENDS).map(move |n| backend(colour, n))) {
            machine.ip(&format!("address add {backend}/16 dev eth0"))?;
            lab.edge.run(&format!("ping -n -q -c 1 -W 2 {backend}"))?;
        }
        for namespace in [&lab.client, &lab.edge, machine] {
            namespace.sysctl("core/somaxconn", &server::BACKLOG.to_string())?;
            namespace.sysctl("ipv4/tcp_max_syn_backlog", &server::BACKLOG.to_string())?;
        }
        // A balancer without state leaves connections to backends behind: all in an interval, for 1.2 intervals and 9 s.
        let threads = (5 * connections).div_ceil(plan.of_thread());
        let idle = plan.interval.mul_f64(1.2);
        let server = Crew::start(machine, threads, move |_| server::start(server::PORT, idle))?;
        Ok(Self { _server: server, lab })
    }

    /// Has a proxy own the VIP, with as many ports as there are for its connections to backends.
    pub(super) fn own_vip(&self) -> Result<()> {
        let edge = &self.lab.edge;
        edge.ip(&format!("address add {}/32 dev lo", address::VIP_V4))?;
        edge.sysctl("ipv4/ip_local_port_range", "1024 65535")
    }

    /// Packets that the client has sent.
    pub(super) fn packets(&self) -> Result<u64> {
        let shown: serde_json::Value = serde_json::from_str(&self.lab.client.ip("-s -json link show dev eth0")?)?;
        let sent = shown[0]["stats64"]["tx"]["packets"].as_u64();
        sent.with_context(|| format!("no count of packets in {shown}"))
    }

    /// The processes on the edge, and the MiB of memory that they do not share.
    pub(super) fn processes(&self) -> Result<(u64, f64)> {
        let shown = bg_tests::run(&format!("ip netns pids {}", self.lab.edge.name()))?;
        let pids: Vec<&str> = shown.lines().collect();
        let kib = |pid: &&str| {
            // One that has just ended has none.
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        Ok((pids.len() as u64, pids.iter().map(kib).sum::<f64>() / 1024.0))
    }
}

/// Fails if this much memory is not free, before the machine has none.
pub(super) fn has_memory(mib: u64) -> Result<()> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    ensure!(kib / 1024 >= mib, "only {} MiB of memory are left, expected {mib}", kib / 1024);
    Ok(())
}
