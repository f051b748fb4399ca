//! Switching: making a colour live.
//!
//! Under the switch lock, a switch reads the word, checks the preconditions, waits for a grace period,
//! writes the terms of the next generation into the slot that the present generation does not use, compare-exchanges the
//! word, and waits for a grace period again (invariant 3). All of that happens in the kernel's memory. Only then is the
//! state directory written: in an emergency, a switch must neither fail nor wait because of a disk.
//!
//! The first wait is necessary in case an earlier process was killed between its exchange and its fence. Then programs may still read
//! the terms in the slot that is about to be written. It also ensures that a switch to a colour that is already live returns only when
//! every packet goes there.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bg_common::{Colour, DeploymentRow, Family, Identity, LiveWord, Mode, Role, ServiceRow};
use serde::Serialize;

use crate::{
    Error, Instance, Refusal,
    attach::is_attached,
    config::OnSwitch,
    fence::Fence,
    history::{Action, Moment},
    live::{self, Order, is_rolled_back, moment, rollback_mark},
    lock::{Lock, Recording},
    maps::{Services, backends, clock},
    net, pins,
    running::{deployment_rows, text, vip_row},
    state::Change,
    time::tick,
};

/// The options of a switch. The default makes the idle colour live, as configured for the deployment.
#[derive(Clone, Debug, Default)]
pub struct SwitchRequest {
    /// The colour to make live; `None` is the idle one.
    pub to: Option<Colour>,
    /// What happens to open flows; `None` is as configured.
    pub on_switch: Option<OnSwitch>,
    /// Refuse if the deployment is at another generation.
    pub if_generation: Option<u32>,
    /// Switch even if no interface is attached.
    pub force: bool,
    /// The reason, for the journal.
    pub reason: Option<String>,
}

/// The result of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Switched {
    /// Name of the deployment.
    pub deployment: String,
    /// Whether anything was changed. `false` if the colour was live already.
    pub changed: bool,
    /// The state before.
    pub from: Moment,
    /// The present state.
    pub to: Moment,
    /// What happens to open flows.
    pub on_switch: OnSwitch,
    /// The moment before the store, or before the fence if there was no store.
    #[serde(skip)]
    pub stored: Instant,
    /// The time from then to the end of the fence. Afterwards, no packet is decided by the old word.
    #[serde(serialize_with = "micros", rename = "fence_us")]
    pub fence: Duration,
}

/// The states before and after a switch.
struct Stored {
    from: LiveWord,
    to: LiveWord,
    on_switch: OnSwitch,
    /// The moment before the store, or, without a store, the moment when that was known.
    at: Instant,
}

impl Stored {
    fn changed(&self) -> bool {
        self.from != self.to
    }
}

impl Instance {
    /// Makes a colour live. When this returns, no CPU decides a new flow by the old word.
    pub fn switch(&self, deployment: &str, request: &SwitchRequest) -> Result<Switched, Error> {
        self.change(deployment, request, Action::Switch, |_, _, word| Ok(request.to.unwrap_or(word.live().other())))
    }

    /// Makes the colour live that was live before the last change, or the colour that the request names.
    ///
    /// If the last change was a rollback already, the request must name a colour or a generation. If two people roll back
    /// at the same time, the second rollback must not undo the first.
    pub fn rollback(&self, deployment: &str, request: &SwitchRequest) -> Result<Switched, Error> {
        self.change(deployment, request, Action::Rollback, |name, row, word| {
            let (deployment, live) = (name.to_owned(), word.live());
            match (request.to, word.previous()) {
                (Some(colour), _) => Ok(colour),
                (None, previous) if previous == live => {
                    Err(Refusal::NothingToRollBackTo { deployment, live: live.name() })
                }
                (None, previous) if is_rolled_back(row, word) && request.if_generation.is_none() => {
                    let (live, previous) = (live.name(), previous.name());
                    Err(Refusal::RolledBackAlready { deployment, live, previous, generation: word.generation() })
                }
                (None, previous) => Ok(previous),
            }
        })
    }

    fn change(
        &self,
        name: &str,
        request: &SwitchRequest,
        action: Action,
        target: impl Fn(&str, &DeploymentRow, LiveWord) -> Result<Colour, Refusal>,
    ) -> Result<Switched, Error> {
        let (index, _) = self.deployment(name)?;
        let mut fence = Fence::prepare(&self.paths)?;
        let recording = Recording::begin(&self.paths);
        let lock = Lock::switch(&self.paths)?;
        let stored = self.store(name, index, request, action, target, &mut fence);
        // Also if the colour was live already, because the process that switched may have been killed before it had waited.
        let fenced = stored.as_ref().map_or(Ok(()), |_| fence.wait());
        let fenced = fenced.map(|()| stored.as_ref().map_or(Duration::ZERO, |stored| stored.at.elapsed()));
        // Not before, because the next switch overwrites the terms of the word that the fence has just retired.
        drop(lock);
        if stored.is_ok() {
            // Packets resolve neighbours that cannot be kept resolved. What cannot be ended now is ended by the next call.
            let _ = self.keep_neighbours(index);
            let _ = self.end_overdue_drains();
        }

        // Also if nothing was stored, or the switch was refused. This may be the repetition of a switch that was killed before it was
        // recorded.
        let change = stored.as_ref().ok().filter(|stored| stored.changed()).map(|stored| Change {
            deployment: name.to_owned(),
            action,
            from: Some(moment(stored.from)),
            to: Some(moment(stored.to)),
            reason: request.reason.clone(),
            ..Change::default()
        });
        let recorded = self.state.record(Some(&self.words), recording, change.as_slice());
        let (recorded, missed) = if change.is_some() { (recorded, None) } else { (Ok(()), recorded.err()) };
        self.state.warn(missed.map(|error| format!("{:#}", anyhow::Error::from(error))));

        let stored = stored?;
        let fence = fenced?;
        let (from, to) = (moment(stored.from), moment(stored.to));
        recorded.map_err(|source| Error::NotRecorded {
            deployment: name.to_owned(),
            live: to.live.name(),
            generation: to.generation,
            source: Box::new(source),
        })?;
        let (deployment, changed) = (name.to_owned(), stored.changed());
        Ok(Switched { deployment, changed, from, to, on_switch: stored.on_switch, stored: stored.at, fence })
    }

    /// Makes the colour live that `target` returns, unless it is live already. The caller holds the lock.
    fn store(
        &self,
        name: &str,
        index: u16,
        request: &SwitchRequest,
        action: Action,
        target: impl Fn(&str, &DeploymentRow, LiveWord) -> Result<Colour, Refusal>,
        fence: &mut Fence,
    ) -> Result<Stored, Error> {
        loop {
            // Read under the lock, because it may have changed before.
            let row = self.words.deployments.read(index.into());
            let configured = if row.on_switch == 0 { OnSwitch::Drain } else { OnSwitch::Cut };
            let on_switch = request.on_switch.unwrap_or(configured);
            let word = self.words.live.read(index.into());
            if row.in_use == 0 || text(&row.name) != name || word.generation() == 0 {
                return Err(Refusal::NotRunning { deployment: name.to_owned() }.into());
            }
            if let Some(expected) = request.if_generation.filter(|expected| *expected != word.generation()) {
                let refusal =
                    Refusal::OtherGeneration { deployment: name.to_owned(), expected, got: word.generation() };
                return Err(refusal.into());
            }
            let to = target(name, &row, word)?;
            if to == word.live() {
                return Ok(Stored { from: word, to: word, on_switch, at: Instant::now() });
            }
            if !request.force && !is_attached(&self.paths)? {
                return Err(Refusal::NoInterface.into());
            }
            self.check_colour(name, &self.services_of(index)?, to)?;
            fence.wait()?;
            if let Some((new, at)) = self.exchange(name, index, &row, word, (to, action), on_switch)? {
                return Ok(Stored { from: word, to: new, on_switch, at });
            }
            // A packet has ended a drain meanwhile, or a program that does not use the lock has switched. Read the word again.
        }
    }

    /// Writes the next generation's terms, then the word, if it is still `word`. Returns when.
    fn exchange(
        &self,
        name: &str,
        index: u16,
        row: &DeploymentRow,
        word: LiveWord,
        (to, action): (Colour, Action),
        on_switch: OnSwitch,
    ) -> Result<Option<(LiveWord, Instant)>, Error> {
        let old = self.words.terms.read(index.into())[word.terms_slot()];
        let needs_clock = on_switch == OnSwitch::Drain || live::needs_clock(word, &old);
        let now = if needs_clock { tick(clock(&self.paths)?) } else { 0 };
        let order = match on_switch {
            OnSwitch::Cut => Order::cut(to, now),
            OnSwitch::Drain => {
                let timeout = (row.drain_timeout_ms != 0).then(|| Duration::from_millis(row.drain_timeout_ms));
                Order::drain(to, now, timeout.map(|timeout| self.tick_length.ticks(timeout)))
            }
        };
        let Some((new, new_terms)) = live::next(word, &old, order) else {
            return Err(Refusal::GenerationsExhausted { deployment: name.to_owned() }.into());
        };
        // No packet reads this slot, because it belongs to the other parity.
        self.words.terms.update(index.into(), |terms| terms[new.terms_slot()] = new_terms);
        let mark = if action == Action::Rollback { rollback_mark(new.generation()) } else { 0 };
        self.words.deployments.update(index.into(), |row| row.rolled_back = mark);
        let live = &self.words.live.words(index.into())[0];
        let stored = Instant::now();
        let exchanged = live.compare_exchange(word.0, new.0, Ordering::SeqCst, Ordering::SeqCst);
        if exchanged.is_err() {
            self.words.deployments.update(index.into(), |there| there.rolled_back = row.rolled_back);
        }
        Ok(exchanged.is_ok().then_some((new, stored)))
    }

    /// Refuses a colour if one of its services has no backend for new flows.
    fn check_colour(&self, name: &str, services: &[(String, ServiceRow)], to: Colour) -> Result<(), Refusal> {
        let refuse = |of| Refusal::EmptyColour { deployment: name.to_owned(), colour: to.name(), of };
        if services.is_empty() {
            return Err(refuse(String::new()));
        }
        let empty = services.iter().find(|(_, row)| row.tables[to as usize].len == 0);
        empty.map_or(Ok(()), |(service, _)| Err(refuse(format!(" in service \"{service}\""))))
    }

    /// The names and rows of a deployment's services.
    fn services_of(&self, deployment: u16) -> Result<Vec<(String, ServiceRow)>, Error> {
        let services = Services::open(&self.paths)?;
        let mut found = Vec::new();
        for index in 0..services.info.rows() {
            let info = services.info.read(index);
            if info.in_use == 0 || info.deployment != deployment {
                continue;
            }
            let vip = services.vips.read(vip_row(index as u16, Role::Vip));
            // A service that an apply is just adding or removing has no row, so there is nothing to switch.
            if let Ok(row) = services.rows.get(&vip.key, 0) {
                found.push((text(&info.name), row));
            }
        }
        Ok(found)
    }

    /// Has the kernel keep the next hops to a deployment's backends resolved, in case the apply could not. Routes may have been
    /// added later, and a loss of carrier removes the entries. If there are many backends, this covers only so many that the
    /// switch does not take longer.
    fn keep_neighbours(&self, deployment: u16) -> Result<(), Error> {
        const MOST: usize = 256;
        if !pins::is_in_this_namespace(&self.paths)? {
            return Ok(());
        }
        let backends = backends(&self.paths)?;
        let is_in_use = |slot: &usize| {
            let word = backends.words(*slot)[0].load(Ordering::Relaxed);
            bytemuck::cast::<u64, Identity>(word).in_use != 0
        };
        let rows = (0..backends.rows()).filter(is_in_use).map(|slot| backends.read(slot));
        let elsewhere = rows.filter(|row| row.deployment == deployment && Mode::from_u8(row.mode) == Some(Mode::Nat));
        let addresses = elsewhere.filter_map(|row| Some(row.addr.to_ip(Family::from_u8(row.family)?)));
        net::keep_more_neighbours(&self.paths, addresses.take(MOST));
        Ok(())
    }

    /// The deployment of this name.
    pub(crate) fn deployment(&self, name: &str) -> Result<(u16, DeploymentRow), Error> {
        let found = deployment_rows(&self.words).find(|(_, row)| text(&row.name) == name);
        found.ok_or_else(|| Error::UnknownDeployment {
            name: name.to_owned(),
            existing: deployment_rows(&self.words).map(|(_, row)| text(&row.name)).collect(),
        })
    }
}

fn micros<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_micros() as u64)
}
