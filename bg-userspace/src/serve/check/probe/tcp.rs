//! Whether a TCP connection can be opened.

use std::{net::SocketAddr, time::Duration};

use rustix::net::sockopt::set_socket_linger;
use tokio::net::TcpStream;

use super::why::Why;

/// Opens a connection, which a reset closes: it leaves nothing behind, neither here, where a thousand checks a second would use up the
/// ports, nor at the backend.
pub(super) async fn connect(to: SocketAddr) -> Result<TcpStream, Why> {
    let stream = TcpStream::connect(to).await.map_err(|error| Why::of("no connection", &error))?;
    // What this cannot set is closed in the usual way.
    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

pub(super) async fn check(to: SocketAddr) -> Result<(), Why> {
    connect(to).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_open_or_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(check(address).await, Ok(()));
        drop(listener);
        let why = check(address).await.unwrap_err().to_string();
        assert!(why.contains("Connection refused"), "{why}");
    }
}
