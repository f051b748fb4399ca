//! Clients that send numbered requests with bodies, and note every failure.

use anyhow::{Context, Result, bail};
use bg_tests::Namespace;
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::net::TcpSocket;

/// The body of a request: letters that depend on its number, of some length up to 16 KiB.
pub(crate) fn body(number: u64) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let length = if number.is_multiple_of(3) { (state >> 50) as usize } else { (state >> 56) as usize };
    let letters = (0..=length).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    });
    letters.collect()
}

/// An open connection.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("cannot connect")?;
        Self::of(stream)
    }

    /// The same from this address.
    pub(crate) fn open_from(from: IpAddr, to: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stream = runtime.block_on(async {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.bind(SocketAddr::new(from, 0))?;
            socket.connect(to).await?.into_std()
        });
        let stream = stream.context("cannot connect")?;
        stream.set_nonblocking(false)?;
        Self::of(stream)
    }

    fn of(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Its own end, as nginx notes it.
    pub(crate) fn name(&self) -> Result<String> {
        let own = self.stream.get_ref().local_addr()?;
        Ok(format!("{} {}", own.ip(), own.port()))
    }

    /// Sends a request and returns the answer's body.
    pub(crate) fn ask(&mut self, number: u64) -> Result<String> {
        let body = body(number);
        let head =
            format!("POST / HTTP/1.1\r\nHost: x\r\nX-Number: {number}\r\nContent-Length: {}\r\n\r\n", body.len());
        self.stream.get_mut().write_all((head + &body).as_bytes()).context("cannot send")?;
        let mut line = String::new();
        self.stream.read_line(&mut line).context("no answer")?;
        if !line.starts_with("HTTP/1.1 200") {
            bail!("request {number}: {line:?}");
        }
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok(String::from_utf8(answer)?.trim().to_owned())
    }
}

/// What clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Who has answered each request, and by which connection it came.
    pub(crate) answers: BTreeMap<u64, (String, String)>,
    pub(crate) failures: Vec<String>,
    pub(crate) longest: Duration,
}

/// Sends the numbers from `first` on, `count` of them, over eight connections at a time, with a pause before each, or until `stop`.
pub(crate) fn load(
    namespace: &Namespace,
    vip: SocketAddr,
    first: u64,
    count: u64,
    pause: Duration,
    stop: &AtomicBool,
) -> Result<Seen> {
    let next = AtomicU64::new(first);
    let seen = Mutex::new(Seen::default());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let mut connection = match Connection::open(vip) {
                Ok(connection) => connection,
                Err(error) => {
                    seen.lock().expect("no thread panics").failures.push(format!("{error:#}"));
                    return;
                }
            };
            let name = connection.name().unwrap_or_default();
            let mut left = 1;
            while left > 0 && !stop.load(Ordering::Relaxed) {
                thread::sleep(pause);
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= first + count {
                    return;
                }
                // Some connections bring one request, some ten.
                left = if left == 1 { number % 10 } else { left - 1 };
                let start = Instant::now();
                let answer = connection.ask(number);
                let mut seen = seen.lock().expect("no thread panics");
                seen.longest = seen.longest.max(start.elapsed());
                match answer {
                    Ok(answer) => _ = seen.answers.insert(number, (answer, name.clone())),
                    Err(error) => {
                        seen.failures.push(format!("request {number}: {error:#}"));
                        break;
                    }
                }
            }
        }
    };
    namespace.enter(|| {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(work_in(namespace, &work));
            }
        });
    })?;
    Ok(seen.into_inner().expect("no thread panics"))
}

fn work_in<'a>(namespace: &'a Namespace, work: &'a (impl Fn() + Sync)) -> impl FnOnce() + Send + 'a {
    move || {
        namespace.adopt_thread().expect("the namespace is there");
        work();
    }
}
