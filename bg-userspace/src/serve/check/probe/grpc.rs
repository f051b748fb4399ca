//! What `grpc.health.v1.Health/Check` answers.

use std::{
    future::{Ready, ready},
    io,
    net::SocketAddr,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    codegen::Service,
    transport::{Endpoint, Uri},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{door::Door, tls::Tls, why::Why};

/// The request.
#[derive(Debug)]
pub(super) struct Request {
    service: String,
    tls: Option<Tls>,
}

impl Request {
    pub(super) fn new(service: &str, tls: bool, to: SocketAddr) -> Self {
        Self { service: service.to_owned(), tls: tls.then(|| Tls::new(None, to.ip(), b"h2")) }
    }

    pub(super) async fn check(&self, door: &Door) -> Result<(), Why> {
        let to = door.asked();
        let (stream, _registered) = door.connect().await?;
        match &self.tls {
            Some(tls) => self.ask(to, tls.open(stream).await?).await,
            None => self.ask(to, stream).await,
        }
    }

    async fn ask(
        &self,
        to: SocketAddr,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<(), Why> {
        let endpoint = Endpoint::from_shared(format!("http://{to}"));
        let endpoint = endpoint.map_err(|error| Why::new(format_args!("no such address: {error}")))?;
        // The connection is there already, and there is no other.
        let channel = endpoint.connect_with_connector(Once(Some(TokioIo::new(stream)))).await;
        let channel = channel.map_err(|error| Why::new(format_args!("no HTTP/2 connection: {error}")))?;
        let request = HealthCheckRequest { service: self.service.clone() };
        let answer = HealthClient::new(channel).check(request).await;
        let answer =
            answer.map_err(|status| Why::new(format_args!("no answer: {:?}: {}", status.code(), status.message())))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(Why::new(format_args!("answered with {}", other.as_str_name()))),
        }
    }
}

/// Gives a connection that is open already, once.
struct Once<T>(Option<T>);

impl<T> Service<Uri> for Once<T> {
    type Response = T;
    type Error = io::Error;
    type Future = Ready<io::Result<T>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::Error::other("the connection was lost")))
    }
}
