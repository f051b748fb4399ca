//! An edge with bgctl, like that of `datapath`, for parts that measure commands. Nothing else runs
//! in it.

use super::test_run::EDGE_MAC;
use crate::workspace;
use anyhow::{Context, Result};
use bg_tests::{Namespace, Sandbox, output};
use bg_userspace::Paths;
use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The deployment that is applied and switched.
pub(super) const DEPLOYMENT: &str = "shop";
/// Its interface towards clients.
pub(super) const CLIENT_SIDE: &str = "c0";
/// Its interface towards backends. Frames that leave by it arrive at [`BACKEND`].
pub(super) const BACKEND_SIDE: &str = "b0";
/// The other end of [`BACKEND_SIDE`].
pub(super) const BACKEND: &str = "b0-far";

/// The edge. Dropping it removes it.
pub(super) struct Edge {
    /// The namespace in which bgctl runs.
    pub(super) namespace: Namespace,
    program: PathBuf,
    /// This is the last field, so that the directories are removed after the namespace.
    sandbox: Sandbox,
}

impl Edge {
    /// Creates the edge. Nothing is attached yet.
    pub(super) fn create() -> Result<Self> {
        let sandbox = Sandbox::create()?;
        let namespace = wire(&sandbox)?;
        // The green backends' network; the blue ones' is there.
        namespace.ip(&format!("address add 10.0.2.254/24 dev {BACKEND_SIDE}"))?;
        for address in ["10.0.1.11", "10.0.2.11"] {
            let neighbour = format!("neighbour replace {address} lladdr 02:00:00:00:00:11");
            namespace.ip(&format!("{neighbour} dev {BACKEND_SIDE} nud permanent"))?;
        }
        Ok(Self { namespace, program: bgctl(), sandbox })
    }

    /// The paths of the instance.
    pub(super) fn paths(&self) -> Paths {
        Paths { pin_root: self.sandbox.pin_root().to_owned(), state_dir: self.sandbox.state_dir() }
    }

    /// A bgctl command. It runs in the namespace of the thread that starts it, which must be the
    /// edge's, because nsenter would be measured too.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--pin-root").arg(self.sandbox.pin_root()).arg("--state-dir").arg(self.sandbox.state_dir());
        command.args(arguments);
        command
    }

    /// Runs it to its end and returns its results.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Runs it to its end and returns how long that took, from before the process is started until after its end. Its results
    /// are discarded. A failure is an error.
    pub(super) fn timed(&self, arguments: &[&str]) -> Result<Duration> {
        timed(&mut self.command(arguments))
    }

    /// The path of a file of the edge.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.sandbox.dir().join(name)
    }

    /// Writes a configuration to the edge's file and returns its path.
    pub(super) fn write_config(&self, config: &str) -> Result<String> {
        let path = self.sandbox.dir().join("bgctl.toml");
        fs::write(&path, config)?;
        Ok(path.display().to_string())
    }
}

/// Runs a command to its end and returns how long that took, from before its process is started until after its end.
pub(super) fn timed(command: &mut Command) -> Result<Duration> {
    command.stdout(Stdio::null());
    let start = Instant::now();
    output(command)?;
    Ok(start.elapsed())
}

/// The bgctl to measure: the one that the variable BGCTL names, else that of the release profile.
pub(super) fn bgctl() -> PathBuf {
    std::env::var_os("BGCTL").map_or_else(|| workspace::target_dir().join("release/bgctl"), PathBuf::from)
}

pub(super) fn ifindex(namespace: &Namespace, name: &str) -> Result<u32> {
    let shown = namespace.ip(&format!("-oneline link show {name}"))?;
    let index = shown.split(':').next().and_then(|index| index.trim().parse().ok());
    index.with_context(|| format!("ip does not tell the index of {name}: {shown}"))
}

/// Creates the edge with interfaces towards a client and a backend, so that routes, neighbours and interfaces are real.
pub(super) fn wire(sandbox: &Sandbox) -> Result<Namespace> {
    let edge = Namespace::create(sandbox.id(), "edge")?;
    let mac = EDGE_MAC.map(|octet| format!("{octet:02x}")).join(":");
    for (name, side) in [("c0", "192.0.2.254/24 2001:db8:1::fe/64"), ("b0", "10.0.1.254/24 fd00:1::fe/64")] {
        edge.ip(&format!("link add {name} address {mac} type veth peer name {name}-far"))?;
        edge.ip(&format!("link set {name}-far up"))?;
        edge.ip(&format!("link set {name} up"))?;
        for address in side.split(' ') {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            edge.ip(&format!("address add {address} dev {name} {nodad}"))?;
        }
    }
    edge.sysctl("ipv4/ip_forward", "1")?;
    edge.sysctl("ipv6/conf/all/forwarding", "1")?;
    for (address, dev) in [("192.0.2.1", "c0"), ("2001:db8:1::1", "c0"), ("10.0.1.11", "b0"), ("fd00:1::11", "b0")] {
        edge.ip(&format!("neighbour replace {address} lladdr 02:00:00:00:00:11 dev {dev} nud permanent"))?;
    }
    edge.ip("route add 198.18.0.0/15 via 192.0.2.1 dev c0")?;
    edge.ip("-6 route add 2001:db8:c::/48 via 2001:db8:1::1 dev c0")?;
    Ok(edge)
}
