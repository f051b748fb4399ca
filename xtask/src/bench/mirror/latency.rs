//! Questions and answers by UDP, to services with and without a mirror.

use super::{
    Args,
    stage::{Mirror, Stage},
};
use anyhow::{Context, Result, bail, ensure};
use bg_tests::{Namespace, Processor};
use std::{
    hint,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Questions to each service in a round.
pub(super) const REQUESTS: usize = 400;
/// The time between an answer and the next question, in which the copy and its answer are done with.
const PAUSE: Duration = Duration::from_micros(20);
/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_millis(200);

/// By round, in microseconds.
#[derive(Clone, Default)]
pub(super) struct Latency {
    pub(super) p50: Vec<f64>,
    pub(super) p99: Vec<f64>,
    /// Questions without an answer, over all rounds.
    pub(super) lost: u64,
}

/// As in [`Mirror::ALL`].
pub(super) fn measure(args: &Args, stage: &Stage) -> Result<Vec<Latency>> {
    let processors = Processor::all()?;
    let [servers, .., client] = processors.as_slice() else {
        bail!("expected two processors: one for the client, and one for the servers");
    };
    is_gone(&stage.lab.edge)?;
    let mut sockets = Vec::new();
    for mirror in Mirror::ALL {
        sockets.push(bind(stage.live(), mirror.live(false))?);
    }
    sockets.push(bind(&stage.mirror, Mirror::There.idle(false))?);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(servers, &sockets, &is_over));
        let asked = stage.lab.client.enter(|| {
            let asked = client.adopt_thread().and_then(|()| ask_all(args));
            is_over.store(true, Ordering::Relaxed);
            asked
        });
        is_over.store(true, Ordering::Relaxed);
        server.join().ok().context("the server panicked")??;
        asked?
    })
}

/// Waits until the kernel has given up the neighbour that has gone.
fn is_gone(edge: &Namespace) -> Result<()> {
    let (address, end) = (Mirror::Gone.idle(false).ip(), Instant::now() + Duration::from_secs(10));
    while !edge.ip(&format!("neighbour show to {address}"))?.contains("FAILED") {
        ensure!(Instant::now() < end, "the neighbour {address} has not failed");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn bind(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(address))?.with_context(|| format!("cannot bind {address}"))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Returns what arrives at each socket to its sender. It does not sleep: waking up would take longer than all the rest.
fn serve(processor: &Processor, sockets: &[UdpSocket], is_over: &AtomicBool) -> Result<()> {
    processor.adopt_thread()?;
    let mut buffer = [0; 64];
    while !is_over.load(Ordering::Relaxed) {
        for socket in sockets {
            if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                // A client that is gone does not matter to the others.
                let _ = socket.send_to(&buffer[..length], client);
            }
        }
    }
    Ok(())
}

/// Asks all services in turns.
fn ask_all(args: &Args) -> Result<Vec<Latency>> {
    let mut clients = Vec::new();
    for mirror in Mirror::ALL {
        clients.push(Client::open(mirror.vip(false))?);
    }
    let mut all = vec![Latency::default(); clients.len()];
    let mut order: Vec<usize> = (0..clients.len()).collect();
    for turn in 0..=args.turns() {
        for &nth in &order {
            let latency = &mut all[nth];
            let mut times = Vec::with_capacity(REQUESTS);
            for _ in 0..REQUESTS {
                match clients[nth].ask()? {
                    Some(time) => times.push(time.as_secs_f64() * 1e6),
                    None => latency.lost += 1,
                }
            }
            // The first turn warms up.
            if turn > 0 {
                ensure!(!times.is_empty(), "no answers from {}", clients[nth].to);
                times.sort_by(f64::total_cmp);
                latency.p50.push(times[times.len() / 2]);
                latency.p99.push(times[times.len() * 99 / 100]);
            }
        }
        // Each is first in turn, and each after another.
        order.rotate_left(1);
        if turn % 4 == 3 {
            order.reverse();
        }
    }
    Ok(all)
}

struct Client {
    socket: UdpSocket,
    to: SocketAddr,
    /// Number of the last question.
    number: u64,
}

impl Client {
    fn open(to: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to, number: 0 })
    }

    /// Asks once, and pauses. `None`: there was no answer.
    fn ask(&mut self) -> Result<Option<Duration>> {
        self.number += 1;
        let (question, mut buffer) = (self.number.to_be_bytes(), [0; 64]);
        let start = Instant::now();
        self.socket.send(&question)?;
        let answer = loop {
            let passed = start.elapsed();
            match self.socket.recv(&mut buffer) {
                Ok(length) if buffer[..length] == question => break Some(start.elapsed()),
                // An answer to an earlier question.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).with_context(|| format!("no answer from {}", self.to)),
            }
            if passed > PATIENCE {
                break None;
            }
        };
        let end = Instant::now() + PAUSE;
        while Instant::now() < end {
            hint::spin_loop();
        }
        Ok(answer)
    }
}
