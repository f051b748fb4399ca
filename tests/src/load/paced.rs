//! Requests at a fixed rate, over kept connections, and how long each answer took.

use super::{PATIENCE, http::complete_body};
use crate::netns::Namespace;
use anyhow::{Context, Result, anyhow, ensure};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Clients that ask at a fixed rate, whether or not answers are slow.
#[derive(Clone, Copy, Debug)]
pub struct Paced {
    /// How many, each with a thread of its own.
    pub clients: u32,
    /// Connections of each, used in turn.
    pub connections: usize,
    /// Requests a second, of all of them together.
    pub rate: u32,
}

impl Paced {
    /// Asks for so long; tells how long each answer took. A request that could not be sent at its time, since the client
    /// was still waiting for an earlier answer, counts from the time it should have been sent: else a server
    /// that stalls would be asked less just then.
    pub fn run(self, namespace: &Namespace, server: SocketAddr, duration: Duration) -> Result<Vec<Duration>> {
        let interval = Duration::from_secs(1) * self.clients / self.rate;
        thread::scope(|scope| {
            let start = Instant::now();
            let client = |number: u32| {
                // Not all at one moment.
                let first = start + Duration::from_millis(100) + interval * number / self.clients;
                scope.spawn(move || namespace.enter(|| ask(server, self.connections, first, interval, duration))?)
            };
            let clients: Vec<_> = (0..self.clients).map(client).collect();
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
            }
            Ok(all)
        })
    }
}

fn ask(
    server: SocketAddr,
    connections: usize,
    first: Instant,
    interval: Duration,
    duration: Duration,
) -> Result<Vec<Duration>> {
    let open = |_| -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let mut streams = (0..connections).map(open).collect::<Result<Vec<_>>>()?;
    ensure!(!streams.is_empty(), "no connections");
    let request = format!("GET / HTTP/1.1\r\nHost: {server}\r\n\r\n");
    let (mut latencies, mut buffer) = (Vec::new(), Vec::with_capacity(1024));
    let mut due = first;
    let count = streams.len();
    while due < first + duration {
        let free = Instant::now();
        thread::sleep(due.saturating_duration_since(free));
        let begin = if free > due { due } else { Instant::now() };
        let stream = &mut streams[latencies.len() % count];
        stream.write_all(request.as_bytes()).context("cannot send a request")?;
        buffer.clear();
        while complete_body(&buffer)?.is_none() {
            let mut chunk = [0; 1024];
            let length = stream.read(&mut chunk).context("no answer")?;
            ensure!(length > 0, "closed before an answer");
            buffer.extend_from_slice(&chunk[..length]);
        }
        latencies.push(begin.elapsed());
        due += interval;
    }
    Ok(latencies)
}
