//! Accepts connections, and answers the requests on them.

use std::{future::pending, io, sync::Arc, time::Duration};

use axum::Router;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::{
    patient::Patient,
    peer::Peer,
    pool::{Place, Pool},
    tls::{Identified, common_name, distrusted},
};
use crate::serve::controller::Controller;

/// How many connections a listener keeps.
const CONNECTIONS: usize = 256;
/// The longest header of a request.
const HEADER: usize = 16 << 10;
/// How long a client may take to send it, or to send another one on the same connection.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a handshake may take, and the search for the user at the other end.
const GREETING: Duration = Duration::from_secs(5);
/// How long answers that are being written may take when the controller ends.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Accepts connections over the Unix socket.
pub(super) async fn over_socket(controller: Arc<Controller>, listener: &UnixListener, router: Router) {
    let pool = Pool::new(CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = controller.stopped() => return,
        };
        let Some((stream, _)) = taken(accepted).await else { continue };
        let Some(place) = pool.admit() else { continue };
        let (controller, router) = (controller.clone(), router.clone());
        tokio::spawn(async move {
            let Ok(credentials) = stream.peer_cred() else { return };
            let peer = move || Peer::of_socket(credentials.uid(), credentials.gid());
            if let Some(peer) = known(peer).await {
                attend(controller, stream, peer, pending(), place, router).await;
            }
        });
    }
}

/// Accepts connections over TCP.
pub(super) async fn over_tcp(
    controller: Arc<Controller>,
    listener: TcpListener,
    tls: watch::Receiver<Option<Identified>>,
    router: Router,
) {
    let pool = Pool::new(CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = controller.stopped() => return,
        };
        let Some((stream, from)) = taken(accepted).await else { continue };
        let Some(place) = pool.admit() else { continue };
        let _ = stream.set_nodelay(true);
        let Ok(to) = stream.local_addr() else { continue };
        let (controller, router) = (controller.clone(), router.clone());
        // A reload during the handshake is one after it.
        let mut in_force = tls.clone();
        let tls = in_force.borrow_and_update().as_ref().map(|tls| TlsAcceptor::from(tls.config.clone()));
        tokio::spawn(async move {
            let Some(tls) = tls else {
                if let Some(peer) = known(move || Peer::of_tcp(from, to, None)).await {
                    attend(controller, stream, peer, pending(), place, router).await;
                }
                return;
            };
            let greeted = tokio::select! {
                greeted = timeout(GREETING, tls.accept(stream)) => greeted,
                () = place.closed() => return,
            };
            let stream = match greeted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%from, "no TLS: {error}"),
                Err(_) => return,
            };
            let certificates = stream.get_ref().1.peer_certificates();
            let name = certificates.and_then(|chain| common_name(chain.first()?));
            let chain = certificates.map(<[CertificateDer<'static>]>::to_vec);
            if let Some(peer) = known(move || Peer::of_tcp(from, to, name)).await {
                attend(controller, stream, peer, distrusted(chain, in_force), place, router).await;
            }
        });
    }
}

/// An accepted connection. After an error that concerns none, such as too many open files, this waits a little.
async fn taken<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::warn!("cannot accept a connection: {error}");
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Who is at the other end. `None` if that is not known in time.
async fn known(peer: impl FnOnce() -> Peer + Send + 'static) -> Option<Peer> {
    timeout(GREETING, tokio::task::spawn_blocking(peer)).await.ok()?.ok()
}

/// Answers the requests on a connection until it ends, or its certificate is no longer trusted.
async fn attend<S>(
    controller: Arc<Controller>,
    stream: S,
    peer: Peer,
    distrusted: impl Future<Output = ()>,
    place: Place,
    router: Router,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Arc::new(peer);
    let service = service_fn(|mut request: Request<Incoming>| {
        let (busy, mut router) = (place.busy(), router.clone());
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(place.clone());
        async move {
            let response = router.call(request).await;
            drop(busy);
            response
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE).max_buf_size(HEADER);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(Patient::new(stream)), service));
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!("a connection has ended: {error}");
            }
        }
        () = place.closed() => {}
        () = distrusted => tracing::info!("a connection has ended: its client's certificate is no longer trusted"),
        () = controller.stopped() => {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(LAST_WORDS, connection).await;
        }
    }
}
