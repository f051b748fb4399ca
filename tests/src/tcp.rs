//! What the kernel knows of TCP: its counters, and its connections.

use crate::{netns::Namespace, topology::Lab};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

/// A counter of TCP in a namespace since it was created, for example `EstabResets`: connections that went from
/// established directly to closed.
pub fn tcp_counter(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))?.context("cannot read snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no TCP counters")?;
    let found = names.split(' ').zip(values.split(' ')).find(|(other, _)| *other == name);
    Ok(found.with_context(|| format!("no TCP counter {name}"))?.1.parse()?)
}

/// The number of segments that the kernel has sent more than once on a connection, including the SYN. It shows that nothing was
/// lost and waited for, which no clock shows on a busy machine.
pub fn retransmissions(stream: &TcpStream) -> Result<u32> {
    Ok(info(stream)?.tcpi_total_retrans)
}

/// The time from a client's SYN to the answer, as its kernel has measured it, of a connection on which nothing was sent since.
pub fn handshake_time(stream: &TcpStream) -> Result<Duration> {
    Ok(Duration::from_micros(info(stream)?.tcpi_rtt.into()))
}

/// Waits until no backend has a connection of a client. One in TIME-WAIT has ended.
pub fn no_backend_knows(lab: &Lab, client: SocketAddr) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let mut known = Vec::new();
        for backend in &lab.backends {
            let sockets = backend.namespace.run(&format!("ss -H -t -n -a dst {client}"))?;
            known.extend(sockets.lines().filter(|line| !line.starts_with("TIME-WAIT")).map(str::to_owned));
        }
        if known.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "a backend still has {known:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn info(stream: &TcpStream) -> Result<libc::tcp_info> {
    // SAFETY: a plain struct of integers, for which zeros are values.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let fd = stream.as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes to `info`, which outlives the call.
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("TCP_INFO");
    }
    Ok(info)
}
