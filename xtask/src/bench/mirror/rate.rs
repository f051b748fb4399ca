//! How many of the datagrams that the live colour receives are copied, at half of the rate that the machine can forward.

use super::{
    super::throughput::LiveFrames,
    Args,
    stage::{Mirror, Stage},
};
use anyhow::{Context, Result, ensure};
use bg_common::LiveFrame;
use bg_tests::{Namespace, Processor};
use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

/// A datagram, in a frame that is long enough to be counted.
const CONTENT: [u8; LiveFrame::MIN_LEN - 42] = [7; LiveFrame::MIN_LEN - 42];
/// What is on its way when the sending ends has arrived after this time.
const SETTLED: Duration = Duration::from_millis(100);
/// How long to send as fast as possible, and before that to open the flows.
const FLOOD: f64 = 1.0;
const WARM_UP: f64 = 0.2;

pub(super) struct Rate {
    /// Datagrams a second that the live colour receives without a mirror, when senders are as fast as they can be.
    pub(super) top: f64,
    /// Datagrams a second that were sent to the service with a mirror.
    pub(super) offered: f64,
    /// How many of them the live colour has received.
    pub(super) originals: u64,
    /// The copies that the idle colour has received.
    pub(super) copies: u64,
}

pub(super) fn measure(args: &Args, stage: &Stage, live: &mut LiveFrames, idle: &mut LiveFrames) -> Result<Rate> {
    let mut run = |mirror: Mirror, seconds: f64, rate: Option<f64>| -> Result<(u64, [u64; 2])> {
        live.expect(mirror.live(false))?;
        idle.expect(stage.way.copy(mirror, false))?;
        let sent = send(&stage.lab.client, mirror.vip(false), seconds, rate)?;
        thread::sleep(SETTLED);
        Ok((sent, [live.received()?.delivered, idle.received()?.delivered]))
    };
    let flood = args.seconds().min(FLOOD);
    run(Mirror::None, WARM_UP, None)?;
    let (_, [received, _]) = run(Mirror::None, flood, None)?;
    let top = received as f64 / flood;
    ensure!(received > 0, "nothing has arrived");
    let half = Some(top / 2.0);
    run(Mirror::There, WARM_UP, half)?;
    let (sent, [originals, copies]) = run(Mirror::There, args.seconds(), half)?;
    ensure!(originals > 0, "none of {sent} datagrams has arrived");
    Ok(Rate { top, offered: sent as f64 / args.seconds(), originals, copies })
}

/// Sends from a socket on each processor, at this rate in total or as fast as possible. Returns the number of datagrams.
fn send(client: &Namespace, to: SocketAddr, seconds: f64, rate: Option<f64>) -> Result<u64> {
    let processors = Processor::all()?;
    let rate = rate.map(|rate| rate / processors.len() as f64);
    thread::scope(|scope| {
        let start = |processor| scope.spawn(move || client.enter(|| send_on(processor, to, seconds, rate))?);
        let threads: Vec<_> = processors.iter().map(start).collect();
        let results = threads.into_iter().map(|thread| thread.join().ok().context("a sender panicked")?);
        results.sum()
    })
}

fn send_on(processor: &Processor, to: SocketAddr, seconds: f64, rate: Option<f64>) -> Result<u64> {
    processor.adopt_thread()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        let passed = start.elapsed().as_secs_f64();
        if passed >= seconds {
            return Ok(sent);
        }
        if rate.is_none_or(|rate| (sent as f64) < passed * rate) {
            socket.send(&CONTENT).with_context(|| format!("cannot send to {to}"))?;
            sent += 1;
        }
    }
}
