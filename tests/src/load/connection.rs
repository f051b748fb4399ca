//! One HTTP connection of a client, which stays open.

use super::PATIENCE;
use crate::netns::Namespace;
use anyhow::{Context, Result};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

/// A TCP connection to an HTTP server of a lab.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects from the namespace, from any address and port.
    pub fn open(namespace: &Namespace, server: SocketAddr) -> Result<Self> {
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Self::open_from(namespace, SocketAddr::new(any, 0), server)
    }

    /// Connects from an address of the namespace.
    pub fn open_from(namespace: &Namespace, from: SocketAddr, server: SocketAddr) -> Result<Self> {
        let stream = namespace.enter(|| connect(from, server))?;
        let stream = stream.with_context(|| format!("cannot connect from {from} to {server}"))?;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// Sends a request and returns the body of the answer: colour and name of the backend.
    pub fn ask(&self) -> io::Result<String> {
        let mut stream = &self.stream;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer)?;
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
        body.filter(|body| !body.is_empty()).ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, text))
    }

    /// The same, but returns only the colour.
    pub fn colour(&self) -> io::Result<String> {
        Ok(self.ask()?.split(' ').next().unwrap_or_default().to_owned())
    }

    /// Its socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

fn connect(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        let stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await??;
        Ok(stream.into_std()?)
    })
}
