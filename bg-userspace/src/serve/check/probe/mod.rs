//! One check of one backend.
//!
//! Each check opens a connection of its own from this host to the backend ([`door`]), at the port that packets are sent to unless another one is
//! configured. The time-out is for the whole check. The words of a failure are for people.

mod door;
mod exec;
mod grpc;
mod http;
mod tcp;
mod tls;
mod why;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use self::door::Door;
pub(super) use self::why::Why;
use super::{super::board::BackendKey, by_vip::Opener, target::Wanted};
use crate::config::model::{CheckKind, HealthCheck};

/// How a backend is checked.
#[derive(Debug)]
pub(super) struct Probe {
    check: HealthCheck,
    key: BackendKey,
    /// Where the connection goes.
    door: Door,
    way: Way,
}

/// What is prepared once for all checks.
#[derive(Debug)]
enum Way {
    Tcp,
    Http(http::Request),
    Grpc(grpc::Request),
    Exec(exec::Request),
}

impl Probe {
    pub(super) fn new(wanted: &Wanted, key: &BackendKey, opener: Arc<Opener>) -> Self {
        let check = &wanted.check;
        let backend = SocketAddr::new(key.address.ip(), check.port.unwrap_or_else(|| key.address.port()));
        let door = match &wanted.by_vip {
            Some(target) => Door::by_vip(backend, target.clone(), opener),
            None => Door::own(backend),
        };
        let to = door.asked();
        let way = match &check.kind {
            CheckKind::Tcp => Way::Tcp,
            CheckKind::Http(http) => Way::Http(http::Request::new(http, to)),
            CheckKind::Grpc { service, tls } => Way::Grpc(grpc::Request::new(service, *tls, to)),
            CheckKind::Exec { command } => Way::Exec(exec::Request::new(command, check.timeout)),
        };
        Self { check: check.clone(), key: key.clone(), door, way }
    }

    /// Checks once. Returns how long it took too.
    pub(super) async fn run(&self) -> (Result<(), Why>, Duration) {
        let (begin, device) = (Instant::now(), self.door.begin());
        let checked = tokio::time::timeout(self.check.timeout, self.ask()).await;
        let silent = |_| Err(Why::new(format_args!("no answer{} within {:?}", self.door.place(), self.check.timeout)));
        let checked = checked.unwrap_or_else(silent);
        let checked = checked.map_err(|why| self.door.trouble(device).unwrap_or(why));
        (checked, begin.elapsed())
    }

    async fn ask(&self) -> Result<(), Why> {
        match &self.way {
            Way::Tcp => tcp::check(&self.door).await,
            Way::Http(request) => request.check(&self.door).await,
            Way::Grpc(request) => request.check(&self.door).await,
            Way::Exec(request) => request.check(&self.key, self.door.backend()).await,
        }
    }
}
