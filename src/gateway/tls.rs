//! What visitors' connections are encrypted by.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::ResolvesServerCert;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificates::{ACME_TLS, Certificates, Files, Issued};
use crate::read_ahead::ReadAhead;

/// What a connection that is encrypted begins with: a handshake's record.
const HANDSHAKE: u8 = 0x16;

/// Why there can be no encryption.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub(super) String);

/// What connections are encrypted by: a certificate and its key from two files,
/// certificates that come while the server runs, or both. Clones are handles to the same.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    certificates: Arc<Certificates>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.certificates).finish()
    }
}

/// How a visitor begins.
pub(super) enum Greeted {
    /// Encrypted.
    Tls(Box<TlsStream<ReadAhead<TcpStream>>>),
    /// In the clear. Nothing has been read.
    Plain(TcpStream),
}

impl Tls {
    /// By the certificate, with all that leads up to its root, and the key in these
    /// files, both PEM.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not belong together.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        Self::with(Some((certificate, key)), None)
    }

    /// By these files, if there are any, for who does not name a host that there is a
    /// certificate `issued` for.
    ///
    /// # Errors
    /// When a file cannot be read, or the two do not belong together.
    pub fn with(files: Option<(&Path, &Path)>, issued: Option<Issued>) -> Result<Self, TlsError> {
        let files = files.map(|(certificate, key)| Files::open(certificate, key));
        let files = files.transpose()?;
        let mut protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if issued.is_some() {
            protocols.push(ACME_TLS.to_vec());
        }
        let certificates = Arc::new(Certificates { files, issued });
        let failed = |error: rustls::Error| TlsError(format!("TLS cannot be had: {error}"));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols;
        config.ticketer = Ticketer::new().map_err(failed)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self {
            acceptor,
            certificates,
        })
    }

    /// Read the files again each time that they change, looking `every` so often. What
    /// cannot be read is said in the log, and what was read before goes on.
    pub async fn keep_fresh(self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let certificates = Arc::clone(&self.certificates);
            let refresh = move || {
                certificates
                    .files
                    .as_ref()
                    .map_or(Ok(false), Files::refresh)
            };
            let read = tokio::task::spawn_blocking(refresh).await;
            match read {
                Ok(Ok(true)) => tracing::info!("the new certificate is in use"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::error!(
                        "the certificate was not renewed, the old one goes on: {error}"
                    );
                }
                Err(error) => tracing::error!("the certificate could not be looked at: {error}"),
            }
        }
    }

    /// See how a visitor begins, and shake hands. None if nothing comes of it within
    /// `limit`, or nothing was to come of it.
    pub(super) async fn greet(&self, stream: TcpStream, limit: Duration) -> Option<Greeted> {
        let greet = async {
            let mut first = [0];
            let there = stream.peek(&mut first).await.ok()?;
            if there == 0 {
                return None;
            }
            if first != [HANDSHAKE] {
                return Some(Greeted::Plain(stream));
            }
            let mut shaken = self.acceptor.accept(ReadAhead::new(stream)).await.ok()?;
            if shaken.get_ref().1.alpn_protocol() == Some(ACME_TLS) {
                // The certificate is all that was to be seen.
                let _ = shaken.shutdown().await;
                return None;
            }
            Some(Greeted::Tls(Box::new(shaken)))
        };
        tokio::time::timeout(limit, greet).await.ok()?
    }
}
