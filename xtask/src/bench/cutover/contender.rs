//! The contenders. Each is set up on an edge as its manual says.

mod haproxy;
mod nftables;
mod nginx;
mod ours;

use super::{
    super::machine::is_installed,
    arena::Arena,
    plan::Plan,
    serving::{Kind, Serving},
};
use anyhow::{Context, Result, bail};
use bg_tests::Process;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// Keeps no state, and so must break connections. The benchmark fails if it is not seen to.
    Hash,
    /// bgctl, with a flow table of the default size, or with so many per cent of the rows that are needed.
    Ours(Option<u32>),
    Nftables,
    HaproxyApi,
    HaproxyReload,
    Nginx,
}

/// A contender that serves on an edge.
pub(super) trait Running {
    /// A command that changes to this state. The files that it needs are written. It must be started in the edge's namespace.
    fn change(&mut self, kind: Kind, to: Serving) -> Result<Command>;

    /// Open flows that were evicted from a flow table, if there is one that counts them.
    fn evicted(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

impl Contender {
    pub(super) const ALL: [Self; 9] = [
        Self::Hash,
        Self::Ours(None),
        Self::Ours(Some(140)),
        Self::Ours(Some(100)),
        Self::Ours(Some(25)),
        Self::Nftables,
        Self::HaproxyApi,
        Self::HaproxyReload,
        Self::Nginx,
    ];

    pub(super) fn name(self) -> String {
        match self {
            Self::Hash => "a hash without state (nftables)".into(),
            Self::Ours(None) => "ours, default flow table".into(),
            Self::Ours(Some(share)) => format!("ours, flow table of {share} % of need"),
            Self::Nftables => "nftables, connection tracking".into(),
            Self::HaproxyApi => "HAProxy, runtime API".into(),
            Self::HaproxyReload => "HAProxy, reload".into(),
            Self::Nginx => "nginx, reload".into(),
        }
    }

    /// The commands for a switch, and for a backend that goes or returns.
    pub(super) fn commands(self) -> [&'static str; 2] {
        match self {
            Self::Hash => ["`nft -f FILE`, which replaces the map's elements in one transaction"; 2],
            Self::Ours(_) => ["`bgctl switch shop COLOUR`", "`bgctl apply -c FILE`, with the backend's weight 0 or 1"],
            Self::Nftables => ["`nft -f FILE`, which replaces the map's elements in one transaction"; 2],
            Self::HaproxyApi => {
                ["`socat`: `set map FILE live COLOUR`", "`socat`: `set server NAME state drain` or `ready`"]
            }
            Self::HaproxyReload => {
                ["`haproxy -c` and `kill -USR2` of the master, as Debian's unit does, with another configuration"; 2]
            }
            Self::Nginx => ["`nginx -s reload`, with another upstream"; 2],
        }
    }

    /// The settings that differ from defaults.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Self::Hash => {
                "`notrack`; `jhash` of the client's address and port selects one of 1,024 slots, which are assigned to backends by rendezvous hashing"
            }
            Self::Ours(None) => "native XDP",
            Self::Ours(Some(_)) => "native XDP, `--flows`",
            Self::Nftables => "`dnat` to a map with one of 1,024 slots, by turns; its elements are spread evenly",
            Self::HaproxyApi | Self::HaproxyReload => {
                "TCP mode, round robin, master-worker mode, `maxconn`; no `hard-stop-after`"
            }
            Self::Nginx => {
                "`stream`, round robin, `worker_processes auto`, `worker_connections`, `backlog`; no `worker_shutdown_timeout`"
            }
        }
    }

    /// How many connections it gets, and for ours how many rows, if not the default. The table's rows are a power of two, so it is the number of connections
    /// that makes the share exact.
    pub(super) fn size(self, plan: &Plan) -> (u32, Option<u32>) {
        let share = match self {
            Self::Ours(Some(share)) => share,
            Self::Ours(None) | Self::Hash | Self::Nftables => return (plan.connections, None),
            Self::HaproxyApi | Self::HaproxyReload | Self::Nginx => return (plan.of_proxy(), None),
        };
        let wanted = f64::from(plan.connections) * f64::from(share) / 100.0;
        let rows = 1 << wanted.log2().round() as u32;
        ((f64::from(rows) * 100.0 / f64::from(share)).round() as u32, Some(rows))
    }

    /// Why it cannot run on this machine.
    pub(super) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Hash | Self::Nftables if !is_installed("nft") => Some("nft is not installed"),
            Self::HaproxyApi | Self::HaproxyReload if !is_installed("haproxy") => Some("haproxy is not installed"),
            Self::Nginx if !is_installed("nginx") => Some("nginx is not installed"),
            _ => None,
        }
    }

    /// Sets it up on the arena's edge.
    pub(super) fn start(self, arena: &Arena, plan: &Plan) -> Result<Box<dyn Running>> {
        let (connections, rows) = self.size(plan);
        let state = Serving::first();
        Ok(match self {
            Self::Hash => Box::new(nftables::Nftables::start(arena, nftables::Rules::Stateless, state)?),
            Self::Nftables => Box::new(nftables::Nftables::start(arena, nftables::Rules::Stateful, state)?),
            Self::Ours(_) => Box::new(ours::Ours::start(arena, rows, state)?),
            Self::HaproxyApi => Box::new(haproxy::Haproxy::start(arena, haproxy::By::Api, connections, state)?),
            Self::HaproxyReload => Box::new(haproxy::Haproxy::start(arena, haproxy::By::Reload, connections, state)?),
            Self::Nginx => Box::new(nginx::Nginx::start(arena, connections, state)?),
        })
    }
}

/// Starts a proxy on the edge.
fn spawn(arena: &Arena, line: &str, log: &Path) -> Result<Process> {
    let mut words = line.split_whitespace();
    let mut command = arena.lab.edge.command(words.next().context("an empty command")?);
    let output = fs::File::create(log)?;
    command.args(words).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut process = Process::spawn(&mut command)?;
    // What refuses its configuration does so at once.
    if let Some(status) = process.wait(Duration::from_millis(500))? {
        bail!("`{line}`: {status}: {}", fs::read_to_string(log).unwrap_or_default().trim());
    }
    Ok(process)
}

/// A command line as a command.
fn command(line: &str) -> Result<Command> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("an empty command")?);
    command.args(words);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_table_has_the_share_of_rows_that_its_name_says() {
        for (share, connections, rows) in [(25, 65_536, 16_384), (100, 65_536, 65_536), (140, 93_623, 131_072)] {
            let plan = Plan::new(70_000, 20_000, false);
            assert_eq!(Contender::Ours(Some(share)).size(&plan), (connections, Some(rows)));
        }
    }

    #[test]
    fn a_proxy_has_no_more_connections_than_a_process_may() {
        assert_eq!(Contender::Nginx.size(&Plan::new(70_000, 20_000, false)), (8000, None));
        assert_eq!(Contender::Nginx.size(&Plan::new(70_000, 1 << 20, false)), (70_000, None));
    }
}
