//! A service in mode `tee`: what becomes of a connection that has reached one of its listeners.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock, atomic::AtomicUsize},
    time::Duration,
};

use bg_common::Colour;
use rustix::net::sockopt::set_socket_linger;
use tokio::{net::TcpStream, time::sleep};

use super::{
    copy::{Plan, Tap},
    counts::{Count, Counts},
    header::header,
    open::{Open, Task},
    pool::Pool,
    relay::{Ended, Rules, relay},
    room::{Place, Room, Share},
    stream::End,
};
use crate::teed::{Brought, Teed};

/// How long a backend may take to accept, before the next one is tried.
const CONNECT: Duration = Duration::from_secs(3);

/// How many connections and copies there may be at once, over all services.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    connections: Arc<Room>,
    copies: Arc<Room>,
    /// The bytes that wait in all copies.
    waiting: Arc<AtomicUsize>,
}

impl Limits {
    pub(super) fn new(most: usize) -> Self {
        let [connections, copies] = [most; 2].map(Room::new);
        Self { connections, copies, waiting: Arc::default() }
    }
}

/// What the data path knows of connections.
pub(super) trait Flows: Send + Sync {
    /// The connection of a client at the listener of a colour.
    fn find(&self, colour: Colour, client: SocketAddr) -> Option<Brought>;
    /// Whether the colour is live.
    fn is_live(&self, colour: Colour) -> bool;
}

/// The settings, which an apply or a check may change.
#[derive(Debug)]
struct Settings {
    pools: [Arc<Pool>; 2],
    proxy_protocol: bool,
    compare: bool,
    idle_timeout: Duration,
}

/// A service.
pub(super) struct Service {
    settings: RwLock<Arc<Settings>>,
    flows: Box<dyn Flows>,
    pub(super) counts: Arc<Counts>,
    pub(super) open: Arc<Open>,
    connections: Arc<Share>,
    copies: Arc<Share>,
    /// The bytes that wait in the copies of all services.
    waiting: Arc<AtomicUsize>,
}

impl Service {
    pub(super) fn new(teed: &Teed, flows: Box<dyn Flows>, counts: Arc<Counts>, limits: &Limits) -> Arc<Self> {
        let settings = RwLock::new(Arc::new(Settings::of(teed)));
        let (connections, copies) = (limits.connections.share(), limits.copies.share());
        let waiting = limits.waiting.clone();
        Arc::new(Self { settings, flows, counts, open: Arc::default(), connections, copies, waiting })
    }

    /// Takes over changed settings. Connections of backends that are gone end.
    pub(super) fn update(&self, teed: &Teed) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Settings::of(teed));
        let stays = |address: SocketAddr| teed.backends.iter().flatten().any(|backend| backend.address == address);
        self.open.end(|entry| entry.backend.is_some_and(|backend| !stays(backend)));
    }

    /// Ends the connections that are confined to a colour that is live now.
    pub(super) fn end_confined(&self) {
        let is_live = Colour::ALL.map(|colour| self.flows.is_live(colour));
        self.open.end(|entry| entry.confined_to.is_some_and(|colour| is_live[colour as usize]));
    }

    /// Takes a connection that has reached the listener of a colour.
    pub(super) fn accept(self: &Arc<Self>, stream: TcpStream, client: SocketAddr, colour: Colour) {
        self.counts.add(Count::Accepted);
        let Some(place) = self.connections.take() else {
            self.counts.add(Count::TooMany);
            return refuse(&stream);
        };
        let service = self.clone();
        self.open.spawn(async move |task| service.serve(End::new(stream), client, colour, task, place).await);
    }

    async fn serve(&self, client: End, from: SocketAddr, colour: Colour, task: Task, _place: Place) {
        let Some(Brought { destination, is_confined }) = self.find(colour, from).await else {
            return self.counts.add(Count::Foreign);
        };
        let may_go_on = || !is_confined || !self.flows.is_live(colour);
        task.note(|entry| entry.confined_to = is_confined.then_some(colour));
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Settings { pools, proxy_protocol, compare, idle_timeout } = &*settings;
        let header = if *proxy_protocol { header(from, destination) } else { Vec::new() };
        if is_confined {
            self.counts.add(Count::Confined);
        }
        if !may_go_on() {
            return;
        }
        let Some((backend, address)) = pools[colour as usize].connect(CONNECT).await else {
            return self.counts.add(Count::NoBackend);
        };
        task.is_at(address);
        let backend = End::new(backend);
        if backend.write(&header).await.is_err() {
            return;
        }
        // What a tester sends must not reach the live colour.
        let tap = if is_confined { Tap::none() } else { self.begin_copy(&settings, colour.other(), header) };
        let is_copied = !is_confined;
        let rules = Rules { idle_timeout: *idle_timeout, compare: *compare && is_copied, may_go_on: &may_go_on };
        if relay(client, backend, tap, &rules).await == Ended::Idle {
            self.counts.add(Count::Idle);
        }
    }

    fn begin_copy(&self, settings: &Settings, to: Colour, header: Vec<u8>) -> Tap {
        let Some(place) = self.copies.take() else {
            self.counts.add(Count::CopyTooMany);
            return Tap::none();
        };
        let (pool, counts) = (settings.pools[to as usize].clone(), self.counts.clone());
        Tap::begin(
            Plan { pool, header, compare: settings.compare, counts, place, in_all: self.waiting.clone() },
            &self.open,
        )
    }

    /// The flow of a connection. Its row may be claimed by another packet for a moment.
    async fn find(&self, colour: Colour, from: SocketAddr) -> Option<Brought> {
        const PAUSES: [u64; 3] = [1, 5, 20];
        for pause in PAUSES {
            if let Some(brought) = self.flows.find(colour, from) {
                return Some(brought);
            }
            sleep(Duration::from_millis(pause)).await;
        }
        self.flows.find(colour, from)
    }
}

impl Settings {
    fn of(teed: &Teed) -> Self {
        Self {
            pools: Colour::ALL.map(|colour| Arc::new(Pool::new(&teed.backends[colour as usize]))),
            proxy_protocol: teed.proxy_protocol,
            compare: teed.compare,
            idle_timeout: teed.idle_timeout,
        }
    }
}

/// Resets a connection.
fn refuse(stream: &TcpStream) {
    // Otherwise it is closed, which the client understands as well.
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}
