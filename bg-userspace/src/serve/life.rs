//! The controller as a service of the system: signals, readiness and watchdog.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{controller::Controller, error::ServeError};

/// How long the first look may take before the service counts as ready all the same: there may be no instance yet.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// The signals that the process obeys. They are caught from the beginning, so that none kills it.
pub(super) struct Life {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Life {
    pub(super) fn begin() -> Result<Self, ServeError> {
        let caught = |kind| signal(kind).map_err(ServeError::io("catch signals"));
        Ok(Self {
            interrupt: caught(SignalKind::interrupt())?,
            terminate: caught(SignalKind::terminate())?,
            hang_up: caught(SignalKind::hangup())?,
        })
    }

    /// Obeys signals, and tells systemd how the controller is, until it ends.
    pub(super) async fn run(mut self, controller: Arc<Controller>) -> Result<(), ServeError> {
        let mut views = controller.views();
        tokio::select! {
            _ = views.changed() => {}
            () = sleep(FIRST_LOOK) => {}
            () = controller.stopped() => return Ok(()),
        }
        tell(&[NotifyState::Ready]);
        tracing::info!(pin_root = %controller.paths().pin_root.display(), "the controller is ready");
        // One at a time. It may wait for a file system that does not respond, and nothing here waits for it.
        let mut reload: Option<JoinHandle<()>> = None;
        let mut alive = interval(watchdog().unwrap_or(Duration::from_secs(3600)));
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => break,
                _ = self.terminate.recv() => break,
                () = controller.stopped() => break,
                _ = self.hang_up.recv() => controller.ask_to_reload(),
                () = controller.asked_to_reload(), if reload.is_none() => {
                    if let Ok(began) = NotifyState::monotonic_usec_now() {
                        tell(&[NotifyState::Reloading, began]);
                    }
                    let reloading = controller.clone();
                    reload = Some(tokio::spawn(async move { reloading.reload().await }));
                }
                _ = ended(&mut reload) => {
                    reload = None;
                    tell(&[NotifyState::Ready]);
                }
                // This task runs only if the runtime's threads do.
                _ = alive.tick() => tell(&[NotifyState::Watchdog]),
            }
        }
        tell(&[NotifyState::Stopping]);
        tracing::info!("the controller ends; the data path stays as it is");
        Ok(())
    }
}

/// Waits for the end of a task; for ever, if there is none.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => _ = task.await,
        None => std::future::pending().await,
    }
}

/// How often systemd wants a sign of life; `None` if it does not. Half of its patience.
fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

/// Without systemd there is nobody to tell.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd was not told: {error}");
    }
}
