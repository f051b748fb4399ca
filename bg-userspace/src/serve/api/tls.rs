//! TLS for connections over TCP.

use std::{fs, future::pending, io, path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::sync::watch;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use crate::{config::model::Tls, serve::error::ServeError};

/// What a server needs, and the names in its certificate.
#[derive(Clone, Debug)]
pub(super) struct Identified {
    pub(super) config: Arc<ServerConfig>,
    pub(super) names: Vec<String>,
    /// Judges the certificates of clients, if they may have some.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Identified {
    /// Reads the certificates.
    pub(super) fn load(tls: &Tls) -> Result<Self, ServeError> {
        let invalid = |path: &Path, why: String| {
            ServeError::io(format!("use {}", path.display()))(io::Error::new(io::ErrorKind::InvalidData, why))
        };
        let pem = |path: &Path| fs::read(path).map_err(ServeError::io(format!("read {}", path.display())));
        let certificates = |path: &Path| {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem(path)?).collect();
            match all {
                Ok(all) if !all.is_empty() => Ok(all),
                Ok(_) => Err(invalid(path, "it has no certificate in PEM form".to_owned())),
                Err(error) => Err(invalid(path, error.to_string())),
            }
        };
        let chain = certificates(&tls.certificate)?;
        let names = names_of(&chain[0]);
        let key =
            PrivateKeyDer::from_pem_slice(&pem(&tls.key)?).map_err(|error| invalid(&tls.key, error.to_string()))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| invalid(&tls.certificate, error.to_string()))?;
        let clients = match &tls.client_ca {
            None => None,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root).map_err(|error| invalid(path, error.to_string()))?;
                }
                // Who has none may have a token.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.allow_unauthenticated().build();
                Some(verifier.map_err(|error| invalid(path, error.to_string()))?)
            }
        };
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        };
        let config = builder.with_single_cert(chain, key);
        let mut config =
            config.map_err(|error| invalid(&tls.certificate, format!("{error} (its key is {})", tls.key.display())))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: config.into(), names, clients })
    }

    /// Whether a client with this certificate, and those that lead to its authority, would be let in now.
    fn trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let (Some(clients), Some((own, rest))) = (&self.clients, chain.split_first()) else { return false };
        clients.verify_client_cert(own, rest, UnixTime::now()).is_ok()
    }
}

/// Returns when the certificate of a client is no longer trusted, which a reload decides. Never without one.
pub(super) async fn distrusted(
    chain: Option<Vec<CertificateDer<'static>>>,
    mut in_force: watch::Receiver<Option<Identified>>,
) {
    if let Some(chain) = chain {
        while in_force.changed().await.is_ok() {
            if !in_force.borrow_and_update().as_ref().is_some_and(|identified| identified.trusts(&chain)) {
                return;
            }
        }
    }
    pending().await
}

/// The DNS names of a certificate.
fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    dns.collect()
}

/// The common name of a certificate, if it has one that can be a name.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    // Two names are no name.
    let is_plain = names.next().is_none() && !name.is_empty() && name.len() <= 64 && !name.contains(char::is_control);
    is_plain.then_some(name)
}
