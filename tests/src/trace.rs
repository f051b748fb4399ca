//! What `traceroute` does: datagrams that may take one hop more each, and who complains of each. Complaints are read from the
//! socket's error queue (`IP_RECVERR` of ip(7)), so the sender's stack has taken them for its own datagrams'.

use crate::netns::Namespace;
use anyhow::{Context, Result, bail};
use std::{
    io,
    mem::{size_of_val, zeroed},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

/// What came of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Its hop limit was spent at this address.
    Spent(IpAddr),
    /// This address says that it could not be delivered.
    Refused(IpAddr),
    /// It was answered.
    Answered,
}

/// The hops on the way from a namespace to an address, until one refuses or answers.
pub fn trace(namespace: &Namespace, to: SocketAddr) -> Result<Vec<Hop>> {
    namespace.enter(|| {
        let mut hops = Vec::new();
        for limit in 1..=8 {
            let hop = probe(to, limit).with_context(|| format!("hop {limit} on the way to {to}, after {hops:?}"))?;
            hops.push(hop);
            if !matches!(hop, Hop::Spent(_)) {
                return Ok(hops);
            }
        }
        bail!("{to} is further away: {hops:?}")
    })?
}

/// Sends a datagram with a hop limit from a port of its own.
fn probe(to: SocketAddr, hop_limit: i32) -> Result<Hop> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    let (level, limit, errors) = match to {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_RECVERR),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_RECVERR),
    };
    set(&socket, level, limit, hop_limit)?;
    set(&socket, level, errors, 1)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(to)?;
    socket.send(b"trace")?;
    let mut buffer = [0; 64];
    match socket.recv(&mut buffer) {
        Ok(_) => Ok(Hop::Answered),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!("nobody answers"),
        Err(_) => complaint(&socket),
    }
}

fn set(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    let (pointer, length) = ((&raw const value).cast(), size_of_val(&value) as libc::socklen_t);
    // SAFETY: the pointer is to an integer that outlives the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A `sock_extended_err`, and the address of the one who has sent the error.
#[repr(C)]
struct Complaint {
    error: libc::sock_extended_err,
    offender: libc::sockaddr_in6,
}

/// The next message of the error queue.
fn complaint(socket: &UdpSocket) -> Result<Hop> {
    let mut control = [0_u64; 32];
    // SAFETY: a msghdr of zeros is a valid value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message's pointers are to memory of the lengths that it tells.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) } < 0 {
        return Err(io::Error::last_os_error()).context("no error in the queue");
    }
    // SAFETY: the kernel has filled the message.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        bail!("an error without its origin");
    }
    // SAFETY: the data lies in the control buffer, which is longer; its parts are plain old data.
    let Complaint { error, offender } = unsafe { libc::CMSG_DATA(header).cast::<Complaint>().read_unaligned() };
    let from = match i32::from(offender.sin6_family) {
        // IPv4 stands where the flow information would: the second word of a `sockaddr_in`.
        libc::AF_INET => IpAddr::from(offender.sin6_flowinfo.to_ne_bytes()),
        libc::AF_INET6 => IpAddr::from(offender.sin6_addr.s6_addr),
        family => bail!("an error of family {family}"),
    };
    Ok(match (from.is_ipv4(), error.ee_type) {
        (true, 11) | (false, 3) => Hop::Spent(from),
        _ => Hop::Refused(from),
    })
}
