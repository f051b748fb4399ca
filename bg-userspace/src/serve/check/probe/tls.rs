//! TLS without verification of the certificate.
//!
//! A check asks whether a backend answers. Backends are configured by address, and their certificates name the host that clients ask for,
//! or are of a private authority: clients verify them, not this. The signatures of the handshake are verified.

use std::{net::IpAddr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::why::Why;

/// How to open TLS on a connection.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Asks for this host, or for none if it is an address (RFC 6066, section 3), to speak this protocol.
    pub(super) fn new(host: Option<&str>, address: IpAddr, protocol: &[u8]) -> Self {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let mut config = config
            .expect("ring supports both versions of TLS")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        // A resumed session would not show whether the key is still there.
        config.resumption = rustls::client::Resumption::disabled();
        let named = host.map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name).to_owned());
        let name = named.and_then(|host| ServerName::try_from(host).ok()).unwrap_or_else(|| address.into());
        Self { connector: TlsConnector::from(Arc::new(config)), name }
    }

    pub(super) async fn open(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Why> {
        let opened = self.connector.connect(self.name.clone(), stream).await;
        opened.map_err(|error| Why::new(format_args!("no TLS: {error}")))
    }
}

/// Takes any certificate whose key the server has.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
