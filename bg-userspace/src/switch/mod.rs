//! Switching: making a colour live, at once, at an instant, by and by, or until somebody confirms it.
//!
//! Under the switch lock, a switch reads the word, checks the preconditions, waits for a grace period,
//! writes the terms and the timing of the next generation into the slots that the present generation does not use, compare-exchanges the
//! word, and waits for a grace period again (invariant 3). All of that happens in the kernel's memory. Only then is the
//! state directory written: in an emergency, a switch must neither fail nor wait because of a disk.
//!
//! The first wait is necessary in case an earlier process was killed between its exchange and its fence. Then programs may still read
//! the terms in the slot that is about to be written. It also ensures that a switch to a colour that is already live returns only when
//! every packet goes there.
//!
//! Nothing watches over a switch that needs a confirmation, is scheduled or moves by and by: the word and its timing say it all, and
//! packets act on them ([`bg_ebpf::policy::timed`]).

mod claim;
mod confined;
mod confirm;
mod decision;
mod fates;
mod hook;
mod old_colour;
#[cfg(feature = "serve")]
mod provided;
mod receipt;
mod request;
mod store;
mod ungated;
mod window;

use std::time::Duration;

use bg_common::{Colour, DeploymentRow, Family, Identity, Mode, Role, ServiceInfo, ServiceRow};
use std::sync::atomic::Ordering;

pub(crate) use self::decision::{Kind, Outlook};
pub use self::request::{ConfirmRequest, SplitRequest, SwitchRequest, Switched};
pub use self::window::{FreezeWindow, WindowSwitched};
use self::{
    decision::{Goal, goal_of},
    receipt::Counters,
    store::Stored,
};
use crate::{
    Error, Instance, Refusal,
    config::mode_name,
    fence::Fence,
    history::Action,
    live::Reading,
    lock::{Lock, Recording},
    maps::{Services, backends},
    net, pins,
    running::{deployment_rows, text, vip_row},
    state::Change,
    tunnels,
};

impl Instance {
    /// Makes a colour live. When this returns, no CPU decides a new flow by the old word.
    pub fn switch(&self, deployment: &str, request: &SwitchRequest) -> Result<Switched, Error> {
        self.change(deployment, request, Action::Switch, goal_of(Kind::Switch, request))
    }

    /// Goes back to the state before the last change, or to the colour that the request names: all new flows to the colour that was kept
    /// before, or, if the last change was one of the share only, the share before. What still waits, or is on its way, is ended.
    ///
    /// If the last change has gone back already, the request must name a colour or a generation. If two people roll back
    /// at the same time, the second rollback must not undo the first.
    ///
    /// # Errors
    /// [`Refusal::GatesNotAsked`] if the deployment has gates, and the request names a colour that is neither kept nor was before, or undoes a rollback. A request
    /// that names neither a colour nor a generation is never refused for gates, and reads no disk for them.
    pub fn rollback(&self, deployment: &str, request: &SwitchRequest) -> Result<Switched, Error> {
        let (index, _) = self.deployment(deployment)?;
        let goal = self.mind_gates(deployment, index, request, goal_of(Kind::Rollback, request))?;
        self.change(deployment, request, Action::Rollback, goal)
    }

    /// Sends a share of new flows to green and the others to blue. Open flows stay where they are, unless a colour gets no new flows any
    /// more: then they drain, or are cut, as the deployment is configured.
    ///
    /// # Errors
    /// [`Refusal::GatesNotAsked`] if the deployment has gates, and another colour would become live.
    pub fn split(&self, deployment: &str, request: &SplitRequest) -> Result<Switched, Error> {
        let switch = request.as_switch();
        let (index, _) = self.deployment(deployment)?;
        let goal = self.mind_gates(deployment, index, &switch, goal_of(request.kind(), &switch))?;
        self.change(deployment, &switch, Action::Split, goal)
    }

    fn change(
        &self,
        name: &str,
        request: &SwitchRequest,
        action: Action,
        goal: impl Fn(&str, &Reading) -> Result<Goal, Refusal>,
    ) -> Result<Switched, Error> {
        request.check()?;
        let (index, _) = self.deployment(name)?;
        let mut request = request.clone();
        let not_armed = self.disarm(name, index, &mut request, &goal)?;
        let request = &request;
        let mut fence = Fence::prepare(&self.paths)?;
        let mut counters = Counters::open(&self.paths);
        let recording = Recording::begin(&self.paths);
        let lock = Lock::switch(&self.paths)?;
        let mut stored = self.store(name, index, request, goal, &mut fence, &mut counters);
        // Also if the colour was live already, because the process that switched may have been killed before it had waited.
        let fenced = stored.as_ref().map_or(Ok(()), |_| fence.wait());
        let fenced = fenced.map(|()| stored.as_ref().map_or(Duration::ZERO, |stored| stored.at.elapsed()));
        let is_there = stored.as_mut().map_or(Ok(true), |stored| self.begin_window(index, stored, &mut fence));
        let at = stored.as_ref().ok().filter(|stored| stored.changed).map(|stored| stored.at);
        let noted = counters.end(&self.words, index, at);
        // Not before, because the next switch overwrites the terms of the word that the fence has just retired.
        drop(lock);
        if let (Ok(stored), Some(noted)) = (&mut stored, noted) {
            stored.receipt = self.receipt(index, stored, noted);
        }
        if stored.is_ok() {
            // Packets resolve neighbours that cannot be kept resolved. What cannot be ended now is ended by the next call.
            let _ = self.keep_neighbours(index);
            let _ = self.end_overdue_drains();
            let _ = self.release_overdue();
        }
        if let Ok(stored) = &stored {
            // What is not reset now is reset by its next segment.
            let _ = self.end_confined_by(index, stored);
        }
        let stored = self.recorded(name, action, request.reason.as_deref(), recording, stored)?;
        let to = stored.to.moment();
        let unfenced = |source| match stored.changed {
            true => Error::NotFenced {
                deployment: name.to_owned(),
                live: to.live.name(),
                generation: to.generation,
                source: Box::new(source),
            },
            false => source,
        };
        let fence = fenced.map_err(unfenced)?;
        if !is_there.map_err(unfenced)? {
            return Err(Refusal::TakenBackMeanwhile {
                deployment: name.to_owned(),
                live: stored.from.word.live().name(),
            }
            .into());
        }
        let not_armed = not_armed.iter().filter(|_| stored.changed).map(ToString::to_string).collect();
        Ok(Switched { not_armed, ..stored.switched(&self.words, index, name, fence) })
    }

    /// Writes a change to the journal.
    fn recorded(
        &self,
        name: &str,
        action: Action,
        reason: Option<&str>,
        recording: Option<Recording>,
        stored: Result<Stored, Error>,
    ) -> Result<Stored, Error> {
        // Also if nothing was stored, or the switch was refused. This may be the repetition of a switch that was killed before it was
        // recorded.
        let change = stored.as_ref().ok().filter(|stored| stored.changed).map(|stored| Change {
            deployment: name.to_owned(),
            action,
            from: Some(stored.from.moment()),
            to: Some(stored.made()),
            reason: reason.map(str::to_owned),
            unconfirmed: stored.made().live != stored.to.kept().colour,
            receipt: stored.receipt.clone(),
            at: jiff::Timestamp::now().checked_sub(stored.at.elapsed()).ok(),
            is_in_force: !stored.to.is_pending(),
            past: Some(stored.past.clone()),
            ..Change::default()
        });
        let recorded = self.state.record(Some(&self.words), recording, change.as_slice());
        let (recorded, missed) = if change.is_some() { (recorded, None) } else { (Ok(()), recorded.err()) };
        self.state.warn(missed.map(|error| format!("{:#}", anyhow::Error::from(error))));
        let stored = stored?;
        let to = stored.to.moment();
        recorded.map_err(|source| Error::NotRecorded {
            deployment: name.to_owned(),
            live: to.live.name(),
            generation: to.generation,
            source: Box::new(source),
        })?;
        Ok(stored)
    }

    /// Refuses a share if a service has no backend for the new flows of a colour.
    fn check_colours(&self, name: &str, services: &[(String, ServiceRow)], share: u16) -> Result<(), Refusal> {
        for to in Colour::ALL.into_iter().filter(|colour| share != colour.other().full_share()) {
            let refuse = |of| Refusal::EmptyColour { deployment: name.to_owned(), colour: to.name(), of };
            if services.is_empty() {
                return Err(refuse(String::new()));
            }
            if let Some((service, _)) = services.iter().find(|(_, row)| row.tables[to as usize].len == 0) {
                return Err(refuse(format!(" in service \"{service}\"")));
            }
        }
        Ok(())
    }

    /// Learns the source addresses of outer headers anew, for the modes `ipip` and `gue`. An apply and a switch do so, too.
    pub fn learn_outer_sources(&self) -> Result<(), Error> {
        pins::check_own_namespace(&self.paths)?;
        tunnels::follow(&self.paths)
    }

    /// Refuses conditions about flows whose answers do not pass this host.
    fn check_conditions(&self, name: &str, deployment: u16) -> Result<(), Error> {
        let info = Services::open(&self.paths)?.info;
        let mut ours = (0..info.rows())
            .map(|index| info.read(index))
            .filter(|info| info.in_use != 0 && info.deployment == deployment);
        let mode_of = |info: &ServiceInfo| Mode::from_u8(info.mode).filter(|mode| mode.is_direct());
        match ours.find_map(|info| Some((text(&info.name), mode_of(&info)?))) {
            Some((service, mode)) => {
                let (deployment, mode) = (name.to_owned(), mode_name(mode));
                Err(Refusal::Unheard { deployment, service, mode }.into())
            }
            None => Ok(()),
        }
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
        let mut is_any_tunnel = false;
        let rows = (0..backends.rows()).filter(is_in_use).map(|slot| backends.read(slot));
        let rows = rows.inspect(|row| is_any_tunnel |= Mode::from_u8(row.mode).is_some_and(Mode::is_tunnel));
        let elsewhere = rows.filter(|row| row.deployment == deployment && is_by_neighbours(row.mode));
        let addresses = elsewhere.filter_map(|row| Some(row.addr.to_ip(Family::from_u8(row.family)?)));
        net::keep_more_neighbours(&self.paths, addresses.take(MOST));
        if is_any_tunnel { tunnels::follow(&self.paths) } else { Ok(()) }
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

/// Whether packets to a backend of this mode are sent to its next hop.
fn is_by_neighbours(mode: u8) -> bool {
    Mode::from_u8(mode).is_some_and(|mode| mode == Mode::Nat || mode.is_direct())
}
