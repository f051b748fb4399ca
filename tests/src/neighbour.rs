//! The deployment that is not under test. Its connections stay open whatever happens to the other one.

use crate::{
    bgctl::Bgctl,
    config::{NEIGHBOUR, http_vip},
    topology::{Lab, address},
};
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

/// One connection of each family, to green.
#[derive(Debug)]
pub struct Neighbour {
    connections: Vec<(TcpStream, String)>,
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
            let stream = lab.client.enter(|| connect(SocketAddr::new(client, port), http_vip(vip)))??;
            let answer = ask(&stream)?;
            ensure!(answer.starts_with("green "), "{NEIGHBOUR} answers {answer:?}");
            connections.push((stream, answer));
        }
        Ok(Self { connections })
    }

    /// Sends a request over each connection, and asks bgctl for the deployment's status.
    pub fn is_undisturbed(&self, bgctl: &Bgctl) -> Result<()> {
        for (stream, before) in &self.connections {
            let now = ask(stream).with_context(|| format!("a connection of {NEIGHBOUR} was disturbed"))?;
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
        self.connections.iter().all(|(stream, _)| ask(stream).is_err())
    }
}

/// Connects from a given port.
fn connect(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(async {
        let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        let stream = tokio::time::timeout(Duration::from_secs(3), socket.connect(to)).await??;
        Ok::<_, anyhow::Error>(stream.into_std()?)
    });
    let stream = stream.with_context(|| format!("cannot connect from {from} to {to}"))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(stream)
}

/// The body of the answer to a request.
fn ask(mut stream: &TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: mail\r\n\r\n")?;
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
    body.filter(|body| !body.is_empty()).with_context(|| format!("no answer: {text:?}"))
}
