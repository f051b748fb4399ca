//! The HTTP API: over a Unix socket, and, if that is configured, over TCP.
//!
//! A request passes [`guard`], which asks [`origin`] whether a browser has sent it on behalf of another page, and [`access`] whom it is from. Then its
//! handler answers: [`read`], [`events`], [`change`] or [`configuration`]. All of them work by the library's [`Instance`](crate::Instance), as the
//! commands do, and their JSON is that of the commands.
//!
//! Nobody can hold the controller up: connections are counted, headers, bodies, handshakes and writes have limits and deadlines, and
//! what may last has places of its own.

mod access;
mod change;
mod configuration;
mod events;
mod forbid;
mod frames;
mod guard;
mod hub;
mod listener;
mod looks;
mod meter;
mod options;
mod origin;
mod patient;
mod peer;
mod pool;
mod problem;
mod read;
mod repeats;
mod role;
mod shared;
mod socket;
mod strict;
mod tls;
mod tokens;
mod users;

use std::sync::Arc;

use axum::{
    Router, middleware,
    routing::{get, post},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use self::{access::Access, origin::Hosts, shared::Api, socket::Socket, tls::Identified};
use super::{controller::Controller, error::ServeError, metrics::Metrics};
use crate::config::model::Serve;

/// The API, which listens already.
pub(super) struct Server {
    api: Arc<Api>,
    serve: Serve,
    socket: Option<Socket>,
    listener: Option<TcpListener>,
    tls: watch::Sender<Option<Identified>>,
}

impl Server {
    /// Listens as configured.
    pub(super) async fn listen(controller: &Arc<Controller>, metrics: Arc<Metrics>) -> Result<Self, ServeError> {
        let config = controller.config();
        let serve = config.serve.clone().unwrap_or_default();
        let access = Access::load(&serve)?;
        let tls = serve.tls.as_ref().map(Identified::load).transpose()?;
        let socket = match Socket::listen(&serve.socket, access.group()) {
            Ok(socket) => Some(socket),
            // Nobody has asked for this path.
            Err(error) if config.serve.is_none() => {
                tracing::warn!("no API: {:#}", anyhow::Error::from(error));
                None
            }
            Err(error) => return Err(error),
        };
        let listener = match serve.listen {
            None => None,
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(ServeError::io(format!("listen on {address}, as [serve] says")))?,
            ),
        };
        let api = Arc::new(Api::new(controller.clone(), metrics, access, hosts(tls.as_ref())));
        Ok(Self { api, serve, socket, listener, tls: watch::Sender::new(tls) })
    }

    /// Answers requests until the controller ends.
    pub(super) async fn run(self) -> Result<(), ServeError> {
        let Self { api, serve, socket, listener, tls } = self;
        let controller = api.controller.clone();
        let router = router(api.clone());
        let mut parts = JoinSet::new();
        let socket = socket.map(Arc::new);
        if let Some(socket) = socket.clone() {
            let (controller, router) = (controller.clone(), router.clone());
            tracing::info!(path = %serve.socket.display(), "the API is served on a Unix socket");
            parts.spawn(async move { listener::over_socket(controller, &socket.listener, router).await });
        }
        if let Some(listener) = listener {
            tracing::info!(address = ?serve.listen, tls = serve.tls.is_some(), "the API is served over TCP");
            parts.spawn(listener::over_tcp(controller.clone(), listener, tls.subscribe(), router));
        }
        let (hub, of_hub) = (api.clone(), controller.clone());
        parts.spawn(async move { hub.hub.run(&of_hub).await });
        parts.spawn(async move { reload(&api, serve, socket.as_deref(), &tls).await });
        while let Some(ended) = parts.join_next().await {
            ended.map_err(|error| ServeError::Part { why: error.to_string() })?;
        }
        Ok(())
    }
}

fn hosts(tls: Option<&Identified>) -> Hosts {
    Hosts::new(tls.map(|tls| tls.names.clone()).unwrap_or_default())
}

/// Reads tokens and certificates again with the configuration. What cannot be read stays as it was.
async fn reload(api: &Api, began: Serve, socket: Option<&Socket>, tls: &watch::Sender<Option<Identified>>) {
    let mut reloads = api.controller.reloads();
    loop {
        tokio::select! {
            changed = reloads.changed() => match changed {
                Ok(()) => {}
                Err(_) => return,
            },
            () = api.controller.stopped() => return,
        }
        let serve = api.controller.config().serve.clone().unwrap_or_default();
        if (&serve.socket, serve.listen, serve.tls.is_some()) != (&began.socket, began.listen, began.tls.is_some()) {
            tracing::warn!(
                "the addresses in [serve] have changed: that takes effect when the controller is started again"
            );
        }
        match Access::load(&serve) {
            Ok(access) => {
                // Without a socket of its own, what is at this path is another controller's.
                if let Some(socket) = socket
                    && let Err(error) = socket.give(access.group())
                {
                    tracing::error!("{} stays with its group: {error}", began.socket.display());
                }
                // Whoever listens to events has to say again who it is, but only if that may be another matter now.
                let is_other = api.access.send_if_modified(|present| {
                    let is_other = **present != access;
                    *present = Arc::new(access);
                    is_other
                });
                tracing::info!(is_other, "tokens and group were read again");
            }
            Err(error) => tracing::error!("those from before stay in force: {:#}", anyhow::Error::from(error)),
        }
        if let (Some(paths), Some(_)) = (&serve.tls, &began.tls) {
            match Identified::load(paths) {
                Ok(read) => {
                    api.hosts.send_replace(hosts(Some(&read)));
                    tls.send_replace(Some(read));
                }
                Err(error) => tracing::error!("the certificate from before stays: {:#}", anyhow::Error::from(error)),
            }
        }
    }
}

fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/healthz", get(read::health))
        .route("/metrics", get(read::metrics))
        .route("/openapi.json", get(read::openapi))
        .route("/v1/status", get(read::status))
        .route("/v1/deployments/{name}", get(read::deployment))
        .route("/v1/deployments/{name}/{verb}", post(change::change))
        .route("/v1/history", get(read::history))
        .route("/v1/flows", get(read::flows))
        .route("/v1/events", get(events::events))
        .route("/v1/apply", post(configuration::apply))
        .route("/v1/check", post(configuration::check))
        .route("/v1/plan", post(configuration::plan))
        .fallback(get(read::page_file))
        .layer(middleware::from_fn_with_state(api.clone(), guard::admit))
        .layer(middleware::from_fn(guard::finish))
        .with_state(api)
}
