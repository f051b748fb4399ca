//! Whole frames, sent and received as they are: AF_PACKET (packet(7)).

use crate::{netns::Namespace, server::hold_bursts};
use anyhow::{Context, Result, bail};
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// A packet socket on one interface.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens it on an interface of the namespace.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let open = || Self::open_here(interface);
        namespace.enter(open)?.with_context(|| format!("no packet socket on {interface} of {}", namespace.name()))
    }

    fn open_here(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the pointer is to a string that ends with a zero and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        if index == 0 || socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: a sockaddr_ll of zeros is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index.cast_signed();
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer is to an address of the length given, which outlives the call.
        match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
            0 => hold_bursts(&socket).map(|()| Self(socket)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends one frame, from its first MAC address to its last octet.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer is to as many bytes as are named.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match usize::try_from(sent) {
            Ok(sent) if sent == frame.len() => Ok(()),
            Ok(sent) => bail!("sent {sent} of {} bytes", frame.len()),
            Err(_) => Err(io::Error::last_os_error()).with_context(|| format!("cannot send {} bytes", frame.len())),
        }
    }

    /// Frames that come in and of which `ours` is true, until `last` is true of one of them.
    pub fn receive_until(
        &self,
        patience: Duration,
        ours: impl Fn(&[u8]) -> bool,
        last: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + patience;
        let mut frames = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match self.receive(&mut buffer)? {
                Some(frame) if ours(frame) => {
                    frames.push(frame.to_owned());
                    if last(frame) {
                        return Ok(frames);
                    }
                }
                Some(_) => (),
                None if Instant::now() > end => bail!("the last of the frames has not come; {} have", frames.len()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// The next frame that has come in, if there is one; what goes out by the interface is passed over.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        loop {
            // SAFETY: a sockaddr_ll of zeros is a valid value.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_length = size_of_val(&from) as libc::socklen_t;
            // SAFETY: both pointers are to as many bytes as are named.
            let length = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut from_length,
                )
            };
            let Ok(length) = usize::try_from(length) else {
                let error = io::Error::last_os_error();
                return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error.into()) };
            };
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return Ok(Some(&buffer[..length]));
            }
        }
    }
}
