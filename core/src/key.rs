//! API keys: what is kept of them. The secret itself is never kept.

use serde::{Deserialize, Serialize};

use crate::id::KeyId;
use crate::owner::Principal;
use crate::time::Timestamp;

/// SHA-256 of a key's secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyHash(pub [u8; 32]);

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

/// An API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The row.
    pub id: KeyId,
    /// What its maker called it.
    pub name: String,
    /// What a presented secret is looked up by.
    pub hash: KeyHash,
    /// Who it speaks for.
    pub principal: Principal,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stopped being good, if it has.
    pub revoked_at: Option<Timestamp>,
}
