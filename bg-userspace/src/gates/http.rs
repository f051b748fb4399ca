//! Gates that ask by HTTP.

use std::{
    error::Error as _,
    future::Future,
    time::{Duration, Instant},
};

use reqwest::{Client, RequestBuilder, Response, redirect::Policy};

use super::failure::Failure;
use crate::config::StatusRanges;

/// Runs a request until the deadline, or until its answer no longer matters.
pub(super) fn within(
    deadline: Instant,
    is_moot: &dyn Fn() -> bool,
    request: impl Future<Output = Result<(), String>>,
) -> Result<(), Failure> {
    const LOOK: Duration = Duration::from_millis(50);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Some(format!("it cannot be asked: {error}")))?;
    let outcome = runtime.block_on(async {
        let moot = async {
            while !is_moot() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            outcome = request => outcome.map_err(Some),
            () = tokio::time::sleep_until(deadline.into()) => Err(None),
            () = moot => Err(Some("it was not waited for, since the switch had been decided elsewhere".to_owned())),
        }
    });
    // A look-up of a name may go on, in a thread that nobody can end.
    runtime.shutdown_background();
    outcome
}

/// Whether a GET is answered as expected, by default with 200 to 299.
pub(super) async fn passes(url: &str, expect_status: Option<&StatusRanges>) -> Result<(), String> {
    let response = send(client()?.get(url)).await?;
    let status = response.status();
    let is_expected = expect_status.map_or(status.is_success(), |ranges| ranges.contains(status.as_u16()));
    if is_expected {
        return Ok(());
    }
    let location = response.headers().get("location").and_then(|location| location.to_str().ok());
    let location = location.map(|location| format!(" to {location}, which is not followed")).unwrap_or_default();
    Err(format!("it was answered with {status}{location}"))
}

/// A client that does what it is asked and no more: it follows no redirection and uses no proxy from the environment.
pub(super) fn client() -> Result<Client, String> {
    // If there is one already, it is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().redirect(Policy::none()).no_proxy().pool_max_idle_per_host(0);
    client.user_agent(concat!("bgctl/", env!("CARGO_PKG_VERSION"))).build().map_err(told)
}

pub(super) async fn send(request: RequestBuilder) -> Result<Response, String> {
    request.send().await.map_err(told)
}

/// An error and its causes, without the URL, which the gate's name has.
pub(super) fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
