//! Failover: if the live colour has too few healthy backends and the idle colour has enough, the controller switches, by
//! the same switch as everybody else.
//!
//! - A colour has enough if each service with checks has at least `min_healthy` backends that are up, of those with a weight. A service
//!   without checks says nothing.
//! - Nothing happens before every checked backend of the deployment was judged, while the deployment is frozen, split, or a
//!   switch waits for its time or its confirmation, and within `hold_off` of the last failover.
//! - It never goes back by itself when the colour that failed is well again. Only if the colour that is live now fails too, and `hold_off` is
//!   over, it fails over again.
//! - Somebody who switches at the same moment wins: the generation that was looked at must still be the present one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bg_common::Colour;
use tokio::time::{Instant, sleep_until};

use super::{
    board::{BackendKey, Checked},
    controller::Controller,
    error::ServeError,
    event::{Event, FailedOver},
};
use crate::{
    DeploymentStatus, Error, Health, SwitchRequest,
    config::{Config, Deployment, model::MinHealthy},
    history::{Action, Caller, History, Who},
};

/// What the reasons of failovers begin with in the history.
const REASON: &str = "failover: ";
/// The time until a failover is tried again that was refused or has failed, if nothing else happens before.
const AGAIN: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Watches until the controller ends.
pub(super) async fn run(controller: Arc<Controller>) -> Result<(), ServeError> {
    let (mut configs, mut views) = (controller.config_changes(), controller.views());
    let mut changes = controller.health().changes();
    let mut last: Option<HashMap<String, Instant>> = None;
    let mut problem = String::new();
    loop {
        let config = configs.borrow_and_update().clone();
        let view = views.borrow_and_update().clone();
        changes.mark_unchanged();
        let mut next = Instant::now() + YEAR;
        let is_wanted = config.deployments.iter().any(|deployment| deployment.failover.to_idle);
        if let Some(view) = view.filter(|_| is_wanted) {
            if last.is_none() {
                last = before(&controller).await;
            }
            match &mut last {
                None => next = Instant::now() + AGAIN,
                Some(last) => {
                    let due = due(&config, &view.status.deployments, &controller.health().snapshot(), last, &mut next);
                    for failover in due {
                        match fail_over(&controller, &failover).await {
                            Ok(()) => {
                                problem.clear();
                                last.insert(failover.deployment, Instant::now());
                            }
                            Err(error) => {
                                let error = format!("{:#}", anyhow::Error::from(error));
                                if problem != error {
                                    tracing::error!(deployment = failover.deployment, "no failover: {error}");
                                    problem = error;
                                }
                                next = next.min(Instant::now() + AGAIN);
                            }
                        }
                        controller.look();
                    }
                }
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = views.changed() => {}
            _ = configs.changed() => {}
            () = sleep_until(next) => {}
            () = controller.stopped() => return Ok(()),
        }
    }
}

/// A switch that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Due {
    deployment: String,
    to: Colour,
    generation: u32,
    why: String,
}

/// The failovers that are due. `next` becomes earlier if one is held off until then.
fn due(
    config: &Config,
    deployments: &[DeploymentStatus],
    board: &BTreeMap<BackendKey, Checked>,
    last: &HashMap<String, Instant>,
    next: &mut Instant,
) -> Vec<Due> {
    let mut due = Vec::new();
    for wanted in config.deployments.iter().filter(|deployment| deployment.failover.to_idle) {
        let Some(status) = deployments.iter().find(|status| status.name == wanted.name) else { continue };
        let Some(failover) = judge(wanted, status, board) else { continue };
        let held_off_until = last.get(&wanted.name).map(|last| *last + wanted.failover.hold_off);
        match held_off_until.filter(|until| *until > Instant::now()) {
            Some(until) => *next = until.min(*next),
            None => due.push(failover),
        }
    }
    due
}

/// Whether a deployment is to be switched.
fn judge(wanted: &Deployment, status: &DeploymentStatus, board: &BTreeMap<BackendKey, Checked>) -> Option<Due> {
    if !matches!(status.phase, "steady" | "draining") {
        return None;
    }
    let live = Colour::ALL.into_iter().find(|colour| colour.name() == status.live)?;
    let shortage = |colour| shortage(wanted, status, colour, board);
    let [of_live, of_idle] = [shortage(live)?, shortage(live.other())?];
    let why = of_live.filter(|_| of_idle.is_none())?;
    Some(Due { deployment: wanted.name.clone(), to: live.other(), generation: status.generation, why })
}

/// Which service of a colour has too few healthy backends. `None` if that is not known of all of them.
fn shortage(
    wanted: &Deployment,
    status: &DeploymentStatus,
    colour: Colour,
    board: &BTreeMap<BackendKey, Checked>,
) -> Option<Option<String>> {
    let mut short = None;
    for service in &status.services {
        let configured = wanted.services.iter().find(|found| found.name == service.name);
        if configured.map_or(wanted.health.is_none(), |configured| wanted.check_of(configured).is_none()) {
            continue;
        }
        let with_weight = service.colours.of(colour).backends.iter().filter(|backend| backend.weight > 0);
        let (mut all, mut up) = (0, 0);
        for backend in with_weight {
            let key = BackendKey {
                deployment: status.name.clone(),
                service: service.name.clone(),
                colour,
                address: backend.address,
            };
            let checked = board.get(&key).filter(|checked| checked.is_judged)?;
            all += 1;
            up += u32::from(checked.health == Health::Up);
        }
        let needed = needed(wanted.failover.min_healthy, all);
        if up < needed && short.is_none() {
            let name = &service.name;
            short = Some(format!("{} has {up} of {all} backends of {name} up, and needs {needed}", colour.name()));
        }
    }
    Some(short)
}

/// How many of so many backends have to be up.
fn needed(min_healthy: MinHealthy, all: u32) -> u32 {
    match min_healthy {
        MinHealthy::Percent(percent) => (all * u32::from(percent)).div_ceil(100),
        MinHealthy::Count(count) => count.get().min(all),
    }
}

/// Switches.
async fn fail_over(controller: &Arc<Controller>, due: &Due) -> Result<(), Error> {
    let caller = Caller {
        who: Who { user: Some("controller".to_owned()), uid: rustix::process::getuid().as_raw() },
        command: "bgctl serve: failover".to_owned(),
    };
    let request = SwitchRequest {
        to: Some(due.to),
        if_generation: Some(due.generation),
        reason: Some(format!("{REASON}{}", due.why)),
        ..SwitchRequest::default()
    };
    let Due { deployment, to, generation, why } = due.clone();
    let name = deployment.clone();
    tracing::warn!(deployment, to = to.name(), why, "failing over");
    match controller.on_instance(Some(caller), move |instance| instance.switch(&name, &request)).await {
        Ok(_) => {}
        // The switch itself is made.
        Err(error @ Error::DoneNotRecorded { .. }) => tracing::error!("{:#}", anyhow::Error::from(error)),
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

/// When each deployment failed over last, according to the history: a controller that is restarted must hold off too. `None` if there is
/// no instance.
async fn before(controller: &Arc<Controller>) -> Option<HashMap<String, Instant>> {
    let paths = controller.paths().clone();
    let read = controller.on_instance(None, move |_| Ok(History::of(&paths).read(None))).await.ok()?;
    let records = match read {
        Ok(journal) => journal.records,
        Err(error) => {
            tracing::warn!("the last failovers are not known: {error}");
            Vec::new()
        }
    };
    let (now, clock) = (jiff::Timestamp::now(), Instant::now());
    let mut last = HashMap::new();
    for record in records {
        let is_failover =
            record.action == Action::Switch && record.reason.is_some_and(|reason| reason.starts_with(REASON));
        let ago = Duration::try_from(now.duration_since(record.time)).unwrap_or_default();
        if let Some(at) = clock.checked_sub(ago).filter(|_| is_failover) {
            last.insert(record.deployment, at);
        }
    }
    Some(last)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn enough_is_rounded_up_and_never_more_than_there_are() {
        let percent = |percent, all| needed(MinHealthy::Percent(percent), all);
        assert_eq!([percent(50, 1), percent(50, 2), percent(50, 3), percent(100, 3), percent(1, 200)], [1, 1, 2, 3, 2]);
        let count = |count, all| needed(MinHealthy::Count(NonZeroU32::new(count).unwrap()), all);
        assert_eq!([count(1, 3), count(3, 3), count(5, 3)], [1, 3, 3]);
    }
}
