//! The controller, `bgctl serve`.
//!
//! The data path needs no process. The people around it do: this one watches the instance and tells what it sees. If it ends or is
//! killed, packets do not notice, and its successor learns everything from the pinned maps again.
//!
//! Its parts are tasks that share a [`Controller`]. The [`observer`] looks at the instance, and the [`follower`] at its history; [`check`] looks at the backends, and
//! [`failover`] acts on what it finds. Everything
//! that may block, which is each call of [`Instance`](crate::Instance), runs in threads of its own
//! ([`Controller::on_instance`]), so that no part waits for another one.

mod api;
mod board;
mod check;
mod controller;
mod error;
mod event;
mod failover;
mod follower;
mod life;
mod log;
mod metrics;
mod notify;
mod observer;
mod options;
mod page;
mod tee;
mod view;

use std::{sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};

use self::{
    api::Server,
    controller::{Controller, Source},
    life::Life,
    metrics::Metrics,
};
pub use self::{error::ServeError, log::LogFormat, options::ServeOptions};
use crate::{Error, Paths, Refusal, probe};

/// How long the end waits for all parts. One may wait for a file system that does not respond.
const LAST: Duration = Duration::from_secs(5);

/// Runs the controller until a signal ends it, which is a success.
///
/// # Errors
/// The configuration cannot be read, another controller runs on the instance, an address cannot be listened on, or a part has failed.
pub fn run(paths: &Paths, options: &ServeOptions) -> Result<(), ServeError> {
    log::begin(options.log_format, options.verbose)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(ServeError::io("start threads"))?;
    let ended = runtime.block_on(async {
        // Before anything that may take long, so that no signal but SIGKILL kills it.
        let life = Life::begin()?;
        let source = Source::new(options);
        let config = source.first()?;
        serve(Controller::new(paths, source, config), life).await
    });
    // A call that waits for a file system which does not respond must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

async fn serve(controller: Arc<Controller>, life: Life) -> Result<(), ServeError> {
    no_other(&controller).await?;
    if let Some(why) = probe::obstacle() {
        tracing::warn!(
            "{why}: connections that say nothing are reset only when they speak again, and a drain that resets fails. Grant CAP_NET_RAW, and AF_INET and AF_INET6"
        );
    }
    let metrics = Arc::new(Metrics::default());
    let server = Server::listen(&controller, metrics.clone()).await?;
    let mut parts = JoinSet::new();
    parts.spawn(observer::run(controller.clone()));
    parts.spawn(follower::run(controller.clone()));
    parts.spawn(check::run(controller.clone()));
    parts.spawn(failover::run(controller.clone()));
    parts.spawn(metrics.run(controller.clone()));
    parts.spawn(server.run());
    parts.spawn(notify::run(controller.clone()));
    parts.spawn(tee::run(controller.clone()));
    parts.spawn(life.run(controller.clone()));
    // The first part that ends ends the others: either it is time, or the controller would not be complete without it.
    let result = |part: Result<_, JoinError>| {
        part.map_err(|error| ServeError::Part { why: error.to_string() }).and_then(|result| result)
    };
    let mut ended = parts.join_next().await.map_or(Ok(()), result);
    controller.stop();
    let others = async {
        while let Some(part) = parts.join_next().await {
            ended = std::mem::replace(&mut ended, Ok(())).and(result(part));
        }
    };
    if timeout(LAST, others).await.is_err() {
        tracing::warn!("parts of the controller have not ended in {LAST:?}, and are left behind");
    }
    ended
}

/// Refuses to run beside another controller of the instance, or in another network namespace than it is. That there is none yet is no reason not to run.
async fn no_other(controller: &Arc<Controller>) -> Result<(), ServeError> {
    let opening = controller.clone();
    let opened = tokio::task::spawn_blocking(move || opening.instance().map(|_| ())).await;
    match opened.map_err(|error| ServeError::Part { why: error.to_string() })? {
        Err(error @ (Error::Refused(Refusal::SecondController { .. }) | Error::OtherNamespace { .. })) => {
            Err(error.into())
        }
        _ => Ok(()),
    }
}
