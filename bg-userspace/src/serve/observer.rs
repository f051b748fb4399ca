//! Looks at the instance.
//!
//! A glance reads the live words, which are mapped memory, a few times a second. A look reads the whole status. It follows when a glance
//! shows a change, when somebody asks for it, each second while somebody watches, and else seldom: of an instance with a thousand
//! services, a look each second would cost more than all else. A look also releases what a freeze has held whose time is over, so one follows the
//! end of each freeze: whoever has frozen may have been killed since.

use std::{sync::Arc, time::Duration};

use bg_common::LiveWord;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{controller::Controller, error::ServeError, view::View};
use crate::{Error, Instance, Refusal};

const GLANCE: Duration = Duration::from_millis(250);
const LOOK_WATCHED: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(10);

/// Looks until the controller ends. Ends it if another controller runs on the instance, or the instance is of another network namespace.
pub(super) async fn run(controller: Arc<Controller>) -> Result<(), ServeError> {
    let mut ticks = interval(GLANCE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: Option<Seen> = None;
    let mut problem = String::new();
    loop {
        let is_asked = tokio::select! {
            _ = ticks.tick() => false,
            () = controller.asked_to_look() => true,
            () = controller.stopped() => return Ok(()),
        };
        let glance = controller.on_instance(None, |instance| Ok(instance.live_words())).await;
        let words = match glance {
            Ok(words) => words,
            Err(error) => {
                let error = absent(error)?;
                if problem != error {
                    tracing::warn!("{error}");
                    problem = error;
                }
                seen = None;
                controller.seen(None);
                continue;
            }
        };
        let longest = if controller.is_watched() { LOOK_WATCHED } else { LOOK };
        let is_due =
            |seen: &Seen| is_asked || seen.words != words || seen.at.elapsed() >= longest || seen.is_thaw_due();
        if !seen.as_ref().is_none_or(is_due) {
            continue;
        }
        let seen = seen.insert(Seen { at: Instant::now(), words, frozen_until: None });
        let look = |instance: &Instance| {
            // The source addresses of outer headers follow those of this host.
            let _ = instance.learn_outer_sources();
            instance.status(None)
        };
        match controller.on_instance(None, look).await {
            Ok(status) => {
                problem.clear();
                seen.frozen_until = status.deployments.iter().filter_map(|deployment| deployment.frozen_until).min();
                controller.seen(Some(View { at: jiff::Timestamp::now(), status }));
            }
            // Somebody is removing it. The next glance tells.
            Err(error) => tracing::debug!("cannot look: {error:#}"),
        }
    }
}

/// What was seen last.
struct Seen {
    at: Instant,
    words: Vec<(u16, LiveWord)>,
    /// When the first freeze ends by itself.
    frozen_until: Option<jiff::Timestamp>,
}

impl Seen {
    fn is_thaw_due(&self) -> bool {
        self.frozen_until.is_some_and(|until| until <= jiff::Timestamp::now())
    }
}

/// Why there is no instance. What the controller cannot wait for is an error.
fn absent(error: Error) -> Result<String, ServeError> {
    match error {
        Error::Refused(Refusal::SecondController { .. }) | Error::OtherNamespace { .. } => Err(error.into()),
        error => Ok(format!("{:#}", anyhow::Error::from(error))),
    }
}
