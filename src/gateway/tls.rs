//! What visitors' connections are encrypted by.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::read_ahead::ReadAhead;

/// What a connection that is encrypted begins with: a handshake's record.
const HANDSHAKE: u8 = 0x16;

/// Why there can be no encryption.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// What connections are encrypted by: a certificate and its key, from two files. Clones
/// are handles to the same one.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    files: Arc<Files>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.files.certificate).finish()
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
        let provider = Arc::new(default_provider());
        let files = Arc::new(Files::open(certificate, key, &provider)?);
        let failed = |error: rustls::Error| TlsError(format!("TLS cannot be had: {error}"));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&files) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = Ticketer::new().map_err(failed)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { acceptor, files })
    }

    /// Read the files again each time that they change, looking `every` so often. What
    /// cannot be read is said in the log, and what was read before goes on.
    pub async fn keep_fresh(self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let files = Arc::clone(&self.files);
            let read = tokio::task::spawn_blocking(move || files.refresh()).await;
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
    /// `limit`.
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
            let shaken = self.acceptor.accept(ReadAhead::new(stream)).await;
            shaken.ok().map(|stream| Greeted::Tls(Box::new(stream)))
        };
        tokio::time::timeout(limit, greet).await.ok()?
    }
}

/// The two files, and what was last read from them.
#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    seen: Mutex<[Seen; 2]>,
    current: RwLock<Arc<CertifiedKey>>,
}

/// What tells a file from what it was before.
type Seen = Option<(u64, u64, i64, i64)>;

fn look(file: &Path) -> Seen {
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

impl Files {
    fn open(
        certificate: &Path,
        key: &Path,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let seen = [look(certificate), look(key)];
        let current = read(certificate, key, provider)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            provider: Arc::clone(provider),
            seen: Mutex::new(seen),
            current: RwLock::new(Arc::new(current)),
        })
    }

    /// Read them if they have changed. Says whether that was so.
    fn refresh(&self) -> Result<bool, TlsError> {
        let now = [look(&self.certificate), look(&self.key)];
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return Ok(false);
        }
        // Looked at before they are read: what changes while they are is read again.
        *seen = now;
        let fresh = read(&self.certificate, &self.key, &self.provider)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(fresh);
        Ok(true)
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

fn read(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let unreadable = |file: &Path, why: &dyn std::fmt::Display| {
        TlsError(format!("{} cannot be read: {why}", file.display()))
    };
    // Each failure to open is said in the system's own words.
    let contents = |file: &Path| fs::read(file).map_err(|why: io::Error| unreadable(file, &why));
    let chain = contents(certificate)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|why| unreadable(certificate, &why))?;
    if chain.is_empty() {
        return Err(unreadable(certificate, &"there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_slice(&contents(key)?);
    let secret = secret.map_err(|why| unreadable(key, &why))?;
    CertifiedKey::from_der(chain, secret, provider).map_err(|why| {
        let (certificate, key) = (certificate.display(), key.display());
        TlsError(format!("{certificate} and {key} do not go together: {why}"))
    })
}
