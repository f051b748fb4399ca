//! New UDP flows. No two of them have the same five-tuple, so none can be mistaken for an older flow that a drain
//! keeps on its backend.

use crate::{
    live::Live,
    load::{Answer, Echo},
    server::monotonic_ns,
};
use anyhow::{Result, bail};
use bg_common::LiveWord;
use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

/// Opens one flow after the other from the given addresses, each from a new port.
#[derive(Debug)]
pub struct NewFlows {
    server: SocketAddr,
    addresses: Vec<IpAddr>,
    ports: Range<u16>,
    opened: usize,
}

/// One datagram, the only one of its flow, between two readings of the live word.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The live word before it was sent.
    pub before: LiveWord,
    /// When it was sent, in nanoseconds of `CLOCK_MONOTONIC`.
    pub sent_ns: u64,
    /// The answer, if there was one.
    pub answer: Option<Answer>,
    /// When the answer had arrived.
    pub answered_ns: u64,
    /// The live word when the answer had arrived.
    pub after: LiveWord,
}

impl NewFlows {
    /// A time-out much longer than a round trip, even on a busy machine, so that silence means that the datagram or its
    /// answer was dropped.
    const PATIENCE: Duration = Duration::from_secs(3);

    /// Flows to `server`. The addresses must be the client's, and the ports nobody else's.
    pub fn new(server: SocketAddr, addresses: &[IpAddr], ports: Range<u16>) -> Self {
        Self { server, addresses: addresses.to_owned(), ports, opened: 0 }
    }

    /// The number of flows that have been opened.
    pub fn opened(&self) -> usize {
        self.opened
    }

    /// Opens the next flow from the calling thread's namespace and sends one datagram.
    pub fn ask(&mut self, live: &Live) -> Result<Asked> {
        let ports = self.ports.len();
        let Some(address) = self.addresses.get(self.opened / ports) else {
            bail!("all five-tuples from {:?} to {} have been used", self.addresses, self.server);
        };
        let port = self.ports.start + (self.opened % ports) as u16;
        let payload = self.opened.to_string();
        self.opened += 1;
        let flow = Echo::open_from(SocketAddr::new(*address, port), self.server)?;
        flow.set_patience(Self::PATIENCE)?;
        ask(&flow, &payload, live)
    }
}

/// Sends a datagram of a flow, between two readings of the live word.
pub fn ask(flow: &Echo, payload: &str, live: &Live) -> Result<Asked> {
    let before = live.word();
    let sent_ns = monotonic_ns();
    flow.send(payload)?;
    let answer = flow.receive(payload).ok();
    let answered_ns = monotonic_ns();
    Ok(Asked { before, sent_ns, answer, answered_ns, after: live.word() })
}
