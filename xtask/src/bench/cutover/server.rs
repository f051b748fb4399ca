//! The backends' server. It answers each request with the request's number and the address at which the connection arrived, which
//! names the backend.

use anyhow::{Context, Result};
use socket2::{SockRef, TcpKeepalive};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};

/// The port of every backend.
pub(super) const PORT: u16 = 8080;
/// Bytes of a request: its number.
pub(super) const REQUEST: usize = 8;
/// Bytes of an answer: the number, and the backend's address.
pub(super) const ANSWER: usize = 12;
/// The queue of connections that wait to be accepted.
pub(super) const BACKLOG: u32 = 65_535;

/// Binds a port of all addresses, which other threads may share, and serves in the background of the runtime. A connection that is idle for
/// so long, and whose client does not answer probes of the kernel for 9 s, is closed.
pub(super) fn start(port: u16, idle: Duration) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    socket.bind(all).with_context(|| format!("cannot bind {all}"))?;
    // Connections inherit it. There are nine probes.
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(Duration::from_secs(1));
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    tokio::spawn(serve(socket.listen(BACKLOG)?));
    Ok(())
}

async fn serve(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream))),
            // Out of files, say: the connection waits in the backlog meanwhile.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Answers the requests of a connection until the client closes it or is gone.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let SocketAddr::V4(own) = stream.local_addr()? else { return Ok(()) };
    let mut answer = [0; ANSWER];
    answer[REQUEST..].copy_from_slice(&own.ip().octets());
    while stream.read_exact(&mut answer[..REQUEST]).await.is_ok() {
        stream.write_all(&answer).await?;
    }
    Ok(())
}
