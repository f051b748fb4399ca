//! New UDP flows. No two of them have the same five-tuple, so none can be mistaken for an older flow that a drain
//! keeps on its backend.

use crate::{
    live::Live,
    load::{Answer, Echo, PATIENCE},
    server::monotonic_ns,
};
use anyhow::{Result, bail};
use bg_common::LiveWord;
use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::{Duration, Instant},
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
        let (flow, payload) = self.open()?;
        ask_and_wait(&flow, &payload, live, |_| flow.receive(&payload).ok())
    }

    /// Opens the next flow from the calling thread's namespace. Returns it with the content of its datagram.
    pub fn open(&mut self) -> Result<(Echo, String)> {
        let ports = self.ports.len();
        let Some(address) = self.addresses.get(self.opened / ports) else {
            bail!("all five-tuples from {:?} to {} have been used", self.addresses, self.server);
        };
        let port = self.ports.start + (self.opened % ports) as u16;
        let payload = self.opened.to_string();
        self.opened += 1;
        Ok((Echo::open_from(SocketAddr::new(*address, port), self.server)?, payload))
    }
}

/// Sends a datagram of a flow, and soon stops waiting for the answer if the live word changes. The answer to a flow that is
/// in flight during a switch may be dropped by design, and who waits for it misses the generations that follow.
pub fn ask_unless_switched(flow: &Echo, payload: &str, live: &Live) -> Result<Asked> {
    flow.set_patience(Duration::from_millis(10))?;
    let end = Instant::now() + PATIENCE;
    ask_and_wait(flow, payload, live, |before| {
        loop {
            let is_last = live.word() != before || Instant::now() > end;
            let answer = flow.receive(payload).ok();
            if answer.is_some() || is_last {
                return answer;
            }
        }
    })
}

/// Sends a datagram of a flow and waits for its answer, between two readings of the live word.
fn ask_and_wait(
    flow: &Echo,
    payload: &str,
    live: &Live,
    wait: impl FnOnce(LiveWord) -> Option<Answer>,
) -> Result<Asked> {
    let before = live.word();
    let sent_ns = monotonic_ns();
    flow.send(payload)?;
    let answer = wait(before);
    let answered_ns = monotonic_ns();
    Ok(Asked { before, sent_ns, answer, answered_ns, after: live.word() })
}
