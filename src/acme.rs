//! Certificates by ACME (RFC 8555), each for one name: asked for, proven by TLS-ALPN-01
//! (RFC 8737) on the server's own listener, kept in the data directory, renewed.
//!
//! Nothing that goes wrong here stops the server: it is said in the log and tried again,
//! and meanwhile the certificate that was there before is shown.

mod certificate;
mod https;
mod kept;
mod order;

use std::path::{Path, PathBuf};
use std::time::Duration;

use dwell_core::time::Timestamp;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::clock;
use crate::data_dir::DataDir;
use crate::gateway::Issued;
use certificate::{Certificate, Life};
use kept::Kept;

/// Where certificates are asked for when nobody says otherwise.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// The clock may be set while a long time is waited for.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(600);

/// What is asked for, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The names, in lower case; there is one at least.
    pub names: Vec<String>,
    /// Whom the authority may write to.
    pub email: Option<String>,
    /// The authority's directory.
    pub directory: String,
    /// Whose certificates the authority's own server is known by; none, and it is one
    /// that the web trusts.
    pub authority: Option<PathBuf>,
    /// How long is waited between tries that fail.
    pub patience: Patience,
}

/// How long is waited after a failure: first so long, then twice as long each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// After the first.
    pub first: Duration,
    /// At most.
    pub most: Duration,
}

impl Default for Patience {
    /// Let's Encrypt bears five failures an hour for one name.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(60),
            most: Duration::from_secs(6 * 3_600),
        }
    }
}

/// Why there is no certificate: a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct AcmeError(String);

/// Sees to it that there is a certificate for each name.
pub struct Renewal {
    acme: Acme,
    kept: Kept,
    issued: Issued,
    /// One at a time, which is kind to the authority.
    asking: Mutex<()>,
}

impl Renewal {
    /// What is kept in the data directory is put into `issued` at once, and what comes
    /// from [`Renewal::go_on`] later.
    #[must_use]
    pub fn new(acme: Acme, data_dir: &DataDir, issued: Issued) -> Self {
        let kept = Kept::new(data_dir.acme(), &acme.directory);
        let renewal = Self {
            acme,
            kept,
            issued,
            asking: Mutex::default(),
        };
        for name in &renewal.acme.names {
            match renewal.kept.certificate(name) {
                Ok(Some(certificate)) => renewal.issued.put(name, certificate.certified),
                Ok(None) => {}
                Err(error) => tracing::error!("the kept certificate is of no use: {error}"),
            }
        }
        renewal
    }

    /// Ask for what is missing, and renew what is there in time. Ends when dropped.
    pub async fn go_on(self) {
        let renewal = std::sync::Arc::new(self);
        let mut tasks = JoinSet::new();
        for name in renewal.acme.names.clone() {
            let renewal = std::sync::Arc::clone(&renewal);
            tasks.spawn(async move { renewal.keep_one(&name).await });
        }
        tasks.join_all().await;
    }

    async fn keep_one(&self, name: &str) {
        let kept = self.kept.certificate(name).ok().flatten();
        let mut life = kept.map(|certificate| certificate.life);
        let mut wait = self.acme.patience.first;
        loop {
            if let Some(life) = life {
                sleep_until(life.renew_at()).await;
            }
            match self.obtain(name).await {
                Ok(new) => {
                    tracing::info!("there is a new certificate for {name}, {new}");
                    life = Some(new);
                    wait = self.acme.patience.first;
                }
                Err(error) => {
                    let meanwhile = match life {
                        None => "HTTPS has no certificate for it until then".to_owned(),
                        Some(life) if life.is_over(clock::wall()) => {
                            "the one there is has expired".to_owned()
                        }
                        Some(life) => format!("the one there is goes on, {life}"),
                    };
                    tracing::error!(
                        "no certificate for {name}: {error}; trying again in {wait:?}, {meanwhile}"
                    );
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(self.acme.patience.most);
                }
            }
        }
    }

    /// One try.
    async fn obtain(&self, name: &str) -> Result<Life, AcmeError> {
        let _asking = self.asking.lock().await;
        tracing::info!(
            "asking {} for a certificate for {name}",
            self.acme.directory
        );
        let account = order::account(&self.acme, &self.kept).await?;
        let pem = match order::certificate(&account, name, &self.issued).await {
            Ok(pem) => pem,
            Err(error) => {
                if error.is_account_unknown() {
                    self.kept.forget_account();
                }
                return Err(AcmeError::from(error));
            }
        };
        let Certificate { certified, life } = Certificate::from_pem(pem.as_bytes())?;
        // It is good though it cannot be kept.
        if let Err(error) = self.kept.keep_certificate(name, &pem) {
            tracing::error!("the new certificate for {name} goes with this server: {error}");
        }
        self.issued.put(name, certified);
        Ok(life)
    }
}

async fn sleep_until(then: Timestamp) {
    loop {
        let left = u64::try_from(then.0 - clock::wall().0).unwrap_or(0);
        if left == 0 {
            return;
        }
        let left = Duration::from_millis(left);
        tokio::time::sleep(left.min(LOOK_AT_CLOCK_EVERY)).await;
    }
}

/// A name that a certificate can be had for: no wildcard, no address.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_name(text: &str) -> Result<String, String> {
    if text.starts_with("*.") {
        return Err(format!(
            "\"{text}\" is a wildcard, which ACME gives only to who proves it in DNS; get it \
             elsewhere and name its files with --tls-certificate and --tls-key"
        ));
    }
    let name = text.to_ascii_lowercase();
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    if is_address || !crate::session_urls::is_domain_name(&name) {
        return Err(format!(
            "\"{text}\" is no name of a host; write it like gpu.example.com"
        ));
    }
    Ok(name)
}

/// An authority's directory.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_directory(text: &str) -> Result<String, String> {
    let uri = text.parse::<hyper::Uri>().ok();
    match uri.filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some()) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!(
            "\"{text}\" is no ACME directory; write it like {LETS_ENCRYPT}"
        )),
    }
}

/// An address to write to.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_email(text: &str) -> Result<String, String> {
    let is_one = text.split_once('@').is_some_and(|(user, host)| {
        !user.is_empty() && crate::session_urls::is_domain_name(&host.to_ascii_lowercase())
    });
    if !is_one || text.contains(|it: char| it.is_whitespace() || it.is_control() || it == ',') {
        return Err(format!("\"{text}\" is no e-mail address"));
    }
    Ok(text.to_owned())
}

/// Whether the file that the authority is known by can be read.
///
/// # Errors
/// What is wrong with it.
pub fn check_authority(file: &Path) -> Result<(), String> {
    crate::trust::client_config(Some(file)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_a_name_and_for_nothing_else() {
        assert_eq!(parse_name("GPU.example.com").unwrap(), "gpu.example.com");
        assert!(
            parse_name("*.example.com")
                .unwrap_err()
                .contains("wildcard")
        );
        for text in [
            "",
            "10.0.0.1",
            "::1",
            "[::1]",
            "a..b",
            "https://a.b",
            "a.b:443",
        ] {
            assert!(parse_name(text).is_err(), "{text}");
        }
        assert!(parse_directory(LETS_ENCRYPT).is_ok());
        for text in ["", "acme.test", "http://acme.test/directory", "https://"] {
            assert!(parse_directory(text).is_err(), "{text}");
        }
        assert!(parse_email("ada@example.com").is_ok());
        for text in ["", "ada", "@example.com", "a b@c.d", "a@b, c@d", "ada@"] {
            assert!(parse_email(text).is_err(), "{text}");
        }
    }
}
