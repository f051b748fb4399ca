//! Failover: if the live colour has too few healthy backends and the idle colour has enough, the controller switches, by
//! the same switch as everybody else, except that no gate is asked.
//!
//! - A colour has enough if each service with checks has at least `min_healthy` backends that are up, of those with a weight. A service
//!   without checks says nothing, and so does a backend that is in the maps but not in the file of the controller.
//! - Nothing happens before every checked backend of the deployment was judged, while the deployment is frozen, split, or a
//!   switch waits for its time or its confirmation, and within `hold_off` of the last failover.
//! - It never goes back by itself when the colour that failed is well again. Only if the colour that is live now fails too, and `hold_off` is
//!   over, it fails over again.
//! - It goes only where packets get through: the backends that count must be up in the maps too, where the health is written a moment after
//!   a check has found it.
//! - What was seen may have changed while the switch waited for its lock. So it is judged once more under the lock, by what the maps and the checks say
//!   then ([`is_still_due`]).
//! - Somebody who switches at the same moment wins: the generation that was looked at must still be the present one.
//! - After a reload, nothing happens by verdicts of checks that were configured otherwise.
//! - Each failover is a task of its own, so one that waits for a lock or a disk holds up no other deployment.

mod attempts;
mod judge;
mod past;

use std::{sync::Arc, time::Duration};

use bg_common::Colour;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::{
    attempts::{Attempts, Turn},
    judge::Due,
};
use super::{
    controller::Controller,
    error::ServeError,
    event::{Event, FailedOver},
    view::View,
};
use crate::{
    Error, Refusal, SwitchRequest,
    config::Config,
    history::{Caller, History, Who},
    running::ServiceInMaps,
};

/// What the history may take. A failover must not wait for a disk that hangs.
const PATIENCE: Duration = Duration::from_secs(2);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How an attempt has ended.
type Ended = (Due, Result<(), Error>);

/// Watches until the controller ends.
pub(super) async fn run(controller: Arc<Controller>) -> Result<(), ServeError> {
    let start = Instant::now();
    let (mut configs, mut views) = (controller.config_changes(), controller.views());
    let mut changes = controller.health().changes();
    let mut attempts: Option<Attempts> = None;
    let mut running: JoinSet<Ended> = JoinSet::new();
    loop {
        let config = configs.borrow_and_update().clone();
        let view = views.borrow_and_update().clone();
        changes.mark_unchanged();
        let mut next = Instant::now() + YEAR;
        let is_wanted = config.deployments.iter().any(|deployment| deployment.failover.to_idle);
        if let Some(view) = view.filter(|_| is_wanted) {
            if attempts.is_none() {
                attempts = tokio::select! {
                    known = past(&controller, &view, start) => Some(known),
                    () = controller.stopped() => return Ok(()),
                };
            }
            if let Some(attempts) = &mut attempts {
                for due in due(&controller, &config, &view, attempts, &mut next) {
                    attempts.begin(&due.deployment);
                    let controller = controller.clone();
                    running.spawn(async move {
                        let made = fail_over(&controller, &due).await;
                        (due, made)
                    });
                }
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = views.changed() => {}
            _ = configs.changed() => {}
            () = sleep_until(next) => {}
            Some(ended) = running.join_next() => {
                let (due, made) = ended.map_err(|error| ServeError::Part { why: error.to_string() })?;
                if let Some(attempts) = &mut attempts {
                    note(attempts, &due, made);
                }
                // Also after a refusal: the deployment may be another one than was looked at.
                controller.look();
            }
            () = controller.stopped() => break,
        }
    }
    // What has begun is told to its end, as far as the end of the controller waits.
    while running.join_next().await.is_some() {}
    Ok(())
}

/// The failovers that are due and may be tried now. `next` becomes earlier if one has to wait until then.
fn due(
    controller: &Controller,
    config: &Arc<Config>,
    view: &View,
    attempts: &mut Attempts,
    next: &mut Instant,
) -> Vec<Due> {
    let mut may_begin = Vec::new();
    // In this order: what is read afterwards is of this configuration, or not judged yet.
    if !controller.health().follows(config) {
        return may_begin;
    }
    let (board, now) = (controller.health().snapshot(), Instant::now());
    for wanted in config.deployments.iter().filter(|deployment| deployment.failover.to_idle) {
        let Some(status) = view.status.deployments.iter().find(|status| status.name == wanted.name) else { continue };
        let judged = judge::judge(wanted, status, &board);
        match attempts.unchecked(&wanted.name, &judged.unchecked, now) {
            Some(at) if at > now => *next = at.min(*next),
            Some(_) => tracing::warn!(
                deployment = wanted.name,
                "failover does not count backends that are not in the controller's configuration, so nothing checks them: {}",
                judged.unchecked.join(", ")
            ),
            None => {}
        }
        let Some(due) = judged.due else {
            attempts.calm(&wanted.name);
            continue;
        };
        match attempts.turn(&wanted.name, wanted.failover.hold_off, now) {
            Turn::Now => may_begin.push(due),
            Turn::At(at) => *next = at.min(*next),
            Turn::Running => {}
        }
    }
    may_begin
}

/// Notes how an attempt has ended.
fn note(attempts: &mut Attempts, due: &Due, made: Result<(), Error>) {
    let Due { deployment, to, why, .. } = due;
    match made {
        Ok(()) => {
            tracing::warn!(deployment, to = to.name(), why, "failed over");
            attempts.succeeded(deployment, Instant::now());
        }
        Err(Error::Refused(error @ Refusal::NotDue { .. })) => {
            let error = error.to_string();
            if attempts.refused(deployment, &error, Instant::now()) {
                tracing::info!(deployment, to = to.name(), why, "no failover: {error}");
            }
        }
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            if attempts.failed(deployment, &error, Instant::now()) {
                tracing::error!(deployment, to = to.name(), why, "no failover, which is tried again: {error}");
            }
        }
    }
}

/// Switches.
async fn fail_over(controller: &Arc<Controller>, due: &Due) -> Result<(), Error> {
    let caller = Caller {
        who: Who { user: Some("controller".to_owned()), uid: rustix::process::getuid().as_raw() },
        command: "bgctl serve: failover".to_owned(),
    };
    let without = if due.has_gates { "; no gate was asked" } else { "" };
    let request = SwitchRequest {
        to: Some(due.to),
        if_generation: Some(due.generation),
        reason: Some(format!("{}{}{without}", past::REASON, due.why)),
        ..SwitchRequest::default()
    };
    let Due { deployment, to, generation, why, .. } = due.clone();
    let (name, checking) = (deployment.clone(), controller.clone());
    let switch = move |instance: &crate::Instance| {
        instance.switch_provided(&name, &request, |services| is_still_due(&checking, &name, to, services))
    };
    match controller.on_instance(Some(caller), switch).await {
        Ok(_) => {}
        // The switch itself is made.
        Err(error) if error.is_made() => tracing::error!("{:#}", anyhow::Error::from(error)),
        Err(error) => return Err(error),
    }
    controller.publish(Event::Failover(FailedOver {
        time: jiff::Timestamp::now(),
        deployment,
        from: to.other().name(),
        to: to.name(),
        generation: generation.wrapping_add(1),
        why,
    }));
    Ok(())
}

/// Judges anew, when nobody else can switch any more. Returns why it is not due.
fn is_still_due(controller: &Controller, name: &str, to: Colour, services: &[ServiceInMaps]) -> Result<(), String> {
    let config = controller.config();
    if !controller.health().follows(&config) {
        return Err("the configuration was just read again, and its checks have not begun yet".to_owned());
    }
    let wanted = config.deployments.iter().find(|deployment| deployment.name == name);
    let Some(wanted) = wanted.filter(|wanted| wanted.failover.to_idle) else {
        return Err("it is configured otherwise".to_owned());
    };
    judge::is_still_due(wanted, to, services, &controller.health().snapshot())
}

/// What the history says of failovers. If it does not say anything, there may have been one just before `start`.
async fn past(controller: &Arc<Controller>, view: &View, start: Instant) -> Attempts {
    let paths = controller.paths().clone();
    let read = tokio::task::spawn_blocking(move || History::of(&paths).read_within(None, PATIENCE)).await;
    let why = match read {
        Ok(Ok(journal)) => {
            let now = (Instant::now(), jiff::Timestamp::now());
            let last = past::last_failovers(&journal.records, &view.status.deployments, now);
            return Attempts::new(last, None);
        }
        Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
        Err(error) => error.to_string(),
    };
    tracing::warn!("the last failovers are not known, so none is made within hold_off of the start: {why}");
    Attempts::new(std::collections::HashMap::new(), Some(start))
}
