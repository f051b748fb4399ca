//! What the requests share.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use super::{access::Access, hub::Hub, looks::Looks, meter::Meter, origin::Hosts, repeats::Repeats};
use crate::serve::{controller::Controller, metrics::Metrics};

/// How many clients may listen to events.
const STREAMS: usize = 64;
/// How many requests may wait for flows to end.
const WAITS: usize = 64;
/// How many requests may read what may be large.
const READERS: usize = 2;

/// What the requests share.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) controller: Arc<Controller>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) looks: Looks,
    pub(super) hub: Hub,
    pub(super) repeats: Arc<Repeats>,
    pub(super) access: watch::Sender<Arc<Access>>,
    pub(super) hosts: watch::Sender<Hosts>,
    /// Of requests from nobody who is known. These must not keep the others from being told.
    pub(super) strangers: Meter,
    /// Of requests whose sender's role is not enough.
    pub(super) denials: Meter,
    pub(super) streams: Arc<Semaphore>,
    pub(super) waits: Semaphore,
    pub(super) readers: Semaphore,
}

impl Api {
    pub(super) fn new(controller: Arc<Controller>, metrics: Arc<Metrics>, access: Access, hosts: Hosts) -> Self {
        Self {
            controller,
            metrics,
            looks: Looks::default(),
            hub: Hub::default(),
            repeats: Arc::default(),
            access: watch::Sender::new(Arc::new(access)),
            hosts: watch::Sender::new(hosts),
            strangers: Meter::default(),
            denials: Meter::default(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            waits: Semaphore::new(WAITS),
            readers: Semaphore::new(READERS),
        }
    }
}
