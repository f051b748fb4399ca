//! Ending TCP connections at both ends, although they say nothing.
//!
//! Each connection is marked in its row ([`FlowState::ENDED`]). From then on the data path answers a segment of either end with two resets, one for
//! its sender and one for the other end. Then the ends are made to speak ([`crate::probe`]).

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bg_common::{Backend, Flow, FlowKey4, FlowKey6, FlowState, Protocol};

use crate::{
    Error, Paths,
    flow_table::{Bucket4, Bucket6, FlowKey, FlowTable},
    flows::endpoint_of,
    maps::{Tables, flows4, flows6},
    probe::Prober,
    running::address_of,
    sys::Mapped,
};

/// Linux answers such segments of one connection twice a second.
const AGAIN: Duration = Duration::from_millis(600);

/// The connections to end. Whoever uses it is in the instance's namespace, whose routes lead to the ends.
pub(crate) struct Ender<'a> {
    tables: &'a Tables,
    flows4: Mapped<Bucket4>,
    flows6: Mapped<Bucket6>,
    prober: Prober,
}

/// A connection that was marked.
struct Marked<'a> {
    client: SocketAddr,
    vip: SocketAddr,
    /// Where it can be asked; not if it knows its connections by the virtual address alone.
    backend: Option<SocketAddr>,
    slot: u32,
    /// The head of its row.
    head: &'a AtomicU64,
    identity: u32,
}

impl Marked<'_> {
    /// Whether neither end has been reset yet.
    fn is_silent(&self) -> bool {
        let state = FlowState(self.head.load(Ordering::Relaxed) as u32);
        state.0 & FlowState::IDENTITY == self.identity && state.is_ended_by_command() && !state.is_reset()
    }
}

impl<'a> Ender<'a> {
    pub(crate) fn new(paths: &Paths, tables: &'a Tables) -> Result<Self, Error> {
        Ok(Self { tables, flows4: flows4(paths)?, flows6: flows6(paths)?, prober: Prober::default() })
    }

    /// Ends connections, and waits until they have been reset. An end that does not answer is asked in so many rounds. Returns how many
    /// connections have not been reset then, by the slot of their backend. That ends could not be asked is an error only if some are left.
    ///
    /// `is_meant` says whether to end a flow at this backend, which is open or was ended by a switch.
    pub(crate) fn end(
        mut self,
        is_meant: impl Fn(&Backend, &Flow) -> bool + Sync,
        rounds: u32,
    ) -> Result<HashMap<u32, u64>, Error> {
        let mut silent = Vec::new();
        let mut asked = Ok(());
        let (v4, v6) = (FlowTable::<FlowKey4>::new(self.flows4.all()), FlowTable::<FlowKey6>::new(self.flows6.all()));
        for _ in 0..rounds {
            // A program may have had a row in hand before.
            silent.extend(mark(self.tables, &v4, &is_meant));
            silent.extend(mark(self.tables, &v6, &is_meant));
            // What the client says resets the backend, too. One whose client does not answer is asked itself.
            for connection in &silent {
                asked = asked.and(ask(&mut self.prober, connection.vip, connection.client));
            }
            wait(&mut silent, AGAIN / 2);
            let with_backend = |connection: &Marked<'_>| Some((connection.client, connection.backend?));
            for (client, backend) in silent.iter().filter_map(with_backend) {
                asked = asked.and(ask(&mut self.prober, client, backend));
            }
            wait(&mut silent, AGAIN);
            if silent.is_empty() {
                return Ok(HashMap::new());
            }
        }
        asked?;
        let mut by_slot = HashMap::new();
        silent.iter().for_each(|connection| *by_slot.entry(connection.slot).or_default() += 1);
        Ok(by_slot)
    }

    /// Ends connections without waiting for their ends to answer. What is lost is made good when an end speaks again.
    pub(crate) fn end_without_waiting(
        mut self,
        is_meant: impl Fn(&Backend, &Flow) -> bool + Sync,
    ) -> Result<(), Error> {
        let (v4, v6) = (FlowTable::<FlowKey4>::new(self.flows4.all()), FlowTable::<FlowKey6>::new(self.flows6.all()));
        // One family may be had without the other.
        let mut asked = Ok(());
        for connection in mark(self.tables, &v4, &is_meant).into_iter().chain(mark(self.tables, &v6, &is_meant)) {
            asked = asked.and(ask(&mut self.prober, connection.vip, connection.client));
            if let Some(backend) = connection.backend {
                asked = asked.and(ask(&mut self.prober, connection.client, backend));
            }
        }
        asked
    }
}

/// Marks connections that are not marked yet.
fn mark<'a, K: FlowKey + Sync>(
    tables: &Tables,
    table: &FlowTable<'a, K>,
    is_meant: &(impl Fn(&Backend, &Flow) -> bool + Sync),
) -> Vec<Marked<'a>> {
    let found = table.fold(Vec::new, |found, entry| {
        let Some(entry) = entry else { return };
        // A client that has got no answer yet sends its SYN again, and that opens another flow.
        let is_connection = entry.flow.state.has_any(FlowState::CONFIRMED | FlowState::ANSWERED);
        let slot = entry.flow.backend.slot();
        if !is_connection || entry.flow.state.has_ended() || slot as usize >= tables.backends.rows() {
            return;
        }
        let backend = tables.backends.read(slot as usize);
        let is_there = entry.flow.backend.is(backend.identity) && backend.protocol() == Some(Protocol::Tcp);
        let Some(address) = endpoint_of(&backend).filter(|_| is_there && is_meant(&backend, &entry.flow)) else {
            return;
        };
        entry.note(FlowState::ENDED);
        let (client, vip) = (entry.key.client(), tables.services.vips.read(entry.key.vip().into()));
        let identity = entry.flow.state.0 & FlowState::IDENTITY;
        let backend = (!backend.is_direct()).then_some(address);
        found.push(Marked { client, vip: address_of(&vip.key), backend, slot, head: entry.head(), identity });
    });
    found.into_iter().flatten().collect()
}

fn ask(prober: &mut Prober, from: SocketAddr, to: SocketAddr) -> Result<(), Error> {
    prober.ask(from, to).map_err(|error: io::Error| Error::io("send to", "a raw socket")(error))
}

/// Waits until all have been reset, but no longer than this.
fn wait(silent: &mut Vec<Marked<'_>>, longest: Duration) {
    let asked = Instant::now();
    loop {
        silent.retain(Marked::is_silent);
        if silent.is_empty() || asked.elapsed() >= longest {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
