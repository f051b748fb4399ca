//! Connecting to many TCP endpoints at once, to find out whether they accept connections.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt::socket_error},
    process::{Resource, getrlimit},
};

/// The outcome of an attempt to connect.
#[derive(Debug)]
pub(crate) enum Connected {
    /// The connection was accepted, and closed at once.
    Yes,
    /// It was refused, or could not be attempted.
    No(io::Error),
    /// There was no answer in time.
    Silent,
    /// It was not attempted, because all the time was spent on other endpoints.
    Untried,
}

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For each endpoint.
    pub(crate) each: Duration,
    /// For all of them. Endpoints that have not been tried by then are left out.
    pub(crate) all: Duration,
}

/// Connects to each endpoint, and closes the connection again. The outcomes have the order of the endpoints.
pub(crate) fn connect_to_all(endpoints: &[SocketAddr], patience: Patience) -> Vec<Connected> {
    let mut outcomes: Vec<_> = endpoints.iter().map(|_| Connected::Untried).collect();
    let end = Instant::now() + patience.all;
    let mut untried = endpoints.iter().enumerate();
    let mut attempts: Vec<Attempt> = Vec::new();
    let at_once = at_once();
    loop {
        while attempts.len() < at_once && Instant::now() + patience.each <= end {
            let Some((index, endpoint)) = untried.next() else { break };
            match begin(endpoint) {
                Ok(socket) => attempts.push(Attempt { index, socket, end: Instant::now() + patience.each }),
                Err(error) => outcomes[index] = Connected::No(error.into()),
            }
        }
        let Some(next) = attempts.iter().map(|attempt| attempt.end).min() else { return outcomes };
        let mut is_answered = wait(&attempts, next).into_iter();
        let now = Instant::now();
        attempts.retain(|attempt| {
            let outcome = if is_answered.next() == Some(true) {
                attempt.outcome()
            } else if now >= attempt.end {
                Connected::Silent
            } else {
                return true;
            };
            outcomes[attempt.index] = outcome;
            false
        });
    }
}

/// A connection that is being opened.
struct Attempt {
    index: usize,
    socket: OwnedFd,
    end: Instant,
}

impl Attempt {
    /// The outcome, once the kernel has reported that there is one.
    fn outcome(&self) -> Connected {
        match socket_error(&self.socket) {
            Ok(Ok(())) => Connected::Yes,
            Ok(Err(error)) | Err(error) => Connected::No(error.into()),
        }
    }
}

/// Waits until one of the attempts has an outcome, until this moment at the latest. Returns for each whether it has one.
fn wait(attempts: &[Attempt], until: Instant) -> Vec<bool> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    let mut fds: Vec<_> =
        attempts.iter().map(|attempt| PollFd::from_borrowed_fd(attempt.socket.as_fd(), PollFlags::OUT)).collect();
    // A signal ends the wait early, and the caller waits again.
    let _ = poll(&mut fds, Some(&left));
    fds.iter().map(|fd| !fd.revents().is_empty()).collect()
}

fn begin(endpoint: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if endpoint.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, endpoint) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// The number of connections to open at once: many, but only half of the files that the process may have open.
fn at_once() -> usize {
    const MOST: u64 = 512;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (limit / 2).clamp(1, MOST) as usize
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const PATIENCE: Patience = Patience { each: Duration::from_millis(300), all: Duration::from_secs(30) };

    #[test]
    fn each_endpoint_has_the_outcome_of_its_own_attempt() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoints = [closed, listener.local_addr().unwrap(), six.local_addr().unwrap(), closed];
        let outcomes = connect_to_all(&endpoints, PATIENCE);
        let [Connected::No(first), Connected::Yes, Connected::Yes, Connected::No(last)] = &outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!([first.kind(), last.kind()], [io::ErrorKind::ConnectionRefused; 2]);
    }

    #[test]
    fn a_full_backlog_is_silent_and_costs_no_more_than_the_patience() {
        // A listener that accepts nothing answers only as many clients as its backlog has room for.
        let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let endpoint: SocketAddr = rustix::net::getsockname(&listener).unwrap().try_into().unwrap();
        let _waiting: Vec<_> = (0..3).map(|_| begin(&endpoint).unwrap()).collect();
        let many = vec![endpoint; 2000];
        let start = Instant::now();
        let outcomes = connect_to_all(&many, PATIENCE);
        assert!(start.elapsed() < Duration::from_secs(20), "not one after the other");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Connected::Silent)), "{outcomes:?}");
        // No time for a second round.
        let outcomes = connect_to_all(&many, Patience { all: PATIENCE.each + PATIENCE.each / 2, ..PATIENCE });
        assert!(matches!(outcomes[..], [Connected::Silent, .., Connected::Untried]), "{outcomes:?}");
    }
}
