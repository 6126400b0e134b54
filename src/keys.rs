//! Secrets: API keys as presented, looked up by hash; agents' secrets, derived.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use dwell_core::id::SessionId;
use dwell_core::key::{Key, KeyHash};
use dwell_core::owner::Principal;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// What every key of ours begins with, so that scanners know a leaked one.
pub const KEY_PREFIX: &str = "dwell_";

/// A new secret of 256 random bits, as its owner is shown it once.
///
/// # Errors
/// When the system has no randomness to give.
pub fn new_secret() -> Result<String, getrandom::Error> {
    let mut bits = [0_u8; 32];
    getrandom::fill(&mut bits)?;
    Ok(format!("{KEY_PREFIX}{}", hex(&bits)))
}

/// What a secret is stored and looked up as. Plain SHA-256 is enough: the secret is
/// random, not a password.
#[must_use]
pub fn hash(secret: &str) -> KeyHash {
    KeyHash(Sha256::digest(secret).into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a presented key is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// None was presented.
    #[error("Invalid or missing token")]
    Missing,
    /// Nobody has such a key.
    #[error("Invalid or expired token")]
    Unknown,
    /// It was good once.
    #[error("Revoked token")]
    Revoked,
}

/// All keys that are on record, for whoever must check one without the store. The
/// driver alone writes it, after the commit.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    by_hash: Arc<RwLock<HashMap<KeyHash, Key>>>,
}

impl KeyRing {
    /// A key is now so.
    pub fn publish(&self, key: Key) {
        let mut keys = self
            .by_hash
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        keys.insert(key.hash, key);
    }

    /// Whom a presented secret speaks for.
    ///
    /// # Errors
    /// When it is not a good key.
    pub fn check(&self, secret: &str) -> Result<Principal, KeyError> {
        let keys = self
            .by_hash
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match keys.get(&hash(secret)) {
            None => Err(KeyError::Unknown),
            Some(key) if key.revoked_at.is_some() => Err(KeyError::Revoked),
            Some(key) => Ok(key.principal.clone()),
        }
    }
}

/// The secrets by which agents are known: each is derived from the server's own
/// secret and the session's id, so that none is stored.
#[derive(Clone)]
pub struct AgentSecrets {
    server_secret: [u8; 32],
}

impl AgentSecrets {
    /// Secrets derived from `server_secret`.
    #[must_use]
    pub const fn new(server_secret: [u8; 32]) -> Self {
        Self { server_secret }
    }

    /// The secret of one session's agent.
    #[must_use]
    pub fn of(&self, session: SessionId) -> String {
        hex(&self.mac(session).finalize().into_bytes())
    }

    /// Is `presented` the secret of that session's agent? Takes the same time
    /// whatever is presented.
    #[must_use]
    pub fn check(&self, session: SessionId, presented: &str) -> bool {
        let bytes: Option<Vec<u8>> = presented
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        bytes.is_some_and(|bytes| self.mac(session).verify_slice(&bytes).is_ok())
    }

    fn mac(&self, session: SessionId) -> Hmac<Sha256> {
        let mut mac = keyed(&self.server_secret);
        mac.update(session.0.as_bytes());
        mac
    }
}

/// What sessions' names are derived by: nobody can tell one from the session's id, and
/// none is stored.
#[derive(Clone)]
pub struct SlugSecret {
    server_secret: [u8; 32],
}

impl std::fmt::Debug for SlugSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SlugSecret(..)")
    }
}

impl SlugSecret {
    /// Names derived from `server_secret`.
    #[must_use]
    pub const fn new(server_secret: [u8; 32]) -> Self {
        Self { server_secret }
    }

    /// The session's name: a DNS label of 128 bits.
    #[must_use]
    pub fn of(&self, session: SessionId) -> String {
        let mut mac = keyed(&self.server_secret);
        mac.update(b"slug");
        mac.update(session.0.as_bytes());
        let bytes = mac.finalize().into_bytes();
        hex(bytes.get(..16).unwrap_or_default())
    }
}

fn keyed(secret: &[u8; 32]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    Hmac::<Sha256>::new_from_slice(secret).expect("any length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn an_agents_secret_is_good_for_its_own_session_alone() {
        let secrets = AgentSecrets::new([7; 32]);
        let (a, b) = (SessionId(Uuid::from_u128(1)), SessionId(Uuid::from_u128(2)));
        assert!(secrets.check(a, &secrets.of(a)));
        assert!(!secrets.check(b, &secrets.of(a)));
        assert!(!secrets.check(a, ""));
        assert!(!secrets.check(a, "zz"));
        assert!(!AgentSecrets::new([8; 32]).check(a, &secrets.of(a)));
    }

    #[test]
    fn secrets_are_long_and_never_the_same() {
        let (a, b) = (new_secret().unwrap(), new_secret().unwrap());
        assert_eq!(a.len(), KEY_PREFIX.len() + 64);
        assert_ne!(a, b);
    }
}
