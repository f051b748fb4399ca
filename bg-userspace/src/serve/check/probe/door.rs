//! Where a check's connection goes: to the backend's own address, or to the virtual address at the backend.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustix::{io::Errno, net::sockopt::set_socket_linger};
use tokio::net::TcpStream;

use super::{
    super::by_vip::{Opener, Prepared, Registered, Target, Trouble},
    why::Why,
};

/// What a connection fails with whose device is down, gone, without its address or behind a firewall. No packet has gone to the backend then.
const OF_DEVICE: [Errno; 6] =
    [Errno::NETUNREACH, Errno::NETDOWN, Errno::NODEV, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE, Errno::PERM];

/// Where it goes.
#[derive(Debug)]
pub(super) struct Door {
    backend: SocketAddr,
    by_vip: Option<(Target, Arc<Opener>)>,
}

impl Door {
    /// To the backend's own address.
    pub(super) const fn own(backend: SocketAddr) -> Self {
        Self { backend, by_vip: None }
    }

    /// To the virtual address at the backend, as long as this host is able to.
    pub(super) const fn by_vip(backend: SocketAddr, target: Target, opener: Arc<Opener>) -> Self {
        Self { backend, by_vip: Some((target, opener)) }
    }

    /// The backend's own address, and the port.
    pub(super) const fn backend(&self) -> SocketAddr {
        self.backend
    }

    /// The address that the server is asked at.
    pub(super) fn asked(&self) -> SocketAddr {
        let ip = self.by_vip.as_ref().map_or(self.backend.ip(), |(target, _)| target.vip);
        SocketAddr::new(ip, self.backend.port())
    }

    /// The same in a sentence, if it is not the backend's own.
    pub(super) fn place(&self) -> String {
        self.by_vip.as_ref().map(|_| format!(" at {}", self.asked())).unwrap_or_default()
    }

    /// Opens a connection, which a reset closes: it leaves nothing behind, neither here, where a thousand checks a second would use up the
    /// ports, nor at the backend. What comes with it must live as long.
    pub(super) async fn connect(&self) -> Result<(TcpStream, Option<Registered>), Why> {
        let (connected, registered) = match self.prepared()? {
            Some(prepared) => (prepared.socket.connect(prepared.to).await, Some(prepared.registered)),
            None => (TcpStream::connect(self.backend).await, None),
        };
        let stream = connected.map_err(|error| {
            let is_of_device = Errno::from_io_error(&error).is_some_and(|errno| OF_DEVICE.contains(&errno));
            match &registered {
                Some(_) if is_of_device => Why::local(format_args!("no connection by the device of checks: {error}")),
                _ => Why::of(format_args!("no connection{}", self.place()), &error),
            }
        })?;
        // What this cannot set is closed in the usual way.
        let _ = set_socket_linger(&stream, Some(Duration::ZERO));
        let _ = stream.set_nodelay(true);
        Ok((stream, registered))
    }

    /// What [`Self::trouble`] is to be asked with, if a check that begins now fails.
    pub(super) fn begin(&self) -> u64 {
        self.by_vip.as_ref().map_or(0, |(_, opener)| opener.number())
    }

    /// What was wrong with this host's own device since then, if anything was: whatever the check has failed with may come from that.
    pub(super) fn trouble(&self, begin: u64) -> Option<Why> {
        let (target, opener) = self.by_vip.as_ref()?;
        opener.trouble(begin, target).map(Why::local)
    }

    fn prepared(&self) -> Result<Option<Prepared>, Why> {
        let Some((target, opener)) = &self.by_vip else { return Ok(None) };
        opener.prepare(target, self.backend).map_err(|trouble| match trouble {
            Trouble::NoWay(why) => Why::new(why),
            Trouble::Unable(why) | Trouble::Gone(why) => Why::local(why),
        })
    }
}
