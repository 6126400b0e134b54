//! Share links: who may make and revoke them, and what is kept of their use.

use uuid::Uuid;

use super::ControlPlane;
use crate::id::{SessionId, ShareId};
use crate::key::KeyHash;
use crate::machine::Access;
use crate::owner::Principal;
use crate::quota;
use crate::refusal::Refusal;
use crate::share::{Revocation, Scope, Share, Visit};
use crate::time::{Millis, Moment};

/// A request for a share link.
#[derive(Clone, Debug)]
pub struct NewShare {
    /// Its id.
    pub id: ShareId,
    /// Who asks.
    pub principal: Principal,
    /// The session that it is to open.
    pub session: SessionId,
    /// What to call it.
    pub name: String,
    /// What its secret is looked up by.
    pub hash: KeyHash,
    /// What it is to allow.
    pub scope: Scope,
    /// For how long it is good; none, and it is as good as the session is long.
    pub good_for: Option<Millis>,
    /// Who may use the session's address, where its recipe does not say.
    pub default_access: Access,
}

impl ControlPlane {
    /// A share link for a session that is open.
    ///
    /// # Errors
    /// When the session is not the owner's, is open to everybody, or has too many.
    pub fn create_share(&mut self, new: NewShare, now: Moment) -> Result<Share, Refusal> {
        let owner = new.principal.owner();
        let session = self.open_session(&owner, new.session)?;
        match session.recipe.access.unwrap_or(new.default_access) {
            Access::Private => {}
            Access::Link => return Err(Refusal::NotPrivate),
        }
        let have = self
            .shares_of(new.session)
            .filter(|share| share.is_good(now.wall))
            .count();
        quota::one_more("share links", have, self.settings.limits.shares_per_session)?;
        let share = Share {
            id: new.id,
            session: new.session,
            owner,
            name: new.name,
            hash: new.hash,
            scope: new.scope,
            created_by: new.principal.user,
            created_at: now.wall,
            expires_at: new.good_for.map(|span| now.wall.plus(span)),
            revoked: None,
            visits: 0,
            recent_visits: Vec::new(),
        };
        self.put_share(share.clone());
        Ok(share)
    }

    /// A share link stops being good.
    ///
    /// # Errors
    /// When the session is not the owner's, or has no such link that is still good.
    pub fn revoke_share(
        &mut self,
        principal: &Principal,
        session: SessionId,
        id: ShareId,
        now: Moment,
    ) -> Result<(), Refusal> {
        self.open_session(&principal.owner(), session)?;
        let mut share = self
            .shares
            .get(&(session, id))
            .filter(|share| share.is_good(now.wall))
            .cloned()
            .ok_or(Refusal::NoSuchShare)?;
        share.revoked = Some(Revocation {
            by: principal.user.clone(),
            at: now.wall,
        });
        self.put_share(share);
        Ok(())
    }

    /// Somebody came by a share link.
    pub fn share_visited(&mut self, session: SessionId, id: ShareId, visit: Visit) {
        if let Some(mut share) = self.shares.get(&(session, id)).cloned() {
            share.visited(visit);
            self.put_share(share);
        }
    }

    /// Every share link of every open session, revoked ones included.
    pub fn shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.values()
    }

    pub(super) fn forget_shares_of(&mut self, session: SessionId) {
        let ids: Vec<_> = self.shares_of(session).map(|share| share.id).collect();
        for id in ids {
            self.shares.remove(&(session, id));
        }
    }

    fn shares_of(&self, session: SessionId) -> impl Iterator<Item = &Share> {
        let all = (session, ShareId(Uuid::nil()))..=(session, ShareId(Uuid::max()));
        self.shares.range(all).map(|(_, share)| share)
    }
}
