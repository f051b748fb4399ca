//! Clients that connect while a deployment is frozen.

use anyhow::{Context, Result};
use bg_tests::{Namespace, handshake_time, retransmissions};
use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};
use tokio::{net::TcpSocket, time::timeout};

const PATIENCE: Duration = Duration::from_secs(20);

/// A client that is connected.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    /// When it began to connect.
    pub(crate) began: Instant,
    /// When it knew that it was connected.
    pub(crate) ended: Instant,
}

impl Connected {
    pub(crate) fn port(&self) -> Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// When its kernel had the answer to its SYN. The client itself has to wait for a processor until it knows.
    pub(crate) fn answered(&self) -> Result<Instant> {
        Ok(self.began + handshake_time(&self.stream)?)
    }
}

/// Connects so many clients, whose SYNs are sent one after the other. Returns when all are connected.
pub(crate) fn connect(namespace: &Namespace, server: SocketAddr, count: usize) -> Result<Vec<Connected>> {
    namespace.enter(|| connect_here(server, count))?
}

fn connect_here(server: SocketAddr, count: usize) -> Result<Vec<Connected>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let clients: Vec<_> = (0..count).map(|_| tokio::spawn(connect_one(server))).collect();
        let mut connected = Vec::new();
        for client in clients {
            connected.push(client.await??);
        }
        Ok(connected)
    })
}

async fn connect_one(server: SocketAddr) -> Result<Connected> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let began = Instant::now();
    let stream = timeout(PATIENCE, socket.connect(server)).await.context("no connection")??;
    Ok(Connected { began, ended: Instant::now(), stream: stream.into_std()? })
}

/// How often the kernel has sent a SYN of these clients again, or another segment.
pub(crate) fn sent_again(clients: &[Connected]) -> Result<u32> {
    clients.iter().map(|client| retransmissions(&client.stream)).sum()
}
