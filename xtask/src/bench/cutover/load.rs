//! The load: connections that stay open, ask now and then, and end after a random time, each replaced by a new one.

use super::{
    crew::Crew,
    judge::{Break, Opened, judge},
    server::{ANSWER, REQUEST},
};
use anyhow::{Result, ensure};
use bg_tests::{Chance, Namespace, monotonic_ns};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, sleep_until, timeout},
};

/// The load's shape.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) target: SocketAddr,
    /// The addresses from which connections come, in turns.
    pub(super) sources: Vec<Ipv4Addr>,
    /// Connections that are open at a time.
    pub(super) connections: u32,
    /// The mean of their lives, which are distributed exponentially.
    pub(super) life: Duration,
    /// The time from an answer to the next request on a connection.
    pub(super) interval: Duration,
    /// How long to wait for an answer.
    pub(super) patience: Duration,
    /// The time in which the first connections are opened.
    pub(super) ramp: Duration,
    /// Threads that share the connections.
    pub(super) threads: u32,
}

/// What connections have seen since the last [`Load::take`].
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) opened: Vec<Opened>,
    /// Connections that got no first answer.
    pub(super) failed: u64,
    /// Connections that ended by themselves.
    pub(super) ended: u64,
    /// Connections that broke: ended, strayed, silent.
    pub(super) broken: [u64; 3],
    /// The first failure.
    pub(super) first: Option<String>,
    /// Answers to requests on open connections.
    pub(super) answers: Vec<Answer>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) at_ns: u64,
    /// Microseconds from the request.
    pub(super) took: u32,
    /// Microseconds by which the request was sent late, because the load itself waited for a processor.
    pub(super) late: u32,
}

#[derive(Debug, Default)]
struct Tally {
    seen: Seen,
    open: u64,
    /// Unanswered requests of this epoch and of the one before.
    asked: [u64; 2],
    epoch: usize,
}

/// A running load. Dropping it closes its connections.
pub(super) struct Load {
    tally: Shared,
    shape: Shape,
    _crew: Crew,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Tally>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Starts it in a namespace. Returns when the connections are open.
    pub(super) fn start(namespace: &Namespace, shape: Shape) -> Result<Self> {
        let tally = Shared::default();
        let (of_all, counted) = (shape.clone(), tally.clone());
        let threads = shape.threads;
        let crew = Crew::start(namespace, threads, move |thread| {
            populate(&of_all, &counted, (thread..of_all.connections).step_by(threads as usize));
            Ok(())
        })?;
        let load = Self { tally, shape, _crew: crew };
        load.wait_until_open()?;
        Ok(load)
    }

    fn wait_until_open(&self) -> Result<()> {
        let Shape { connections, ramp, .. } = self.shape;
        // Some are always between two lives.
        let enough = u64::from(connections) * 99 / 100;
        let end = Instant::now() + 4 * ramp + Duration::from_secs(10);
        thread::sleep(ramp);
        loop {
            let tally = self.tally.lock();
            if tally.open >= enough {
                return Ok(());
            }
            let first = tally.seen.first.as_deref().unwrap_or("no failure");
            ensure!(Instant::now() < end, "{} of {connections} connections are open; {first}", tally.open);
            drop(tally);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What has been seen since the last call.
    pub(super) fn take(&self) -> Seen {
        std::mem::take(&mut self.tally.lock().seen)
    }

    /// How many connections have ended by themselves since the last [`Self::take`].
    pub(super) fn ended(&self) -> u64 {
        self.tally.lock().seen.ended
    }

    /// Returns when every connection that was open at the call has asked at least once more, and has been answered or has
    /// broken.
    pub(super) fn settle(&self) {
        thread::sleep(self.shape.interval);
        let before = {
            let mut tally = self.tally.lock();
            tally.epoch += 1;
            (tally.epoch + 1) % 2
        };
        // Each ends in time, by its own limit.
        while self.tally.lock().asked[before] > 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Tally {
    fn fail(&mut self, what: impl FnOnce() -> String) {
        self.seen.first.get_or_insert_with(what);
    }
}

/// Starts a task for each of these connections. It must be called in a runtime, in which the tasks live.
fn populate(shape: &Shape, tally: &Shared, numbers: impl Iterator<Item = u32>) {
    let shape = Arc::new(shape.clone());
    for number in numbers {
        let (shape, tally) = (shape.clone(), tally.clone());
        tokio::spawn(async move {
            let mut chance = Chance::seeded(u64::from(number) + 1);
            sleep(shape.ramp.mul_f64(f64::from(number) / f64::from(shape.connections))).await;
            loop {
                if !live(&shape, &tally, number, &mut chance).await {
                    // Those that fail ask no more often than others.
                    sleep(shape.interval).await;
                }
            }
        });
    }
}

/// The life of one connection. Returns whether it had one.
async fn live(shape: &Shape, tally: &Shared, number: u32, chance: &mut Chance) -> bool {
    let begun_ns = monotonic_ns();
    let (mut stream, backend) = match timeout(shape.patience, open(shape, number)).await {
        Ok(Ok(opened)) => opened,
        failed => {
            let mut tally = tally.lock();
            tally.seen.failed += 1;
            let outcome = failed.ok().map(|opened| opened.map(|(_, backend)| backend));
            tally.fail(|| format!("not opened: {}", describe(outcome)));
            return false;
        }
    };
    {
        let mut tally = tally.lock();
        tally.open += 1;
        tally.seen.opened.push(Opened { begun_ns, answered_ns: monotonic_ns(), backend });
    }
    let end = Instant::now() + exponential(shape.life, chance);
    let how = loop {
        let next = Instant::now() + shape.interval;
        if next >= end {
            sleep_until(end).await;
            break None;
        }
        sleep_until(next).await;
        let late = next.elapsed().as_micros() as u32;
        if let Some(broken) = request(shape, tally, &mut stream, backend, late).await {
            break Some(broken);
        }
    };
    let mut tally = tally.lock();
    tally.open -= 1;
    match how {
        None => tally.seen.ended += 1,
        Some(how) => tally.seen.broken[how as usize] += 1,
    }
    true
}

/// Asks once on an open connection.
async fn request(shape: &Shape, tally: &Shared, stream: &mut TcpStream, own: Ipv4Addr, late: u32) -> Option<Break> {
    let asked_ns = monotonic_ns();
    let epoch = {
        let mut tally = tally.lock();
        let epoch = tally.epoch % 2;
        tally.asked[epoch] += 1;
        epoch
    };
    let outcome = timeout(shape.patience, ask(stream, asked_ns)).await.ok();
    let now = monotonic_ns();
    let broken = judge(own, outcome.as_ref());
    let mut tally = tally.lock();
    tally.asked[epoch] -= 1;
    match broken {
        None => tally.seen.answers.push(Answer { at_ns: now, took: ((now - asked_ns) / 1000) as u32, late }),
        Some(_) => tally.fail(|| format!("open to {own}: {}", describe(outcome))),
    }
    broken
}

async fn open(shape: &Shape, number: u32) -> io::Result<(TcpStream, Ipv4Addr)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((shape.sources[number as usize % shape.sources.len()], 0).into())?;
    let mut stream = socket.connect(shape.target).await?;
    stream.set_nodelay(true)?;
    let backend = ask(&mut stream, u64::from(number)).await?;
    Ok((stream, backend))
}

/// Sends a request and reads its answer: the backend's address.
async fn ask(stream: &mut TcpStream, number: u64) -> io::Result<Ipv4Addr> {
    stream.write_all(&number.to_be_bytes()).await?;
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).await?;
    let [a, b, c, d] = answer[REQUEST..] else { return Err(io::ErrorKind::InvalidData.into()) };
    if answer[..REQUEST] != number.to_be_bytes() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to another request"));
    }
    Ok(Ipv4Addr::new(a, b, c, d))
}

/// The outcome of a request that failed.
fn describe(outcome: Option<io::Result<Ipv4Addr>>) -> String {
    match outcome {
        Some(Ok(backend)) => format!("{backend} answered"),
        Some(Err(error)) => error.to_string(),
        None => "no answer".into(),
    }
}

/// A random time with this mean.
fn exponential(mean: Duration, chance: &mut Chance) -> Duration {
    // In (0, 1], so that the logarithm is finite.
    let share = ((chance.number() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    mean.mul_f64(-share.ln())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// How a backend treats the second request of each connection.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        None,
        Resets,
        Strays,
        Sleeps,
    }

    async fn faulty(listener: TcpListener, fault: Fault) {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut answer, mut backend) = ([0; ANSWER], [10, 0, 0, 1]);
                for request in 0.. {
                    stream.read_exact(&mut answer[..REQUEST]).await?;
                    match fault {
                        Fault::Resets if request == 1 => return stream.set_zero_linger(),
                        Fault::Sleeps if request == 1 => sleep(Duration::from_secs(60)).await,
                        Fault::Strays if request == 1 => backend = [10, 0, 0, 2],
                        _ => (),
                    }
                    answer[REQUEST..].copy_from_slice(&backend);
                    stream.write_all(&answer).await?;
                }
                io::Result::Ok(())
            });
        }
    }

    /// The counts once each of ten connections has asked twice or more.
    fn seen_of(fault: Fault) -> Seen {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(faulty(listener, fault));
            let shape = Shape {
                target: (Ipv4Addr::LOCALHOST, port).into(),
                sources: vec![Ipv4Addr::LOCALHOST],
                connections: 10,
                life: Duration::from_secs(3600),
                interval: Duration::from_millis(20),
                patience: Duration::from_millis(500),
                ramp: Duration::ZERO,
                threads: 1,
            };
            let tally = Shared::default();
            populate(&shape, &tally, 0..10);
            let is_seen = |seen: &Seen| seen.answers.len() as u64 + seen.broken.iter().sum::<u64>() >= 10;
            let end = Instant::now() + Duration::from_secs(30);
            while !is_seen(&tally.lock().seen) {
                assert!(Instant::now() < end, "{:?}", tally.lock().seen.broken);
                sleep(Duration::from_millis(10)).await;
            }
            std::mem::take(&mut tally.lock().seen)
        })
    }

    #[test]
    fn a_connection_that_breaks_is_counted_by_how() {
        assert_eq!(seen_of(Fault::None).broken, [0, 0, 0]);
        for (how, fault) in [Fault::Resets, Fault::Strays, Fault::Sleeps].into_iter().enumerate() {
            let broken = seen_of(fault).broken;
            assert!(broken[how] >= 10, "{broken:?}");
            assert_eq!(broken.iter().sum::<u64>(), broken[how], "{broken:?}");
        }
    }

    #[test]
    fn lives_have_their_mean() {
        let mut chance = Chance::seeded(7);
        let sum: f64 = (0..100_000).map(|_| exponential(Duration::from_secs(60), &mut chance).as_secs_f64()).sum();
        assert!((59.0..61.0).contains(&(sum / 100_000.0)), "{sum}");
    }
}
