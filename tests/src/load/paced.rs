//! Requests at a fixed rate over kept connections, or a new one for each, with the time that each answer took.

use super::{PATIENCE, http::complete_body};
use crate::netns::Namespace;
use anyhow::{Context, Result, anyhow, ensure};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Clients that send requests at a fixed rate, even if answers are slow.
#[derive(Clone, Copy, Debug)]
pub struct Paced {
    /// The number of clients. Each has its own thread.
    pub clients: u32,
    /// The number of connections of each client, which are used in turn. 0: each request has a new one, whose opening counts.
    pub connections: usize,
    /// Requests per second of all clients together.
    pub rate: u32,
}

impl Paced {
    /// Sends requests for this long. Returns how long each answer took. If a request could not be sent on time because the client
    /// was still waiting for an earlier answer, its time counts from when it should have been sent. Otherwise a server
    /// that stalls would get fewer requests just then.
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
    let request = format!("GET / HTTP/1.1\r\nHost: {server}\r\n\r\n");
    let (mut latencies, mut buffer) = (Vec::new(), Vec::with_capacity(1024));
    let mut due = first;
    let count = streams.len();
    while due < first + duration {
        let free = Instant::now();
        thread::sleep(due.saturating_duration_since(free));
        let begin = if free > due { due } else { Instant::now() };
        let mut new;
        let stream = match latencies.len().checked_rem(count) {
            Some(number) => &mut streams[number],
            None => {
                new = open(0)?;
                &mut new
            }
        };
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
