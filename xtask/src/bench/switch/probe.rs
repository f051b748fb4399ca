//! Probes: new TCP connections, one after the other, each with a new five-tuple. Each sends one HTTP request to find out
//! which backend answers.

use anyhow::{Context, Result, anyhow, bail};
use bg_common::Colour;
use bg_tests::{Namespace, monotonic_ns};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The source network of connections. All its addresses belong to the client.
pub(super) const CLIENTS: &str = "198.18.0.0/16";
const FIRST_CLIENT: u32 = u32::from_be_bytes([198, 18, 0, 1]);
const FIRST_PORT: u32 = 1024;
const PORTS: u32 = 60_000;
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// The number of connections before the command is started, and after all connections go to the new colour.
const LEAD: Duration = Duration::from_millis(10);
/// When to give up waiting for the new colour.
const LIMIT: Duration = Duration::from_secs(10);

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// When it was begun.
    pub(super) begun_ns: u64,
    /// When its answer arrived.
    pub(super) answered_ns: u64,
    /// The backend that answered, or the error.
    pub(super) answer: Result<Colour, String>,
}

/// A switch by a command, as seen by new connections.
pub(super) struct Seen {
    /// When the command was started.
    pub(super) issued_ns: u64,
    /// When it had returned.
    pub(super) returned_ns: u64,
    /// The connections, in no particular order.
    pub(super) probes: Vec<Probe>,
}

/// Opens connections from `clients` threads while `switch` makes `colour` live, and until all of them arrive there.
pub(super) fn watch(
    client: &Namespace,
    server: SocketAddr,
    clients: usize,
    colour: Colour,
    switch: impl FnOnce() -> Result<()>,
) -> Result<Seen> {
    let (stop, settled) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        // Each thread counts itself once it has met the new colour; one that meets the old one again uncounts itself.
        let start = |_| scope.spawn(|| client.enter(|| connect_on(server, colour, &stop, &settled)));
        let threads: Vec<_> = (0..clients).map(start).collect();
        thread::sleep(LEAD);
        let issued_ns = monotonic_ns();
        let switched = switch();
        let returned_ns = monotonic_ns();
        let end = Instant::now() + LIMIT;
        while switched.is_ok() && settled.load(Ordering::SeqCst) < clients as u32 && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        let has_settled = settled.load(Ordering::SeqCst) == clients as u32;
        thread::sleep(LEAD);
        stop.store(true, Ordering::SeqCst);
        let mut probes = Vec::new();
        for thread in threads {
            probes.extend(thread.join().map_err(|_| anyhow!("a prober panicked"))??);
        }
        switched?;
        if !has_settled {
            bail!("connections do not arrive at {} within {LIMIT:?}", colour.name());
        }
        Ok(Seen { issued_ns, returned_ns, probes })
    })
}

/// Sends one request from the client.
pub(super) fn ask(client: &Namespace, server: SocketAddr) -> Result<Colour> {
    client.enter(|| connect(server))?.with_context(|| format!("no answer by {server}"))
}

fn connect_on(server: SocketAddr, colour: Colour, stop: &AtomicBool, settled: &AtomicU32) -> Vec<Probe> {
    let (mut probes, mut has_settled) = (Vec::new(), false);
    while !stop.load(Ordering::Relaxed) {
        let begun_ns = monotonic_ns();
        let answer = connect(server).map_err(|error| format!("{error:#}"));
        let is_new = answer == Ok(colour);
        if is_new && !has_settled {
            settled.fetch_add(1, Ordering::SeqCst);
        } else if !is_new && has_settled {
            settled.fetch_sub(1, Ordering::SeqCst);
        }
        has_settled = is_new;
        probes.push(Probe { begun_ns, answered_ns: monotonic_ns(), answer });
    }
    probes
}

/// One connection: sends a request, and reads until the server closes.
fn connect(server: SocketAddr) -> Result<Colour> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let client = Ipv4Addr::from(FIRST_CLIENT + number / PORTS);
    let from = SocketAddr::from((client, (FIRST_PORT + number % PORTS) as u16));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&from.into()).with_context(|| format!("cannot bind {from}"))?;
    socket.connect_timeout(&server.into(), PATIENCE).context("cannot connect")?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n").context("cannot ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("cannot read an answer")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let colour = Colour::ALL.into_iter().find(|colour| body.starts_with(colour.name()));
    colour.with_context(|| format!("an answer of no colour: {answer:?}"))
}
