//! API keys: who may make and revoke them.

use super::ControlPlane;
use crate::id::KeyId;
use crate::key::Key;
use crate::owner::{Owner, Principal};
use crate::quota;
use crate::refusal::Refusal;
use crate::time::Moment;

impl ControlPlane {
    /// A key, asked for by `by`; `None` is the operator at the machine itself.
    ///
    /// # Errors
    /// When it speaks for someone else and `by` is no admin, or the owner has too
    /// many already.
    pub fn create_key(&mut self, key: Key, by: Option<&Principal>) -> Result<(), Refusal> {
        if by.is_some_and(|by| !by.admin && *by != key.principal) {
            return Err(Refusal::AdminOnly);
        }
        let owner = key.principal.owner();
        let have = self
            .keys
            .values()
            .filter(|key| key.revoked_at.is_none() && key.principal.owner() == owner)
            .count();
        quota::one_more("API keys", have, self.settings.limits.keys_per_owner)?;
        self.put_key(key);
        Ok(())
    }

    /// A key stops being good.
    ///
    /// # Errors
    /// When the owner has no such key that is still good.
    pub fn revoke_key(&mut self, owner: &Owner, id: KeyId, now: Moment) -> Result<(), Refusal> {
        let mut key = self
            .keys
            .get(&id)
            .filter(|key| key.principal.owner() == *owner && key.revoked_at.is_none())
            .cloned()
            .ok_or(Refusal::NoSuchKey)?;
        key.revoked_at = Some(now.wall);
        self.put_key(key);
        Ok(())
    }

    /// Every key, revoked ones included.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }
}
