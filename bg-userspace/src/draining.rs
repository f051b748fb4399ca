//! What a switch has left on the idle colour: counting it, waiting for it, and ending it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bg_common::{Backend, Colour, DeploymentRow, FlowKey4, FlowKey6, FlowState, LiveFlags, LiveWord, Protocol};
use bg_ebpf::policy::lifetime::{self, after_drain};
use serde::{Serialize, Serializer};

use crate::{
    Error, Instance,
    fence::Fence,
    flow_table::{FlowKey, FlowTable},
    flows::endpoint_of,
    live::Reading,
    lock::Lock,
    maps::{Tables, clock, flows4, flows6},
    pins,
    probe::Prober,
    running::{address_of, text},
    time::tick,
};

/// The options of [`Instance::drain`].
#[derive(Clone, Debug, Default)]
pub struct DrainRequest {
    /// Wait until no flow is left.
    pub wait: bool,
    /// Wait for this long at most.
    pub timeout: Option<Duration>,
    /// End the flows that are left then, at both ends.
    pub reset: bool,
}

/// The flows that a switch has left on the idle colour.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drained {
    /// Name of the deployment.
    pub deployment: String,
    /// The idle colour.
    #[serde(serialize_with = "colour")]
    pub colour: Colour,
    /// The present generation. Flows of earlier ones are left.
    pub generation: u32,
    /// The number of flows.
    pub left: u64,
    /// The backends that have them.
    pub backends: Vec<FlowsLeft>,
    /// How long this has waited.
    #[serde(serialize_with = "seconds", rename = "waited_seconds")]
    pub waited: Duration,
    /// The number of flows that were ended. The ends of those that are still left afterwards have not answered.
    pub reset: u64,
}

/// The flows of a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FlowsLeft {
    /// Name of its service.
    pub service: String,
    /// Its address.
    pub backend: SocketAddr,
    /// The number of flows.
    pub flows: u64,
}

/// A TCP connection whose ends are to be told.
struct Connection {
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
    slot: u32,
}

impl Instance {
    /// Counts the flows that a switch has left on the idle colour, waits for them and ends them, as the request says. `progress` is
    /// called while this waits.
    pub fn drain(
        &self,
        deployment: &str,
        request: &DrainRequest,
        mut progress: impl FnMut(&Drained),
    ) -> Result<Drained, Error> {
        /// A count of a million flows takes some milliseconds.
        const PAUSE: Duration = Duration::from_millis(200);
        let (index, _) = self.deployment(deployment)?;
        let start = Instant::now();
        loop {
            let left = Drained { waited: start.elapsed(), ..self.left(deployment, index)? };
            let rest = match request.timeout {
                Some(timeout) => timeout.saturating_sub(start.elapsed()),
                None if request.wait => PAUSE,
                None => Duration::ZERO,
            };
            if left.left == 0 {
                return Ok(left);
            }
            if rest.is_zero() {
                return if request.reset { self.end_left(index, left) } else { Ok(left) };
            }
            progress(&left);
            std::thread::sleep(rest.min(PAUSE));
        }
    }

    /// Counts the flows that are left.
    fn left(&self, deployment: &str, index: u16) -> Result<Drained, Error> {
        let tables = Tables::open(&self.paths)?;
        let sums = self.fold_and_end_drains(&tables.backends, HashMap::new, |sum: &mut HashMap<u32, u64>, open| {
            if open.target.deployment == index && open.is_left() {
                *sum.entry(open.flow.backend.slot()).or_default() += 1;
            }
        })?;
        let mut by_slot: HashMap<u32, u64> = HashMap::new();
        sums.into_iter().flatten().for_each(|(slot, flows)| *by_slot.entry(slot).or_default() += flows);
        let word = self.words.reading(index, tick(clock(&self.paths)?)).word;
        Ok(Drained {
            deployment: deployment.to_owned(),
            colour: word.live().other(),
            generation: word.generation(),
            left: by_slot.values().sum(),
            backends: backends(&tables, &by_slot),
            waited: Duration::ZERO,
            reset: 0,
        })
    }

    /// Ends what is left. TCP connections are ended at both ends.
    fn end_left(&self, index: u16, left: Drained) -> Result<Drained, Error> {
        /// Linux answers such segments of one connection twice a second.
        const AGAIN: Duration = Duration::from_millis(600);
        const ROUNDS: u32 = 4;
        // The routes are those of the caller's namespace.
        pins::check_own_namespace(&self.paths)?;
        let Some(word) = self.end_drain_now(index)? else { return Ok(left) };
        let tables = Tables::open(&self.paths)?;
        let mut prober = Prober::default();
        let failed = |error| Error::io("send to", "a raw socket")(error);
        let (mut silent, mut rounds) = (self.silent(&tables, index, word)?, 0);
        while !silent.is_empty() && rounds < ROUNDS {
            for connection in &silent {
                prober.ask(connection.vip, connection.client).map_err(failed)?;
            }
            // What the client has said has reset the backend. One whose client does not answer is asked itself.
            let asked = Instant::now();
            while !silent.is_empty() && asked.elapsed() < AGAIN / 2 {
                std::thread::sleep(Duration::from_millis(10));
                silent = self.silent(&tables, index, word)?;
            }
            for connection in &silent {
                prober.ask(connection.client, connection.backend).map_err(failed)?;
            }
            let asked = Instant::now();
            while !silent.is_empty() && asked.elapsed() < AGAIN {
                std::thread::sleep(Duration::from_millis(10));
                silent = self.silent(&tables, index, word)?;
            }
            rounds += 1;
        }
        let mut by_slot: HashMap<u32, u64> = HashMap::new();
        silent.iter().for_each(|connection| *by_slot.entry(connection.slot).or_default() += 1);
        let still = silent.len() as u64;
        let reset = left.left.saturating_sub(still);
        Ok(Drained { left: still, backends: backends(&tables, &by_slot), reset, ..left })
    }

    /// Ends a drain as its deadline would, and returns the live word. `None`: somebody has switched at the same moment.
    fn end_drain_now(&self, index: u16) -> Result<Option<LiveWord>, Error> {
        let mut fence = Fence::prepare(&self.paths)?;
        let _lock = Lock::switch(&self.paths)?;
        let now = tick(clock(&self.paths)?);
        let Reading { word, terms, .. } = self.words.reading(index, now);
        if self.words.live.read(index.into()) != word {
            return Ok(None);
        }
        if !word.flags().has(LiveFlags::DRAINING) {
            return Ok(Some(word));
        }
        let (settled, ended_before) = after_drain(word, &terms);
        self.words.terms.update(index.into(), |slots| slots[word.terms_slot()].ended_before = ended_before);
        let live = &self.words.live.words(index.into())[0];
        let exchanged = live.compare_exchange(word.0, settled.0, Ordering::SeqCst, Ordering::Relaxed);
        fence.wait()?;
        Ok(exchanged.is_ok().then_some(settled))
    }

    /// The ended connections of the idle colour of which neither end has been reset. Notes that their clients say nothing more, so that
    /// the data path looks at the next segment of their backends.
    fn silent(&self, tables: &Tables, index: u16, word: LiveWord) -> Result<Vec<Connection>, Error> {
        let row = self.words.deployments.read(index.into());
        let now = tick(clock(&self.paths)?);
        let idle = Idle { tables, row, index, word, now };
        let (v4, v6) = (flows4(&self.paths)?, flows6(&self.paths)?);
        let mut silent = idle.silent(&FlowTable::<FlowKey4>::new(v4.all()));
        silent.extend(idle.silent(&FlowTable::<FlowKey6>::new(v6.all())));
        Ok(silent)
    }
}

/// What decides whether a flow was left on the idle colour.
struct Idle<'a> {
    tables: &'a Tables,
    row: DeploymentRow,
    index: u16,
    word: LiveWord,
    now: u32,
}

impl Idle<'_> {
    fn silent<K: FlowKey + Sync>(&self, table: &FlowTable<'_, K>) -> Vec<Connection> {
        let found = table.fold(Vec::new, |found, entry| {
            let Some(entry) = entry else { return };
            let slot = entry.flow.backend.slot();
            if slot as usize >= self.tables.backends.rows() {
                return;
            }
            let backend = self.tables.backends.read(slot as usize);
            let is_left = entry.flow.backend.is(backend.identity)
                && backend.deployment == self.index
                && Colour::from_u8(backend.colour) != self.word.live()
                && backend.protocol == Protocol::Tcp as u8
                && entry.flow.generation < self.word.generation();
            let is_open = lifetime::is_open(&entry.flow, Protocol::Tcp, &self.row, self.now);
            let (true, true, Some(address)) = (is_left, is_open, endpoint_of(&backend)) else { return };
            let (client, vip) = (entry.key.client(), self.tables.services.vips.read(entry.key.vip().into()));
            // Otherwise both ends would have said their last word.
            if !entry.flow.state.has(FlowState::BACKEND_FIN) {
                entry.note(FlowState::CLIENT_FIN);
            }
            found.push(Connection { client, vip: address_of(&vip.key), backend: address, slot });
        });
        found.into_iter().flatten().collect()
    }
}

fn backends(tables: &Tables, by_slot: &HashMap<u32, u64>) -> Vec<FlowsLeft> {
    let mut backends: Vec<_> = by_slot
        .iter()
        .filter_map(|(slot, flows)| {
            let row: Backend = tables.backends.read(*slot as usize);
            let service = text(&tables.services.info.read(row.service.into()).name);
            Some(FlowsLeft { service, backend: endpoint_of(&row)?, flows: *flows })
        })
        .collect();
    backends.sort();
    backends
}

fn colour<S: Serializer>(colour: &Colour, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(colour.name())
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}
