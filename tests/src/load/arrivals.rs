//! Requests that arrive at a fixed rate, each by a flow of its own, whatever becomes of those before.

use super::{PATIENCE, bind_new};
use crate::{
    netns::Namespace,
    worker::{Stop, Worker},
};
use anyhow::{Context, Result};
use bg_common::Colour;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};

/// A request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// When it was sent.
    pub sent: Instant,
    /// How long it took.
    pub took: Duration,
    /// Who has answered, if anybody has.
    pub colour: Option<Colour>,
}

impl Request {
    /// Whether a user would call it a failure: no answer in a second.
    pub fn is_failed(&self) -> bool {
        self.colour.is_none() || self.took > Duration::from_secs(1)
    }
}

/// The load. Dropping it ends it.
#[derive(Debug)]
pub struct Arrivals {
    ended: Arc<Mutex<Vec<Request>>>,
    /// At the end, requests that were sent before this are not waited for.
    awaited_from: watch::Sender<Instant>,
    worker: Worker,
}

impl Arrivals {
    /// Starts as many requests a second from the namespace: by TCP to an HTTP server, or by UDP to an echo server.
    pub fn start(namespace: &Namespace, server: SocketAddr, is_tcp: bool, rate: u32) -> Result<Self> {
        let ended = Arc::<Mutex<Vec<Request>>>::default();
        let requests = ended.clone();
        let (awaited_from, awaited) = watch::channel(Instant::now());
        let worker = Worker::spawn(namespace, async move |stop: Stop| {
            let mut arrivals = interval(Duration::from_secs(1) / rate);
            arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (mut under_way, mut handles) = (JoinSet::new(), Vec::<(Instant, AbortHandle)>::new());
            while !stop.is_set() {
                arrivals.tick().await;
                let (requests, sent) = (requests.clone(), Instant::now());
                let request = under_way.spawn(async move {
                    let answer = async { if is_tcp { by_tcp(server).await } else { by_udp(server).await } };
                    let colour = timeout(PATIENCE, answer).await.ok().and_then(Result::ok);
                    let request = Request { sent, took: sent.elapsed(), colour };
                    requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                });
                handles.push((sent, request));
                while under_way.try_join_next().is_some() {}
                if handles.len() > 10_000 {
                    handles.retain(|(_, request)| !request.is_finished());
                }
            }
            let awaited_from = *awaited.borrow();
            for (sent, request) in handles.into_iter().filter(|(sent, _)| *sent < awaited_from) {
                if !request.is_finished() {
                    request.abort();
                    let request = Request { sent, took: sent.elapsed(), colour: None };
                    requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                }
            }
            while under_way.join_next().await.is_some() {}
            Ok(())
        })?;
        Ok(Self { ended, awaited_from, worker })
    }

    /// The number of requests that have ended.
    pub fn count(&self) -> usize {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Stops when all requests have ended, and returns them.
    pub fn finish(self) -> Result<Vec<Request>> {
        self.stop()
    }

    /// The same when all requests have ended that were sent from this instant on. Those before it that have no answer by then will have none.
    pub fn finish_from(self, awaited_from: Instant) -> Result<Vec<Request>> {
        self.awaited_from.send_replace(awaited_from);
        self.stop()
    }

    fn stop(self) -> Result<Vec<Request>> {
        self.worker.stop()?;
        let mut requests = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        requests.sort_by_key(|request| request.sent);
        Ok(requests)
    }
}

async fn by_tcp(server: SocketAddr) -> Result<Colour> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    colour(text.split("\r\n\r\n").nth(1).unwrap_or_default())
}

async fn by_udp(server: SocketAddr) -> Result<Colour> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // An earlier flow of the same port may be bound to stay where it is.
    let socket = bind_new(any)?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(server).await?;
    socket.send(b"1").await?;
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer).await?;
    colour(&String::from_utf8_lossy(&answer[..length]))
}

fn colour(answer: &str) -> Result<Colour> {
    let named = Colour::ALL.into_iter().find(|colour| answer.split_whitespace().any(|word| word == colour.name()));
    named.with_context(|| format!("no colour: {answer:?}"))
}
