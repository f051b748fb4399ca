//! The checks of one backend, as a task.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::{by_vip::Opener, judge::Judge, probe::Probe, schedule::Schedule, target::Wanted};
use crate::{
    Health,
    serve::{
        board::{BackendKey, Checked},
        controller::Controller,
        event::{Event, Judged},
    },
};

/// Checks the backend until the task is aborted. `begin` is what is known of it.
pub(super) async fn run(
    controller: Arc<Controller>,
    opener: Arc<Opener>,
    key: BackendKey,
    wanted: Wanted,
    begin: Checked,
    seed: u64,
) {
    let probe = Probe::new(&wanted, &key, opener);
    let check = &wanted.check;
    let mut judge = Judge::new(check, begin.health, begin.share, Instant::now());
    let mut schedule = Schedule::new(check.interval, seed, Instant::now());
    let mut checked = begin;
    let mut last_end = Instant::now();
    loop {
        sleep_until(schedule.next()).await;
        let now = Instant::now();
        // One that follows a check which has taken its whole interval is not late.
        controller.health().note_delay(now.saturating_duration_since(schedule.next().max(last_end)));
        schedule.advance(now);
        let (outcome, took) = probe.run().await;
        let now = Instant::now();
        last_end = now;
        if let Some(why) = outcome.as_ref().err().filter(|why| why.is_local()) {
            controller.health().note_no_verdict(why);
            continue;
        }
        checked.counts[usize::from(outcome.is_err())] += 1;
        let has_changed = judge.take(outcome.is_ok(), now);
        if has_changed {
            checked.since = jiff::Timestamp::now();
        }
        checked.health = judge.health();
        checked.share = judge.share(now);
        checked.is_judged = judge.is_judged();
        checked.took = Some(took);
        checked.why = outcome.err().map(|why| why.to_string());
        controller.health().note(&key, checked.clone());
        if has_changed {
            tell(&controller, &key, &checked);
        }
    }
}

fn tell(controller: &Controller, key: &BackendKey, checked: &Checked) {
    let judged = Judged {
        time: checked.since,
        deployment: key.deployment.clone(),
        service: key.service.clone(),
        colour: key.colour.name(),
        backend: key.address,
        why: checked.why.clone(),
    };
    let (deployment, service, colour) = (&judged.deployment, &judged.service, judged.colour);
    let backend = judged.backend;
    if checked.health == Health::Down {
        let why = judged.why.clone().unwrap_or_default();
        tracing::warn!(deployment, service, colour, %backend, why, "a backend is down");
        controller.publish(Event::Unhealthy(judged));
    } else {
        tracing::info!(deployment, service, colour, %backend, "a backend is up");
        controller.publish(Event::Healthy(judged));
    }
}
