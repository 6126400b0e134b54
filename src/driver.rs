//! The loop around the core: decide, commit, act. (Being written.)

use std::sync::Arc;

use dwell_core::control_plane::ControlPlane;
use dwell_core::id::SessionId;
use dwell_core::refusal::Refusal;
use dwell_core::session::Session;
use dwell_core::time::Moment;
use tokio::sync::watch;

/// Why something that was asked was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    /// The core refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be put on record, or the server is shutting down. Nothing
    /// happened; ask again later. The sentence says why.
    #[error("{0}")]
    Unavailable(String),
}

/// A handle to the driver.
#[derive(Clone)]
pub struct Driver {}

impl Driver {
    /// Have the core decide; when this returns `Ok`, what follows is on record.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut ControlPlane, Moment) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, AskError> {
        let _ = decide;
        Err(AskError::Unavailable("not yet".into()))
    }

    /// An open session as it goes on, each state after its commit. The last state
    /// seen is `Ended`; `None` when it has ended before or never was.
    #[must_use]
    pub fn watch(&self, id: SessionId) -> Option<watch::Receiver<Arc<Session>>> {
        let _ = id;
        None
    }
}
