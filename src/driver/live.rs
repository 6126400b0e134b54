//! Open sessions as they go on, for whoever waits for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dwell_core::id::SessionId;
use dwell_core::session::Session;
use tokio::sync::watch;

/// The committed state of every open session.
#[derive(Clone, Default)]
pub struct Live {
    sessions: Arc<Mutex<HashMap<SessionId, watch::Sender<Arc<Session>>>>>,
}

impl Live {
    /// The session is now so. One that has ended is shown to those who watch it and
    /// then let go.
    pub fn publish(&self, session: Session) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, is_open) = (session.id, session.is_open());
        let session = Arc::new(session);
        if let Some(watched) = sessions.get(&id) {
            watched.send_replace(session);
        } else if is_open {
            sessions.insert(id, watch::Sender::new(session));
        }
        if !is_open {
            sessions.remove(&id);
        }
    }

    /// No session is shown any more.
    pub fn clear(&self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.clear();
    }

    /// Those that are shown.
    #[must_use]
    pub fn ids(&self) -> Vec<SessionId> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.keys().copied().collect()
    }

    /// All that are shown.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Session>> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = |watched: &watch::Sender<Arc<Session>>| Arc::clone(&watched.borrow());
        sessions.values().map(latest).collect()
    }

    /// One open session from now on.
    #[must_use]
    pub fn watch(&self, id: SessionId) -> Option<watch::Receiver<Arc<Session>>> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&id).map(watch::Sender::subscribe)
    }
}
