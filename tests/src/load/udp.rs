//! A client of the UDP echo server. It has its own socket, and so one flow.

use super::{PATIENCE, bind_new};
use crate::netns::Namespace;
use anyhow::{Context, Result, bail};
use bg_common::Colour;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

/// An answer of the echo server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Colour of the backend.
    pub colour: Colour,
    /// Its name.
    pub backend: String,
    /// The number of datagrams that it had received before this one.
    pub number: u64,
    /// When the datagram arrived at the server, in nanoseconds of `CLOCK_MONOTONIC`.
    pub arrived_ns: u64,
    /// The content of the datagram.
    pub echoed: String,
}

/// A connected UDP socket of a client.
#[derive(Debug)]
pub struct Echo {
    socket: UdpSocket,
}

impl Echo {
    /// Opens a socket in the namespace.
    pub fn open(namespace: &Namespace, server: SocketAddr) -> Result<Self> {
        namespace.enter(|| Self::open_here(server))?
    }

    /// Opens a socket in the calling thread's namespace, from any address, and from a port that no socket of this process had before.
    pub fn open_here(server: SocketAddr) -> Result<Self> {
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Self::open_from(SocketAddr::new(any, 0), server)
    }

    /// Opens a socket in the calling thread's namespace, from this address. Port 0: one that no socket of this process had before.
    pub fn open_from(from: SocketAddr, server: SocketAddr) -> Result<Self> {
        let socket = if from.port() == 0 { bind_new(from.ip()) } else { UdpSocket::bind(from) };
        let socket = socket.with_context(|| format!("cannot bind {from}"))?;
        socket.connect(server).with_context(|| format!("cannot connect to {server}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Sets how long it waits for an answer, by default [`PATIENCE`].
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        Ok(self.socket.set_read_timeout(Some(patience))?)
    }

    /// Sends a datagram and waits for its answer. Late answers to earlier datagrams are ignored.
    pub fn ask(&self, payload: &str) -> Result<Answer> {
        self.send(payload)?;
        self.receive(payload)
    }

    /// Sends a datagram.
    pub fn send(&self, payload: &str) -> Result<()> {
        self.socket.send(payload.as_bytes()).context("cannot send a datagram")?;
        Ok(())
    }

    /// Waits for the answer to a datagram with this content.
    pub fn receive(&self, payload: &str) -> Result<Answer> {
        let mut buffer = [0; 2048];
        loop {
            let length = self.socket.recv(&mut buffer).context("no answer")?;
            let answer = parse(std::str::from_utf8(&buffer[..length]).context("an answer that is no text")?)?;
            if answer.echoed == payload {
                return Ok(answer);
            }
        }
    }
}

fn parse(text: &str) -> Result<Answer> {
    let words: Vec<_> = text.splitn(5, ' ').collect();
    let &[_, backend, number, arrived, echoed] = words.as_slice() else {
        bail!("expected colour, name, number, time and payload, got {text:?}");
    };
    Ok(Answer {
        colour: super::http::colour(text)?,
        backend: backend.to_owned(),
        number: number.parse()?,
        arrived_ns: arrived.parse()?,
        echoed: echoed.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_the_server_writes_it() {
        let answer = parse("green green2 7 123456 hello there").unwrap();
        assert_eq!((answer.colour, answer.backend.as_str(), answer.number), (Colour::Green, "green2", 7));
        assert_eq!((answer.arrived_ns, answer.echoed.as_str()), (123_456, "hello there"));
        assert!(parse("green green2 7").is_err());
    }
}
