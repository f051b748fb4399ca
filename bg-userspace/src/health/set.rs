//! Writing the health of backends into the maps.
//!
//! The table is written first, and the word that says why afterwards. A call that was killed in between is completed by the same call,
//! which writes the tables of all backends that it names whether or not anything seems to have changed.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::atomic::Ordering,
};

use bg_common::{Colour, Mode, NO_BACKEND};

use super::word::{Health, HealthWord};
use crate::{
    Error, Instance, Paths,
    config::model::AllDown,
    lock::Lock,
    maglev,
    maps::{self, Tables, Words},
    running::{Running, RunningService, UNSETTLED, table},
    sys::Mapped,
};

/// What is known of a backend's health.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendHealth {
    /// Name of its deployment.
    pub deployment: String,
    /// Name of its service.
    pub service: String,
    /// Its colour.
    pub colour: Colour,
    /// Its address.
    pub address: SocketAddr,
    /// Its health.
    pub health: Health,
    /// The part of its weight that it gets, from 0 to 1. Below 1, a backend that has returned starts slowly.
    pub share: f64,
    /// What happens to new flows if it is down and no other backend of its service and colour gets new flows. They are only refused if
    /// this is so of all backends with a weight.
    pub all_down: AllDown,
}

/// What has come of a [`Instance::set_health`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthSet {
    /// How many backends have another health, or another share, than before.
    pub changed: usize,
    /// How many do not exist. They may have been removed, or not been added yet.
    pub missing: usize,
    /// How many belong to a service that a killed apply has left unfinished. Their health is noted, and
    /// takes effect when an apply completes it.
    pub unsettled: usize,
}

impl Instance {
    /// Says which backends are up and which are down.
    ///
    /// A backend that is down gets no new flows until it is up again. Its open flows stay. If no backend of a service and colour is
    /// left, all of them get new flows according to their weights, because a check that is wrong about all of them must not end a service.
    /// With [`AllDown::Refuse`] new flows are refused then, and counted.
    /// The health of other backends stays as it is. An [`apply`](Self::apply) keeps it too, except that of backends that it adds.
    ///
    /// Waits for an apply that is running, but neither for a switch nor does a switch wait for it.
    pub fn set_health(&self, backends: &[BackendHealth]) -> Result<HealthSet, Error> {
        if backends.is_empty() {
            return Ok(HealthSet::default());
        }
        let _lock = Lock::health(&self.paths)?;
        let (tables, mut running) = read(&self.paths, &self.words)?;
        let mut done = HealthSet::default();
        let mut touched = BTreeSet::new();
        let mut changes = Vec::new();
        let positions = positions(&running);
        for wanted in backends {
            let word = HealthWord::new(wanted.health, wanted.share, wanted.all_down == AllDown::Refuse);
            let position = positions.get(&(wanted.deployment.clone(), wanted.service.clone())).copied();
            let of_colour = position.map(|position| &mut running.services[position].backends[wanted.colour as usize]);
            let found = of_colour.into_iter().flatten().filter(|backend| backend.address == wanted.address);
            let mut is_missing = true;
            for backend in found {
                is_missing = false;
                touched.extend(position.map(|position| (position, wanted.colour as usize)));
                if std::mem::replace(&mut backend.health, word) != word {
                    changes.push((backend.slot, word));
                    done.changed += 1;
                }
            }
            done.missing += usize::from(is_missing);
        }
        let maglev = maps::maglev(&self.paths)?;
        for (position, colour) in touched {
            let service = &running.services[position];
            if !rewrite(service, Colour::ALL[colour], &maglev) {
                done.unsettled += 1;
            }
        }
        write(&tables, &changes);
        Ok(done)
    }

    /// Forgets the health of all backends, so that all get their configured weights: for when nothing checks them any more.
    /// Returns how many were known to be up or down.
    pub fn forget_health(&self) -> Result<usize, Error> {
        let _lock = Lock::health(&self.paths)?;
        let (tables, mut running) = read(&self.paths, &self.words)?;
        let maglev = maps::maglev(&self.paths)?;
        let mut changes = Vec::new();
        for service in &mut running.services {
            for colour in Colour::ALL {
                for backend in &mut service.backends[colour as usize] {
                    if std::mem::take(&mut backend.health) != HealthWord::UNKNOWN {
                        changes.push((backend.slot, HealthWord::UNKNOWN));
                    }
                }
                rewrite(service, colour, &maglev);
            }
        }
        write(&tables, &changes);
        Ok(changes.len())
    }
}

fn read(paths: &Paths, words: &Words) -> Result<(Tables, Running), Error> {
    let tables = Tables::open(paths)?;
    let running = Running::read(words, &tables)?;
    Ok((tables, running))
}

/// Where the services are, by the names of their deployment and their own.
fn positions(running: &Running) -> HashMap<(String, String), usize> {
    let named = running.services.iter().enumerate().filter_map(|(position, service)| {
        let deployment = running.name_of(service.deployment)?.to_owned();
        Some(((deployment, service.name.clone()), position))
    });
    named.collect()
}

fn write(tables: &Tables, changes: &[(u32, HealthWord)]) {
    for (slot, word) in changes {
        tables.backend_info.update(*slot as usize, |info| info.health = word.0);
    }
}

/// Whether new flows of a colour are refused, whose backends have these weights and healths.
pub(crate) fn is_refused(backends: impl Iterator<Item = (u32, HealthWord)>) -> bool {
    let mut with_weight = backends.filter(|(weight, _)| *weight > 0);
    with_weight.all(|(_, health)| health.is_refused())
}

/// Writes the entries of a colour's table that differ. Returns false if an apply has to complete the service first.
fn rewrite(service: &RunningService, colour: Colour, maglev: &Mapped<[u32; 2]>) -> bool {
    if service.mode == Mode::Tee {
        // Its table leads to its listener, whatever becomes of the backends behind it.
        return true;
    }
    let backends = &service.backends[colour as usize];
    let span = table(&service.row, colour);
    let (first, len) = (span.base as usize, span.len as usize);
    let weights: Vec<u32> = backends.iter().map(|backend| backend.weight).collect();
    let Some(entries) = maglev.halves().get(first..first + len) else { return false };
    if weights.contains(&UNSETTLED) || maglev::table_len(&weights) != span.len || len == 0 {
        return false;
    }
    let ids: Vec<u64> = backends.iter().map(|backend| maglev::identity(backend.address)).collect();
    let shares: Vec<u16> = backends.iter().map(|backend| backend.health.share()).collect();
    let mut wanted = vec![0; len];
    maglev::fill(&ids, &weights, &mut wanted);
    maglev::thin(&ids, &shares, &mut wanted);
    let is_refused = is_refused(backends.iter().map(|backend| (backend.weight, backend.health)));
    for (entry, backend) in entries.iter().zip(wanted) {
        let slot = if is_refused { NO_BACKEND } else { backends[backend as usize].slot };
        // Each entry leads to a backend that exists, before and after, so a packet may read it at any time.
        if entry.load(Ordering::Relaxed) != slot {
            entry.store(slot, Ordering::Release);
        }
    }
    true
}
