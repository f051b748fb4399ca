//! Measuring the instant of a switch from both sides: the store to the live word, and the colours at which probes
//! arrive, each of which opens a new flow.

use crate::{
    live::Live,
    load::{Answer, Echo, PATIENCE},
    netns::Namespace,
    server::monotonic_ns,
};
use anyhow::{Context, Result, anyhow, bail};
use bg_common::Colour;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The measurements. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug)]
pub struct SwitchInstant {
    /// When the new live word was seen in the map.
    pub stored_ns: u64,
    /// When the command had returned.
    pub returned_ns: u64,
    /// The duration of the command, from the start of its process to its end.
    pub command: Duration,
    /// The probes, in the order of sending.
    pub probes: Vec<Probe>,
}

/// One datagram, which is the only one of its flow.
#[derive(Clone, Debug)]
pub struct Probe {
    /// When it was sent.
    pub sent_ns: u64,
    /// The answer, if there was one.
    pub answer: Option<Answer>,
}

impl SwitchInstant {
    const MAX_PROBES: usize = 6000;
    const INTERVAL: Duration = Duration::from_micros(20);
    /// The interval between the probes of the second half. On a busy machine, the command would otherwise outlast the probes.
    const LONGER_INTERVAL: Duration = Duration::from_millis(2);
    const LEAD: Duration = Duration::from_millis(20);
    /// Probes before the switch and after it, at least, however busy the machine is.
    const AROUND: usize = 10;

    /// Runs `switch` while the client sends probes to the echo server at `server`, and watches the word of
    /// deployment 0.
    pub fn measure(
        client: &Namespace,
        server: SocketAddr,
        live: &Live,
        switch: impl FnOnce() -> Result<()> + Send,
    ) -> Result<Self> {
        allow_descriptors(Self::MAX_PROBES as u64 + 1000)?;
        let (stop, sent, before) = (AtomicBool::new(false), AtomicUsize::new(0), live.word());
        thread::scope(|scope| {
            let prober = scope.spawn(|| client.enter(|| probe(server, &stop, &sent))?);
            let more_probes = || {
                let enough = sent.load(Ordering::Relaxed) + Self::AROUND;
                thread::sleep(Self::LEAD);
                while sent.load(Ordering::Relaxed) < enough && !prober.is_finished() {
                    thread::sleep(Duration::from_millis(1));
                }
            };
            let watcher = scope.spawn(|| {
                hurry();
                while live.word() == before && !stop.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                monotonic_ns()
            });
            more_probes();
            let start = Instant::now();
            let switched = switch();
            let (command, returned_ns) = (start.elapsed(), monotonic_ns());
            more_probes();
            stop.store(true, Ordering::Relaxed);
            let stored_ns = watcher.join().map_err(|_| anyhow!("the watcher panicked"))?;
            let probes = prober.join().map_err(|_| anyhow!("the prober panicked"))??;
            switched?;
            if live.word() == before {
                bail!("the live word did not change");
            }
            Ok(Self { stored_ns, returned_ns, command, probes })
        })
    }

    /// The time from the store to the arrival of the first probe at this colour. Zero means that the probe arrived
    /// before the watcher got a processor and saw the store.
    pub fn first_arrival(&self, colour: Colour) -> Option<Duration> {
        let answers = self.probes.iter().filter_map(|probe| probe.answer.as_ref());
        let first = answers.filter(|answer| answer.colour == colour).map(|answer| answer.arrived_ns).min();
        first.map(|arrived| Duration::from_nanos(arrived.saturating_sub(self.stored_ns)))
    }

    /// The number of probes that were sent after the command had returned and reached another colour.
    pub fn late(&self, colour: Colour) -> usize {
        self.strayed_after(self.returned_ns, colour)
    }

    /// The number of probes that were sent after the new live word had been seen in the map and reached another colour.
    pub fn behind(&self, colour: Colour) -> usize {
        self.strayed_after(self.stored_ns, colour)
    }

    fn strayed_after(&self, ns: u64, colour: Colour) -> usize {
        let after = self.probes.iter().filter(|probe| probe.sent_ns > ns);
        after.filter(|probe| probe.answer.as_ref().is_some_and(|answer| answer.colour != colour)).count()
    }

    /// The number of probes without an answer that were sent when no switch was running: more than `margin` before the
    /// store, or after the command had returned.
    pub fn lost_outside(&self, margin: Duration) -> usize {
        let start = self.stored_ns.saturating_sub(margin.as_nanos() as u64);
        let outside = |probe: &&Probe| probe.sent_ns < start || probe.sent_ns > self.returned_ns;
        self.probes.iter().filter(outside).filter(|probe| probe.answer.is_none()).count()
    }

    /// The number of probes without an answer.
    pub fn lost(&self) -> usize {
        self.probes.iter().filter(|probe| probe.answer.is_none()).count()
    }
}

/// Sends datagrams, each from its own socket, until told to stop. Reads the answers afterwards. Each answer says
/// when its datagram arrived.
fn probe(server: SocketAddr, stop: &AtomicBool, count: &AtomicUsize) -> Result<Vec<Probe>> {
    let mut sent = Vec::with_capacity(SwitchInstant::MAX_PROBES);
    while !stop.load(Ordering::Relaxed) && sent.len() < SwitchInstant::MAX_PROBES {
        let echo = open_unused(server)?;
        let sent_ns = monotonic_ns();
        echo.send("probe")?;
        sent.push((sent_ns, echo));
        count.store(sent.len(), Ordering::Relaxed);
        let is_early = sent.len() < SwitchInstant::MAX_PROBES / 2;
        thread::sleep(if is_early { SwitchInstant::INTERVAL } else { SwitchInstant::LONGER_INTERVAL });
    }
    thread::sleep(SwitchInstant::LEAD);
    let end = Instant::now() + PATIENCE;
    sent.into_iter()
        .map(|(sent_ns, echo)| {
            echo.set_patience(end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))?;
            Ok(Probe { sent_ns, answer: echo.receive("probe").ok() })
        })
        .collect()
}

/// Opens a socket on a port that no earlier probe of this process has used. Otherwise the probe could belong
/// to a flow that is already open, which a drain keeps on its backend.
fn open_unused(server: SocketAddr) -> Result<Echo> {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port may be taken by another socket of the namespace: then the next one will do.
    let open = || Echo::open_from(SocketAddr::new(any, NEXT.fetch_add(1, Ordering::Relaxed)), server);
    open().or_else(|_| open()).or_else(|_| open())
}

/// Gives the calling thread a higher priority.
fn hurry() {
    // SAFETY: takes no pointers. Where it is not allowed, the watcher is less exact, that is all.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

/// Raises the number of files that this process may have open, if it is too low.
fn allow_descriptors(number: u64) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to an rlimit that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 && limit.rlim_cur >= number {
        return Ok(());
    }
    limit = libc::rlimit { rlim_cur: number, rlim_max: limit.rlim_max.max(number) };
    // SAFETY: as above; the kernel only reads it.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("cannot open as many sockets as there are probes"),
    }
}
