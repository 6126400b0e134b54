//! API keys as presented, looked up by hash; secrets that are derived.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use dwell_core::id::{KeyId, SessionId};
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
    Ok(format!("{KEY_PREFIX}{}", hex(&random::<32>()?)))
}

/// So many bytes that nobody can guess.
pub(crate) fn random<const BYTES: usize>() -> Result<[u8; BYTES], getrandom::Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// What a secret is stored and looked up as. Plain SHA-256 is enough: the secret is
/// random, not a password.
#[must_use]
pub fn hash(secret: &str) -> KeyHash {
    KeyHash(Sha256::digest(secret).into())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was written in hex; None if it is none.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
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
    ring: Arc<RwLock<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    by_id: HashMap<KeyId, Key>,
    ids: HashMap<KeyHash, KeyId>,
}

impl KeyRing {
    /// A key is now so.
    pub fn publish(&self, key: Key) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        ring.ids.insert(key.hash, key.id);
        ring.by_id.insert(key.id, key);
    }

    /// Which key a presented secret is, and whom it speaks for.
    ///
    /// # Errors
    /// When it is not a good key.
    pub fn check(&self, secret: &str) -> Result<(KeyId, Principal), KeyError> {
        let hash = hash(secret);
        let id = self.read().ids.get(&hash).copied();
        let id = id.ok_or(KeyError::Unknown)?;
        Ok((id, self.principal(id)?))
    }

    /// Whom this key speaks for.
    ///
    /// # Errors
    /// When it is not good, or not any more.
    pub fn principal(&self, id: KeyId) -> Result<Principal, KeyError> {
        match self.read().by_id.get(&id) {
            None => Err(KeyError::Unknown),
            Some(key) if key.revoked_at.is_some() => Err(KeyError::Revoked),
            Some(key) => Ok(key.principal.clone()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
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
        unhex(presented).is_some_and(|bytes| self.mac(session).verify_slice(&bytes).is_ok())
    }

    /// By which the jobs of this installation are known among others': eight letters and
    /// digits.
    #[must_use]
    pub fn installation(&self) -> String {
        let mut mac = keyed(&self.server_secret);
        mac.update(b"installation");
        hex(&mac.finalize().into_bytes()).chars().take(8).collect()
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

pub(crate) fn keyed(secret: &[u8; 32]) -> Hmac<Sha256> {
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
