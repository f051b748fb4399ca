//! A WebSocket that answers each message with its colour and the number of the message in the session.

use crate::WEBSOCKET;
use anyhow::{Context, Result};
use bg_tests::{Backend, Lab, Worker};
use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};
use tungstenite::Message;

/// Serves on a backend.
pub(crate) fn serve(backend: &Backend) -> Result<Worker> {
    let address = SocketAddr::new(backend.addresses[0], WEBSOCKET);
    let listener = backend.namespace.enter(|| TcpListener::bind(address))??;
    listener.set_nonblocking(true)?;
    let colour = backend.colour.name();
    Worker::spawn(&backend.namespace, async move |stop| {
        while !stop.is_set() {
            match listener.accept() {
                // Ends with its connection.
                Ok((stream, _)) => drop(thread::spawn(move || converse(stream, colour))),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        Ok(())
    })
}

fn converse(stream: TcpStream, colour: &str) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut socket = tungstenite::accept(stream).ok().context("no WebSocket handshake")?;
    for number in 0.. {
        let message = socket.read()?.into_text()?.to_string();
        socket.send(Message::text(format!("{colour} {number} {message}")))?;
    }
    Ok(())
}

/// A session of the client.
pub(crate) struct WebSocket(tungstenite::WebSocket<TcpStream>);

impl WebSocket {
    pub(crate) fn open(lab: &Lab, server: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(server, WEBSOCKET);
        let stream = lab.client.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (socket, _) = tungstenite::client(format!("ws://{address}/"), stream).ok().context("no handshake")?;
        Ok(Self(socket))
    }

    pub(crate) fn ask(&mut self, message: &str) -> Result<String> {
        self.0.send(Message::text(message))?;
        Ok(self.0.read()?.into_text()?.to_string())
    }
}
