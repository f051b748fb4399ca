//! The client of HTTP requests to others: webhooks and gates.

use std::time::Duration;

use reqwest::{Client, redirect};

/// A client for requests to this URL, each of which ends after `patience`.
///
/// It follows no redirect: that would turn a POST into a GET, or ask somebody whom the configuration does not name.
///
/// # Errors
/// For `https`: this machine has no certificates of authorities. Only then are they read, since a machine may have none and not need any.
pub(crate) fn http_client(url: &str, patience: Duration) -> reqwest::Result<Client> {
    // An error is that the process has chosen one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let agent = concat!("bgctl/", env!("CARGO_PKG_VERSION"));
    let builder = Client::builder().timeout(patience).redirect(redirect::Policy::none()).user_agent(agent);
    let is_tls = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    if is_tls { builder } else { builder.tls_certs_only([]).https_only(false) }.build()
}
