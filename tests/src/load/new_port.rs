//! Ports that the edge does not know yet.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

/// Binds a UDP socket in the calling thread's namespace to a port that none had that was bound so before in this process: what it sends
/// opens a flow. The kernel may choose the port of a closed socket, whose flow the edge still remembers.
pub fn bind_new(address: impl Into<IpAddr>) -> io::Result<UdpSocket> {
    const FIRST_PORT: u16 = 10_000;
    static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    let address = address.into();
    for _ in FIRST_PORT..=u16::MAX {
        let next = |port: u16| Some(if port == u16::MAX { FIRST_PORT } else { port + 1 });
        let port = NEXT_PORT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|port| port);
        match UdpSocket::bind((address, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}
