//! How many changes there were since the controller has started.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::broadcast::error::RecvError;

use crate::serve::{controller::Controller, event::Event};

/// The most kinds of changes that are counted: deployments may come and go.
const MOST: usize = 10_000;

/// Deployment, action and result.
pub(super) type Kind = (String, String, &'static str);

/// Changes by kind.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<Kind, u64>>);

impl Counts {
    /// Counts what was recorded, whoever has done it.
    pub(super) async fn follow(&self, controller: &Controller) {
        let mut events = controller.events();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = controller.stopped() => return,
            };
            match event.as_deref() {
                Ok(Event::Switch(change) | Event::Revert(change) | Event::Recorded(change)) => {
                    if !change.deployment.is_empty() {
                        self.add(&change.deployment, change.action.name(), "done");
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    pub(super) fn add(&self, deployment: &str, action: &str, result: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = (deployment.to_owned(), action.to_owned(), result);
        if counts.len() < MOST || counts.contains_key(&kind) {
            *counts.entry(kind).or_default() += 1;
        }
    }

    pub(super) fn all(&self) -> BTreeMap<Kind, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
