//! The ways that lead a browser to a session.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;
use rcgen::{CertifiedKey, PublicKeyData, generate_simple_self_signed};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::far::{self, address};
use crate::harness::{ROOMY, Server, signal};

const DOMAIN: &str = "gpu.test";

/// A server whose sessions are reached like this.
pub struct Way {
    pub server: Server,
    pub scheme: &'static str,
    pub is_http2: bool,
    /// What the browser has to be told.
    pub flags: Vec<String>,
    _encrypted: Option<Encryption>,
    _far: Option<far::Way>,
}

/// A port of the session's own, in the clear.
pub async fn port() -> Way {
    Way {
        server: Server::start(ROOMY),
        scheme: "http://",
        is_http2: false,
        flags: Vec::new(),
        _encrypted: None,
        _far: None,
    }
}

/// A name under a domain, encrypted.
pub async fn name() -> Way {
    let encryption = Encryption::of(&[]);
    encrypted(encryption, ROOMY)
}

/// The same, and the app is on another host, whose agent calls home encrypted.
pub async fn tunnel() -> Way {
    let far = far::Way::new().await;
    let encryption = Encryption::of(&[far.subnet.ours().to_string()]);
    let trusted = format!(
        "server_certificate = \"{}\"\n",
        encryption.certificate.display()
    );
    let mut way = encrypted(encryption, &far.config("https", &trusted));
    far.relay.lead_to(address(&way.server.api.url));
    way._far = Some(far);
    way
}

fn encrypted(encryption: Encryption, config: &str) -> Way {
    let file = |path: &Path| path.display().to_string();
    let (certificate, key) = (file(&encryption.certificate), file(&encryption.key));
    let more = [
        "--domain",
        DOMAIN,
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &key,
    ];
    let data = encryption.dir.path().join("data");
    Way {
        server: Server::spawn(&data, config, "127.0.0.1:0", &more),
        scheme: "https://",
        is_http2: true,
        flags: vec![format!(
            "--ignore-certificate-errors-spki-list={}",
            encryption.fingerprint
        )],
        _encrypted: Some(encryption),
        _far: None,
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        for agent in self.server.agents() {
            signal(agent, Signal::SIGKILL);
        }
    }
}

/// What is encrypted with.
struct Encryption {
    dir: TempDir,
    certificate: PathBuf,
    key: PathBuf,
    /// By which the browser knows the key.
    fingerprint: String,
}

impl Encryption {
    /// For names under the domain, and for these hosts.
    fn of(more: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts = [&[format!("*.{DOMAIN}")], more].concat();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(hosts).unwrap();
        let certificate = dir.path().join("certificate.pem");
        let key = dir.path().join("key.pem");
        std::fs::write(&certificate, cert.pem()).unwrap();
        std::fs::write(&key, signing_key.serialize_pem()).unwrap();
        let digest = Sha256::digest(signing_key.subject_public_key_info());
        Self {
            dir,
            certificate,
            key,
            fingerprint: BASE64_STANDARD.encode(digest),
        }
    }
}
