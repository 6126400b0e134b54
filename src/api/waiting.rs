//! Waiting for a session to come to something.

use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::owner::Owner;
use dwell_core::session::Session;

use super::Api;
use crate::store::StoreError;

/// How often the record is looked at once nobody here tells of changes: another
/// server has taken over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Api {
    /// The session once it is so; `None` when that takes longer than `limit`, or the
    /// server goes, or the session is not on record.
    pub(super) async fn until(
        &self,
        owner: &Owner,
        id: SessionId,
        limit: Duration,
        is_so: impl Fn(&Session) -> bool + Send + Sync,
    ) -> Result<Option<Session>, StoreError> {
        let _aside = self.gate.stand_aside();
        tokio::select! {
            came = self.come_to(owner, id, is_so) => came,
            () = tokio::time::sleep(limit) => Ok(None),
            () = self.gate.left() => Ok(None),
        }
    }

    /// The session once it is so, however long that takes; `None` when it is not on
    /// record.
    pub(super) async fn come_to(
        &self,
        owner: &Owner,
        id: SessionId,
        is_so: impl Fn(&Session) -> bool + Send + Sync,
    ) -> Result<Option<Session>, StoreError> {
        if let Some(mut states) = self.driver.watch(id).await
            && let Ok(session) = states.wait_for(|session| is_so(session)).await
        {
            return Ok(Some(Session::clone(&session)));
        }
        loop {
            match self.store.session(owner, id).await? {
                None => return Ok(None),
                Some(record) if is_so(&record.session) => return Ok(Some(record.session)),
                Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}
