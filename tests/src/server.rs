//! The servers of a lab's backend: HTTP, with a body that names colour and backend, and a UDP echo server that returns
//! the same, with a number and the time of arrival.

use crate::{
    netns::Namespace,
    worker::{Stop, Worker},
};
use anyhow::{Context, Result};
use std::{
    net::IpAddr,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// Port of the HTTP server.
pub const HTTP_PORT: u16 = 8080;
/// Port of the UDP echo.
pub const UDP_PORT: u16 = 5353;

/// Nanoseconds of `CLOCK_MONOTONIC`, which is one clock for all namespaces of the machine.
pub fn monotonic_ns() -> u64 {
    nanos_of(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
pub fn boot_ns() -> u64 {
    nanos_of(libc::CLOCK_BOOTTIME)
}

fn nanos_of(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that outlives the call.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The servers of one backend, on a separate thread.
#[derive(Debug)]
pub struct Server {
    requests: Arc<AtomicU64>,
    _worker: Worker,
}

impl Server {
    /// Serves on each of the addresses. `says` is colour and name, for example `blue blue1`. Returns when all
    /// sockets are bound.
    pub fn start(namespace: &Namespace, says: &str, addresses: &[IpAddr]) -> Result<Self> {
        let sockets = namespace.enter(|| Sockets::bind(addresses))??;
        let requests = Arc::new(AtomicU64::new(0));
        let (says, counter) = (says.to_owned(), requests.clone());
        let worker = Worker::spawn(namespace, async move |mut stop: Stop| {
            sockets.serve(&says, &counter)?;
            stop.wait().await;
            Ok(())
        })?;
        Ok(Self { requests, _worker: worker })
    }

    /// The number of HTTP requests answered so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// Serves in this process and its namespace until it is killed.
pub fn serve(says: &str, addresses: &[IpAddr]) -> Result<()> {
    let sockets = Sockets::bind(addresses)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        sockets.serve(says, &Arc::default())?;
        std::future::pending().await
    })
}

struct Sockets(Vec<(std::net::TcpListener, std::net::UdpSocket)>);

impl Sockets {
    fn bind(addresses: &[IpAddr]) -> Result<Self> {
        let bind = |address: IpAddr| {
            let tcp = std::net::TcpListener::bind((address, HTTP_PORT))?;
            hold_connections(&tcp)?;
            let udp = std::net::UdpSocket::bind((address, UDP_PORT))?;
            hold_bursts(&udp)?;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            std::io::Result::Ok((tcp, udp))
        };
        let bind = |address: &IpAddr| bind(*address).with_context(|| format!("cannot serve on {address}"));
        Ok(Self(addresses.iter().map(bind).collect::<Result<_>>()?))
    }

    /// Starts to serve, in the background of the runtime.
    fn serve(self, says: &str, requests: &Arc<AtomicU64>) -> Result<()> {
        let says = Arc::<str>::from(says);
        for (tcp, udp) in self.0 {
            tokio::spawn(serve_http(TcpListener::from_std(tcp)?, says.clone(), requests.clone()));
            tokio::spawn(serve_udp(UdpSocket::from_std(udp)?, says.clone()));
        }
        Ok(())
    }
}

/// Gives a socket a buffer for packets that arrive while its reader waits for a processor. Otherwise a loss in the lab would
/// look like a loss by a switch.
pub fn hold_bursts(socket: &impl AsRawFd) -> std::io::Result<()> {
    let bytes: libc::c_int = 16 << 20;
    // SAFETY: the pointer is to an integer of the length given, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Has a listening socket hold more connections that are not accepted yet than the 128 of the standard library. A thaw lets all go on at once that have come
/// during a freeze, and a SYN for which there is no room is lost.
fn hold_connections(listener: &std::net::TcpListener) -> std::io::Result<()> {
    const BACKLOG: libc::c_int = 4096;
    // SAFETY: takes no pointers.
    match unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

async fn serve_http(listener: TcpListener, says: Arc<str>, requests: Arc<AtomicU64>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_connection(stream, says.clone(), requests.clone()));
            }
            // Out of descriptors, say: the connection waits in the backlog meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Answers each request on a connection, pipelined or not, until the client closes it or requests that.
async fn serve_connection(mut stream: TcpStream, says: Arc<str>, requests: Arc<AtomicU64>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let body = format!("{says}\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n", body.len());
    let mut received = Vec::with_capacity(1024);
    loop {
        while let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let close = received[..end].windows(17).any(|bytes| bytes.eq_ignore_ascii_case(b"connection: close"));
            received.drain(..end + 4);
            requests.fetch_add(1, Ordering::Relaxed);
            let connection = if close { "Connection: close\r\n" } else { "" };
            stream.write_all(format!("{head}{connection}\r\n{body}").as_bytes()).await?;
            if close {
                return stream.shutdown().await;
            }
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}

/// Answers each datagram: `<colour> <name> <number of the datagram here> <arrival, ns> <content>`.
async fn serve_udp(socket: UdpSocket, says: Arc<str>) {
    let mut buffer = vec![0; 2048];
    for number in 0_u64.. {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let mut answer = format!("{says} {number} {} ", monotonic_ns()).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        // A client that is gone does not matter to the others.
        let _ = socket.send_to(&answer, client).await;
    }
}
