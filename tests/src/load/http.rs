//! HTTP clients: one that keeps its connections, and one that opens a connection for each request.

use super::{Load, PATIENCE, Tally};
use crate::{
    netns::Namespace,
    worker::{Stop, Worker},
};
use anyhow::{Context, Result, bail};
use bg_common::Colour;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Clients that keep a connection as long as it is open.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// The number of clients.
    pub clients: usize,
    /// Pause between an answer and the next request.
    pub pause: Duration,
}

/// Clients that open a connection, send one request and close it.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// The number of concurrent clients.
    pub clients: usize,
    /// Pause between an answer and the next connection.
    pub pause: Duration,
}

impl KeepAlive {
    /// Starts them.
    pub fn start(self, namespace: &Namespace, server: SocketAddr) -> Result<Load> {
        start(namespace, self.clients, move |tally, stop| async move {
            while !stop.is_set() {
                hold(server, self.pause, &tally, &stop).await;
            }
        })
    }
}

impl Fresh {
    /// Starts them.
    pub fn start(self, namespace: &Namespace, server: SocketAddr) -> Result<Load> {
        start(namespace, self.clients, move |tally, stop| async move {
            while !stop.is_set() {
                match within_patience(ask_once(server)).await {
                    Ok(colour) => tally.answered(colour),
                    Err(error) => tally.broke(&error),
                }
                sleep(self.pause).await;
            }
        })
    }
}

fn start<F>(
    namespace: &Namespace,
    clients: usize,
    client: impl Fn(Arc<Tally>, Stop) -> F + Send + 'static,
) -> Result<Load>
where
    F: Future<Output = ()> + 'static,
{
    let tally = Arc::new(Tally::default());
    let shared = tally.clone();
    let worker = Worker::spawn(namespace, async move |stop: Stop| {
        let mut tasks = JoinSet::new();
        let local = tokio::task::LocalSet::new();
        for _ in 0..clients {
            tasks.spawn_local_on(client(shared.clone(), stop.clone()), &local);
        }
        local.run_until(async { tasks.join_all().await }).await;
        Ok(())
    })?;
    Ok(Load { tally, worker })
}

/// Opens a connection and sends requests until it breaks or it is time to stop.
async fn hold(server: SocketAddr, pause: Duration, tally: &Tally, stop: &Stop) {
    let opened = within_patience(async {
        let mut connection = Connection::open(server).await?;
        let colour = connection.ask("keep-alive").await?;
        Ok((connection, colour))
    });
    let (mut connection, begun_with) = match opened.await {
        Ok(opened) => opened,
        Err(error) => return tally.failed(&error),
    };
    tally.answered(begun_with);
    tally.connected(begun_with);
    while !stop.is_set() {
        sleep(pause).await;
        match within_patience(connection.ask("keep-alive")).await {
            Ok(colour) => {
                tally.answered(colour);
                if colour != begun_with {
                    tally.strayed();
                }
            }
            Err(error) => {
                tally.broke(&error);
                break;
            }
        }
    }
    tally.disconnected(begun_with);
}

async fn ask_once(server: SocketAddr) -> Result<Colour> {
    let mut connection = Connection::open(server).await?;
    let colour = connection.ask("close").await?;
    // The server closes; waiting for its FIN finds a reset that comes instead of it.
    match connection.stream.read(&mut [0; 16]).await.context("while it closed")? {
        0 => Ok(colour),
        _ => bail!("more than one answer to one request"),
    }
}

struct Connection {
    stream: TcpStream,
    server: SocketAddr,
}

impl Connection {
    async fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, server })
    }

    /// Sends one request and returns the colour in the body of the answer.
    async fn ask(&mut self, connection: &str) -> Result<Colour> {
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n", self.server);
        self.stream.write_all(request.as_bytes()).await.context("cannot send a request")?;
        let mut answer = Vec::with_capacity(512);
        loop {
            if self.stream.read_buf(&mut answer).await.context("cannot read an answer")? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)).context("closed before an answer");
            }
            if let Some(body) = complete_body(&answer)? {
                return colour(body);
            }
        }
    }
}

/// The body of a complete answer.
pub(super) fn complete_body(answer: &[u8]) -> Result<Option<&str>> {
    let text = std::str::from_utf8(answer).context("an answer that is no text")?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("expected status 200, got: {head}");
    }
    let length = head
        .lines()
        .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("content-length")));
    let length: usize = length.context("no Content-Length")?.1.parse()?;
    Ok((body.len() >= length).then(|| &body[..length]))
}

/// The colour with which an answer begins.
pub(super) fn colour(answer: &str) -> Result<Colour> {
    let word = answer.split_whitespace().next();
    match Colour::ALL.into_iter().find(|colour| word == Some(colour.name())) {
        Some(colour) => Ok(colour),
        None => bail!("expected an answer of blue or green, got {answer:?}"),
    }
}

async fn within_patience<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, work).await.with_context(|| format!("no answer in {PATIENCE:?}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_complete_when_its_length_is_there() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nblue blue1\n";
        assert_eq!(complete_body(answer.as_bytes()).unwrap(), Some("blue blue1\n"));
        assert_eq!(complete_body(&answer.as_bytes()[..answer.len() - 1]).unwrap(), None);
        assert!(complete_body(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").is_err());
    }

    #[test]
    fn an_answer_of_no_colour_is_an_error() {
        assert_eq!(colour("green green1\n").unwrap(), Colour::Green);
        assert!(colour("greenish").is_err());
        assert!(colour("").is_err());
    }
}
