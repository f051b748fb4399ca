//! What passes an interface, and when: the packets that tcpdump(8) would show, with the kernel's time of each. It shares no code with the engine.

use crate::{frames::ends, netns::Namespace, raw::RawSocket, server::monotonic_ns};
use anyhow::{Result, anyhow, ensure};
use bg_common::Protocol;
use etherparse::{SlicedPacket, TransportSlice};
use std::{
    io,
    mem::{size_of, zeroed},
    net::SocketAddr,
    os::fd::{AsRawFd as _, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// A TCP segment or a UDP datagram that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Whether it is a TCP segment with the flag RST.
    pub is_reset: bool,
}

/// A capture that goes on until it is stopped. It sees packets in both directions.
#[derive(Debug)]
pub struct Capture {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Seen>>>,
}

impl Capture {
    /// Starts a capture at an interface of the namespace.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = RawSocket::open(namespace, interface)?;
        set(socket.as_raw_fd(), libc::SO_TIMESTAMPNS, &1_i32)?;
        set(socket.as_raw_fd(), libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 0, tv_usec: 10_000 })?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = thread::spawn(move || {
            let (mut seen, mut frame) = (Vec::new(), vec![0; 65_536]);
            loop {
                // What has come before the end is still read.
                let is_last = ends.load(Ordering::Relaxed);
                match receive(socket.as_raw_fd(), &mut frame)? {
                    Some((length, at_ns)) => seen.extend(read(&frame[..length], at_ns)),
                    None if is_last => break,
                    None => (),
                }
            }
            ensure!(lost(socket.as_raw_fd())? == 0, "the capture has missed packets");
            Ok(seen)
        });
        Ok(Self { is_over, thread })
    }

    /// Stops it, and returns what has passed.
    pub fn stop(self) -> Result<Vec<Seen>> {
        // Packets that have been sent reach the other end of a cable a moment later.
        thread::sleep(Duration::from_millis(20));
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a capture has panicked"))?
    }
}

fn set<T>(socket: RawFd, option: libc::c_int, value: &T) -> Result<()> {
    let (pointer, length) = ((&raw const *value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the pointer is to a value of the length given, which outlives the call.
    let result = unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, pointer, length) };
    ensure!(result == 0, io::Error::last_os_error());
    Ok(())
}

/// The next frame's length, and its time. `None`: none has come for a while.
fn receive(socket: RawFd, frame: &mut [u8]) -> Result<Option<(usize, u64)>> {
    let mut control = [0_u64; 32];
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: a msghdr of zeros is a valid value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: all that the message points to outlives the call and is as long as it says.
    let length = unsafe { libc::recvmsg(socket, &raw mut message, 0) };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error.into()) };
    };
    // SAFETY: the kernel has filled the message; the macros walk its control messages, of which one has a timespec.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
                let time = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
                return Ok(Some((length, monotonic(time))));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Err(anyhow!("a packet without a time"))
}

/// A time of the wall clock by the clock that nobody sets.
fn monotonic(time: libc::timespec) -> u64 {
    let nanos = |time: libc::timespec| time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned();
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    (monotonic_ns() + nanos(time)).saturating_sub(nanos(now))
}

const PACKET_STATISTICS: libc::c_int = 6;

/// How many packets had no room.
fn lost(socket: RawFd) -> Result<u32> {
    // `struct tpacket_stats`: packets, and those that were lost.
    let mut counts = [0_u32; 2];
    let mut length = size_of_val(&counts) as libc::socklen_t;
    let pointer = counts.as_mut_ptr().cast();
    // SAFETY: the pointer is to as many octets as the length says; both outlive the call.
    let result = unsafe { libc::getsockopt(socket, libc::SOL_PACKET, PACKET_STATISTICS, pointer, &raw mut length) };
    ensure!(result == 0, io::Error::last_os_error());
    Ok(counts[1])
}

fn read(frame: &[u8], at_ns: u64) -> Option<Seen> {
    let (protocol, is_reset) = match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Tcp(tcp) => (Protocol::Tcp, tcp.rst()),
        TransportSlice::Udp(_) => (Protocol::Udp, false),
        _ => return None,
    };
    let (from, to) = ends(frame);
    Some(Seen { at_ns, from, to, protocol, is_reset })
}
