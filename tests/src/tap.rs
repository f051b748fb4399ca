//! A tap: an interface whose other end is a file, as for a virtual machine (Documentation/networking/tuntap.rst).

use crate::netns::Namespace;
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt as _},
    time::{Duration, Instant},
};

/// The end of a tap that is not the host's. Dropping it removes the interface.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Creates an interface of this name in the namespace, and sets it up.
    pub fn create(namespace: &Namespace, name: &str) -> Result<Self> {
        let file = namespace.enter(|| create_here(name))?.with_context(|| format!("cannot make the tap {name}"))?;
        namespace.ip(&format!("link set {name} up"))?;
        Ok(Self(file))
    }

    /// Sends one frame to the host.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        (&self.0).write_all(frame).context("cannot write to the tap")
    }

    /// The next frame that the host sends; `None` if there is none for this long.
    pub fn receive_within(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(length) => return Ok(Some(buffer[..length].to_vec())),
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Err(error).context("cannot read from the tap");
                }
                Err(_) if Instant::now() > end => return Ok(None),
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }
}

fn create_here(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: plain old data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: the request outlives the call, and its name ends in a zero.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}
