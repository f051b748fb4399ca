//! Listening for the connections of one colour of a service.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bg_common::Colour;
use tokio::{
    net::{TcpListener, TcpSocket},
    time::sleep,
};

use super::service::Service;

/// Accepts until it is aborted.
pub(super) async fn listen(service: Arc<Service>, colour: Colour, address: SocketAddr) {
    let listener = bound(address).await;
    tracing::info!(%address, colour = colour.name(), "listens for connections that are fed to both colours");
    loop {
        match listener.accept().await {
            Ok((stream, client)) => service.accept(stream, client, colour),
            Err(error) => {
                // Out of descriptors, or one connection that was reset before it was accepted.
                tracing::debug!(%address, "cannot accept: {error}");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// The listener, as soon as the address can be had.
async fn bound(address: SocketAddr) -> TcpListener {
    const AGAIN: Duration = Duration::from_secs(1);
    let mut said = String::new();
    loop {
        match bind(address) {
            Ok(listener) => return listener,
            Err(error) => {
                let error = error.to_string();
                if said != error {
                    tracing::error!(%address, "cannot listen: {error}; new connections of this colour are refused");
                    said = error;
                }
            }
        }
        sleep(AGAIN).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    /// Connections that wait to be accepted. The kernel's `somaxconn` is the limit.
    const BACKLOG: u32 = 65_535;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of a controller that has ended may still be there.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
