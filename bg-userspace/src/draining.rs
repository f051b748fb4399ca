//! What a switch has left on the idle colour, or what there is at one backend: counting it, waiting for it, and ending it.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bg_common::{
    Backend, ClockId, Colour, FULL_SHARE, Flow, FlowKey4, FlowKey6, FlowState, LiveFlags, LiveWord, Mode, Protocol,
};
use bg_ebpf::policy::lifetime::{self, after_drain};
use serde::{Serialize, Serializer};

use crate::{
    Error, Instance, Refusal,
    ending::Ender,
    fence::Fence,
    flow_table::FlowTable,
    flows::endpoint_of,
    json,
    live::{Reading, exchange, now},
    lock::Lock,
    maps::{self, Tables, clock, flows4, flows6},
    pins,
    running::text,
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
    /// The flows of this backend, whatever its colour, rather than those that the last switch has left.
    pub backend: Option<SocketAddr>,
}

/// The flows that a switch has left on the idle colour, or those of a backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drained {
    /// Name of the deployment.
    pub deployment: String,
    /// The idle colour, or that of the backend.
    #[serde(serialize_with = "json::colour")]
    pub colour: Colour,
    /// The present generation. Flows of earlier ones are left on the idle colour.
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

/// Which flows are meant.
#[derive(Clone, Copy)]
enum Scope {
    /// Those that the last switch has left on the idle colour.
    Idle,
    /// Those of a backend.
    Backend(SocketAddr, Colour),
}

/// Why no colour is idle.
enum Divided {
    /// A share goes to each.
    Split,
    /// A ramp is moving the share. It ends.
    Ramp,
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
        let scope = match request.backend {
            Some(address) => self.scope_of(deployment, index, address)?,
            None => Scope::Idle,
        };
        let start = Instant::now();
        let _ = self.end_confined();
        loop {
            let rest = match request.timeout {
                Some(timeout) => timeout.saturating_sub(start.elapsed()),
                None if request.wait => PAUSE,
                None => Duration::ZERO,
            };
            let divided = self.divided(index, scope);
            let left = Drained { waited: start.elapsed(), ..self.left(deployment, index, scope)? };
            match divided {
                // A ramp ends.
                Some(Divided::Ramp) if !rest.is_zero() => {}
                Some(_) => return Err(Refusal::NoIdleColour { deployment: deployment.to_owned() }.into()),
                None if left.left == 0 => return Ok(left),
                None if rest.is_zero() => {
                    return if request.reset { self.end_left(index, scope, left) } else { Ok(left) };
                }
                None => progress(&left),
            }
            std::thread::sleep(rest.min(PAUSE));
        }
    }

    /// A backend of the deployment.
    fn scope_of(&self, deployment: &str, index: u16, address: SocketAddr) -> Result<Scope, Error> {
        let backends = maps::backends(&self.paths)?;
        let rows = (0..backends.rows()).map(|slot| backends.read(slot));
        let ours = rows.filter(|row| row.identity.in_use != 0 && row.deployment == index);
        let (teed, ours): (Vec<_>, Vec<_>) = ours.partition(|row| row.mode == Mode::Tee as u8);
        let ours: BTreeMap<_, _> = ours.iter().filter_map(|row| Some((endpoint_of(row)?, row.colour))).collect();
        if let Some(colour) = ours.get(&address) {
            return Ok(Scope::Backend(address, Colour::from_u8(*colour)));
        }
        if teed.iter().any(|row| endpoint_of(row) == Some(address)) {
            return Err(Refusal::BehindTee { deployment: deployment.to_owned(), backend: address }.into());
        }
        Err(Error::UnknownBackend {
            deployment: deployment.to_owned(),
            name: address.to_string(),
            existing: ours.keys().map(SocketAddr::to_string).collect(),
        })
    }

    /// Whether both colours get new flows, so that none of them is idle.
    fn divided(&self, index: u16, scope: Scope) -> Option<Divided> {
        let reading = self.words.reading(index, 0);
        let timing = reading.timing;
        if matches!(scope, Scope::Backend(..)) {
            None
        } else if reading.is_pending() && timing.ramp != 0 && now(ClockId::from_u8(timing.clock)) >= timing.activate_at
        {
            Some(Divided::Ramp)
        } else {
            (1..FULL_SHARE).contains(&reading.word.target_share()).then_some(Divided::Split)
        }
    }

    /// Counts the flows that are left.
    fn left(&self, deployment: &str, index: u16, scope: Scope) -> Result<Drained, Error> {
        let tables = Tables::open(&self.paths)?;
        let endpoint = |slot: u32| endpoint_of(&tables.backends.read(slot as usize));
        let sums = self.fold_and_end_drains(&tables.backends, HashMap::new, |sum: &mut HashMap<u32, u64>, open| {
            let slot = open.flow.backend.slot();
            let is_meant = match scope {
                Scope::Idle => open.is_left(),
                Scope::Backend(address, _) => endpoint(slot) == Some(address),
            };
            if open.target.deployment == index && is_meant {
                *sum.entry(slot).or_default() += 1;
            }
        })?;
        let mut by_slot: HashMap<u32, u64> = HashMap::new();
        sums.into_iter().flatten().for_each(|(slot, flows)| *by_slot.entry(slot).or_default() += flows);
        let word = self.words.reading(index, tick(clock(&self.paths)?)).word;
        let colour = match scope {
            Scope::Idle => word.live().other(),
            Scope::Backend(_, colour) => colour,
        };
        Ok(Drained {
            deployment: deployment.to_owned(),
            colour,
            generation: word.generation(),
            left: by_slot.values().sum(),
            backends: backends(&tables, &by_slot),
            waited: Duration::ZERO,
            reset: 0,
        })
    }

    /// Ends what is left. TCP connections are ended at both ends.
    fn end_left(&self, index: u16, scope: Scope, left: Drained) -> Result<Drained, Error> {
        const ROUNDS: u32 = 4;
        // The routes are those of the caller's namespace.
        pins::check_own_namespace(&self.paths)?;
        let tables = Tables::open(&self.paths)?;
        let row = self.words.deployments.read(index.into());
        let is_open = |flow: &Flow, now| lifetime::is_open(flow, Protocol::Tcp, &row, now);
        let (ender, now) = (Ender::new(&self.paths, &tables)?, tick(clock(&self.paths)?));
        let silent = match scope {
            Scope::Idle => {
                let word = self.end_drain_now(index)?;
                let is_left = |backend: &Backend, flow: &Flow| {
                    backend.deployment == index
                        && Colour::from_u8(backend.colour) != word.live()
                        && flow.generation < word.generation()
                        && is_open(flow, now)
                };
                ender.end(is_left, ROUNDS)?
            }
            Scope::Backend(address, _) => {
                let is_there = |backend: &Backend| backend.deployment == index && endpoint_of(backend) == Some(address);
                let silent = ender.end(|backend, flow| is_there(backend) && is_open(flow, now), ROUNDS)?;
                self.remove_flows(&tables, is_there)?;
                silent
            }
        };
        let still = silent.values().sum();
        let reset = left.left.saturating_sub(still);
        Ok(Drained { left: still, backends: backends(&tables, &silent), reset, ..left })
    }

    /// Removes the flows of backends that are no connections with two ends to tell: the next packet opens another flow.
    fn remove_flows(&self, tables: &Tables, is_there: impl Fn(&Backend) -> bool + Sync) -> Result<(), Error> {
        let is_unwanted = |flow: &Flow| {
            let slot = flow.backend.slot() as usize;
            let backend = if slot < tables.backends.rows() { tables.backends.read(slot) } else { Backend::default() };
            let is_connection = flow.state.has_any(FlowState::CONFIRMED | FlowState::ANSWERED);
            let is_tcp = backend.protocol() == Some(Protocol::Tcp);
            flow.backend.is(backend.identity) && is_there(&backend) && !(is_tcp && is_connection)
        };
        FlowTable::<FlowKey4>::new(flows4(&self.paths)?.all()).remove(|_, flow| is_unwanted(flow));
        FlowTable::<FlowKey6>::new(flows6(&self.paths)?.all()).remove(|_, flow| is_unwanted(flow));
        Ok(())
    }

    /// Ends a drain as its deadline would, and returns the live word.
    fn end_drain_now(&self, index: u16) -> Result<LiveWord, Error> {
        let mut fence = Fence::prepare(&self.paths)?;
        let _lock = Lock::switch(&self.paths)?;
        loop {
            let Reading { stored, word, terms, .. } = self.words.reading(index, tick(clock(&self.paths)?));
            if stored != word || !word.flags().has(LiveFlags::DRAINING) {
                return Ok(word);
            }
            let (settled, ended_before) = after_drain(word, &terms);
            self.words.terms.update(index.into(), |slots| slots[word.terms_slot()].ended_before = ended_before);
            // A packet may have changed the word, and ended a freeze, say.
            if exchange(&self.words, index, word, settled).is_ok() {
                fence.wait()?;
                return Ok(settled);
            }
        }
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

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}
