//! A transfer of a megabyte in both directions, in which a lost size of packets shows by a pause.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{Namespace, Worker};

/// Bytes in each direction.
pub const MEGABYTE: usize = 1_000_000;

/// What neither side waits longer for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes a megabyte of each connection and gives one back.
pub fn sink(namespace: &Namespace, address: SocketAddr) -> Result<Worker> {
    let listener = namespace.enter(|| std::net::TcpListener::bind(address))??;
    listener.set_nonblocking(true)?;
    Worker::spawn(namespace, async move |mut stop| {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = tokio::select! {
                accepted = listener.accept() => accepted?,
                () = stop.wait() => return Ok(()),
            };
            tokio::spawn(async move {
                let mut megabyte = vec![0; MEGABYTE];
                // A connection that fails is the client's to complain of.
                if stream.read_exact(&mut megabyte).await.is_ok() {
                    let _ = stream.write_all(&megabyte).await;
                }
            });
        }
    })
}

/// Gives a megabyte to a [`sink`] and takes one back. Returns how long that took.
pub fn both_ways(sink: SocketAddr) -> Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&sink, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut megabyte = vec![0; MEGABYTE];
    stream.write_all(&megabyte).context("to the backend")?;
    stream.read_exact(&mut megabyte).context("from the backend")?;
    stream.shutdown(Shutdown::Both).ok();
    Ok(begun.elapsed())
}
