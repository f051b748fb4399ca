//! A real gRPC health server.

use anyhow::Result;
use bg_tests::{Backend, Stop, Worker};
use std::{net::SocketAddr, sync::mpsc, time::Duration};
use tokio::sync::watch;
use tonic_health::ServingStatus;

/// The service whose health it knows.
pub(crate) const SERVICE: &str = "shop.Orders";

pub(crate) struct Grpc {
    serves: watch::Sender<bool>,
    _worker: Worker,
}

impl Grpc {
    pub(crate) fn start(backend: &Backend, address: SocketAddr) -> Result<Self> {
        let (serves, mut told) = watch::channel(true);
        let (tell, is_up) = mpsc::channel();
        let worker = Worker::spawn(&backend.namespace, async move |mut stop: Stop| {
            let (reporter, service) = tonic_health::server::health_reporter();
            reporter.set_service_status(SERVICE, ServingStatus::Serving).await;
            let listener = tokio::net::TcpListener::bind(address).await?;
            let _ = tell.send(());
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
            let follow = async {
                while told.changed().await.is_ok() {
                    let status = if *told.borrow() { ServingStatus::Serving } else { ServingStatus::NotServing };
                    reporter.set_service_status(SERVICE, status).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                served = server => served?,
                () = follow => {}
                () = stop.wait() => {}
            }
            Ok(())
        })?;
        is_up.recv_timeout(Duration::from_secs(5))?;
        Ok(Self { serves, _worker: worker })
    }

    pub(crate) fn set_serving(&self, serves: bool) {
        self.serves.send_replace(serves);
    }
}
