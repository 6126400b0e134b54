//! Share links as presented, looked up by hash.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwell_core::id::{SessionId, ShareId};
use dwell_core::key::KeyHash;
use dwell_core::share::{Scope, Share, Visit, Visitors};
use dwell_core::time::Timestamp;

use crate::keys::KeyError;

/// The share links of open sessions, for who must check one without the store. The driver
/// alone writes it, after the commit.
#[derive(Clone, Debug, Default)]
pub struct ShareRing {
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    by_id: HashMap<ShareId, (Share, Visitors)>,
    ids: HashMap<KeyHash, ShareId>,
}

impl ShareRing {
    /// A share link is now so.
    pub fn publish(&self, share: Share) {
        let mut ring = self.lock();
        ring.ids.insert(share.hash, share.id);
        let visitors = ring.by_id.remove(&share.id).map(|(_, visitors)| visitors);
        let known = (share.clone(), visitors.unwrap_or_default());
        ring.by_id.insert(share.id, known);
    }

    /// A session has ended: nothing leads there any more.
    pub fn forget(&self, session: SessionId) {
        let mut ring = self.lock();
        let Ring { by_id, ids } = &mut *ring;
        by_id.retain(|_, (share, _)| {
            let stays = share.session != session;
            if !stays {
                ids.remove(&share.hash);
            }
            stays
        });
    }

    /// Which link this secret is of.
    #[must_use]
    pub fn find(&self, hash: KeyHash) -> Option<ShareId> {
        self.lock().ids.get(&hash).copied()
    }

    /// What this link allows in `session`.
    ///
    /// # Errors
    /// When it is not good there, or not any more.
    pub fn scope(
        &self,
        id: ShareId,
        session: SessionId,
        now: Timestamp,
    ) -> Result<Scope, KeyError> {
        match self.lock().by_id.get(&id) {
            Some((share, _)) if share.session != session => Err(KeyError::Unknown),
            None => Err(KeyError::Unknown),
            Some((share, _)) if share.revoked.is_some() => Err(KeyError::Revoked),
            Some((share, _)) if !share.is_good(now) => Err(KeyError::Unknown),
            Some((share, _)) => Ok(share.scope),
        }
    }

    /// Is this the beginning of a visit by that link?
    #[must_use]
    pub fn is_new_visit(&self, id: ShareId, visit: Visit) -> bool {
        let mut ring = self.lock();
        let known = ring.by_id.get_mut(&id);
        known.is_some_and(|(_, visitors)| visitors.is_new(visit))
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
