//! The backends' server. It answers each request with the request's number and the address at which the connection arrived, which
//! names the backend.

use anyhow::{Context, Result};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};

/// The port of every backend.
pub(super) const PORT: u16 = 8080;
/// Bytes of a request: its number.
pub(super) const REQUEST: usize = 8;
/// Bytes of an answer: the number, and the backend's address.
pub(super) const ANSWER: usize = 12;
/// The queue of connections that wait to be accepted.
pub(super) const BACKLOG: u32 = 65_535;

/// Binds a port of all addresses, which other threads may share, and serves in the background of the runtime. Connections that are idle for
/// this long are closed. Returns the port.
pub(super) fn start(port: u16, idle: Duration) -> Result<u16> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    socket.bind(all).with_context(|| format!("cannot bind {all}"))?;
    let listener = socket.listen(BACKLOG)?;
    let port = listener.local_addr()?.port();
    tokio::spawn(serve(listener, idle));
    Ok(port)
}

async fn serve(listener: TcpListener, idle: Duration) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream, idle))),
            // Out of files, say: the connection waits in the backlog meanwhile.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Answers the requests of a connection until the client closes it or is gone.
async fn answer(mut stream: TcpStream, idle: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let SocketAddr::V4(own) = stream.local_addr()? else { return Ok(()) };
    let mut answer = [0; ANSWER];
    answer[REQUEST..].copy_from_slice(&own.ip().octets());
    while let Ok(Ok(_)) = timeout(idle, stream.read_exact(&mut answer[..REQUEST])).await {
        stream.write_all(&answer).await?;
    }
    Ok(())
}
