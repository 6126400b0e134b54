//! Which certificate a visitor is shown.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::tls::TlsError;

/// The protocol of who comes to see that a name is this server's (RFC 8737).
pub(super) const ACME_TLS: &[u8] = b"acme-tls/1";

/// All that there are.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) files: Option<Files>,
    pub(super) issued: Option<Issued>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let Some(issued) = &self.issued else {
            return self.files.as_ref().map(Files::current);
        };
        // RFC 8737: nothing else is offered beside it.
        let mut protocols = hello.alpn().into_iter().flatten();
        if protocols.next() == Some(ACME_TLS) && protocols.next().is_none() {
            return issued.proof(name?);
        }
        // Who names no host, or one that is unknown, sees for whom this is instead.
        name.and_then(|name| issued.of(name))
            .or_else(|| self.files.as_ref().map(Files::current))
            .or_else(|| issued.any())
    }
}

/// Certificates for single names that come while the server runs. Clones are handles to
/// the same ones.
#[derive(Clone, Debug, Default)]
pub struct Issued(Arc<RwLock<Held>>);

#[derive(Debug, Default)]
struct Held {
    certificates: BTreeMap<String, Arc<CertifiedKey>>,
    proofs: HashMap<String, Arc<CertifiedKey>>,
}

impl Issued {
    /// Show this one to who asks for `name`, in place of the one before.
    pub fn put(&self, name: &str, certificate: CertifiedKey) {
        let certificate = Arc::new(certificate);
        self.with(|held| held.certificates.insert(name.to_owned(), certificate));
    }

    /// Show this one to who comes to see that `name` is this server's, until what is
    /// returned is dropped.
    #[must_use]
    pub fn prove(&self, name: &str, certificate: CertifiedKey) -> Proving {
        let certificate = Arc::new(certificate);
        self.with(|held| held.proofs.insert(name.to_owned(), certificate));
        Proving {
            to: self.clone(),
            name: name.to_owned(),
        }
    }

    fn of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.with(|held| held.certificates.get(name).cloned())
    }

    fn any(&self) -> Option<Arc<CertifiedKey>> {
        self.with(|held| held.certificates.values().next().cloned())
    }

    fn proof(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.with(|held| held.proofs.get(name).cloned())
    }

    fn with<T>(&self, see: impl FnOnce(&mut Held) -> T) -> T {
        see(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A name is being proven.
#[derive(Debug)]
pub struct Proving {
    to: Issued,
    name: String,
}

impl Drop for Proving {
    fn drop(&mut self) {
        self.to.with(|held| held.proofs.remove(&self.name));
    }
}

/// The two files, and what was last read from them.
#[derive(Debug)]
pub(super) struct Files {
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
    pub(super) fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(default_provider());
        let seen = [look(certificate), look(key)];
        let current = read(certificate, key, &provider)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            provider,
            seen: Mutex::new(seen),
            current: RwLock::new(Arc::new(current)),
        })
    }

    /// Read them if they have changed. Says whether that was so.
    pub(super) fn refresh(&self) -> Result<bool, TlsError> {
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

    fn current(&self) -> Arc<CertifiedKey> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
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
