//! The deployment that is not under test. Its connections stay open whatever happens to the other one.

use crate::{
    bgctl::Bgctl,
    config::{NEIGHBOUR, http_vip},
    load::Connection,
    topology::{Lab, address},
};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, SocketAddr};

/// One connection of each family, to green.
#[derive(Debug)]
pub struct Neighbour {
    connections: Vec<(Connection, String)>,
}

impl Neighbour {
    /// Local ports that no load uses. Otherwise a backend could not distinguish the connections.
    const PORTS: [u16; 2] = [704, 706];

    /// Opens the connections.
    pub fn open(lab: &Lab) -> Result<Self> {
        let vips = [address::NEIGHBOUR_V4, address::NEIGHBOUR_V6];
        let clients = [address::CLIENT_V4, address::CLIENT_V6];
        let mut connections = Vec::new();
        for ((client, vip), port) in clients.into_iter().zip(vips).zip(Self::PORTS) {
            let connection = Connection::open_from(&lab.client, SocketAddr::new(client, port), http_vip(vip))?;
            let answer = connection.ask()?;
            ensure!(answer.starts_with("green "), "{NEIGHBOUR} answers {answer:?}");
            connections.push((connection, answer));
        }
        Ok(Self { connections })
    }

    /// Sends a request over each connection, and asks bgctl for the deployment's status.
    pub fn is_undisturbed(&self, bgctl: &Bgctl) -> Result<()> {
        for (connection, before) in &self.connections {
            let now = connection.ask().with_context(|| format!("a connection of {NEIGHBOUR} was disturbed"))?;
            ensure!(now == *before, "a connection of {NEIGHBOUR} went from {before:?} to {now:?}");
        }
        let status = bgctl.deployment(NEIGHBOUR)?;
        ensure!(status["live"] == "green" && status["generation"] == 1 && status["phase"] == "steady", "{status}");
        ensure!(status["flows"]["green"] == 2 && status["flows"]["blue"] == 0, "{status}");
        let flows = bgctl.json(&["flows", NEIGHBOUR])?;
        let of = |flow: &serde_json::Value| (flow["deployment"] == NEIGHBOUR).then(|| flow["client"].to_string());
        let mut clients: Vec<_> = flows["flows"].as_array().into_iter().flatten().map(of).collect();
        clients.sort();
        let expected = [(address::CLIENT_V4, 704), (address::CLIENT_V6, 706)];
        let expected =
            expected.map(|(client, port): (IpAddr, u16)| Some(format!("\"{}\"", SocketAddr::new(client, port))));
        ensure!(clients == expected, "{flows}");
        Ok(())
    }

    /// Whether each connection was reset.
    pub fn is_reset(&self) -> bool {
        self.connections.iter().all(|(connection, _)| connection.ask().is_err())
    }
}
