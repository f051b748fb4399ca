//! Numbers for Prometheus.
//!
//! What is exported of a deployment, a service or a backend has labels of the configuration, so there are as many series as that has parts. A scrape looks
//! at the instance at most once a second, however many there are.

mod counts;
mod numbers;

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use prometheus_client::{encoding::prometheus_text, registry::Registry};
use tokio::{sync::Mutex, time::Instant};

use self::{counts::Counts, numbers::Numbers};
use super::{controller::Controller, error::ServeError};

pub(super) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// How old the numbers may be.
const FRESH: Duration = Duration::from_secs(1);

/// The numbers.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    counts: Counts,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Metrics {
    /// Counts changes until the controller ends.
    pub(super) async fn run(self: Arc<Self>, controller: Arc<Controller>) -> Result<(), ServeError> {
        self.counts.follow(&controller).await;
        Ok(())
    }

    /// Counts a request that was not done.
    pub(super) fn refused(&self, deployment: &str, action: &str, result: &'static str) {
        self.counts.add(deployment, action, result);
    }

    /// All of them, as text.
    pub(super) async fn text(&self, controller: &Arc<Controller>) -> Bytes {
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(began, _)| began.elapsed() < FRESH) {
            return text.clone();
        }
        let began = Instant::now();
        let look = controller.on_instance(None, |instance| Ok((instance.status(None)?, instance.flow_tables()?))).await;
        let look = look.inspect_err(|error| tracing::debug!("there are no numbers of the instance: {error}")).ok();
        let (changes, tees) = (self.counts.all(), controller.tees().now());
        let (checks, troubles) = (controller.health().snapshot(), controller.health().troubles());
        let numbers = Numbers { at: jiff::Timestamp::now(), look, changes, tees, checks, troubles };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(numbers));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).expect("a string takes any text");
        last.insert((began, text.into())).1.clone()
    }
}
