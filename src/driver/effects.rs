//! What is done once it is on record.

use std::collections::HashMap;

use dwell_core::control_plane::Change;
use dwell_core::id::SessionId;
use dwell_core::key::Key;
use dwell_core::machine::Access;
use dwell_core::protocol::ServerMessage;
use dwell_core::session::{Session, State};
use dwell_core::share::Share;

use super::Live;
use crate::admission::Admission;
use crate::gateway::{Gateway, Route, RouteStatus};
use crate::launcher::Launchers;
use crate::tunnel::Switchboard;

/// All that the driver can reach.
pub struct Effects {
    launchers: Launchers,
    gateway: Gateway,
    switchboard: Switchboard,
    admission: Admission,
    live: Live,
    default_access: Access,
    routes: HashMap<SessionId, (u16, Route)>,
}

impl Effects {
    /// Effects by these means. Sessions whose recipe does not say who may use them
    /// are open to `default_access`.
    #[must_use]
    pub fn new(
        launchers: Launchers,
        gateway: Gateway,
        switchboard: Switchboard,
        admission: Admission,
        default_access: Access,
    ) -> Self {
        Self {
            launchers,
            gateway,
            switchboard,
            admission,
            live: Live::default(),
            default_access,
            routes: HashMap::new(),
        }
    }

    pub(super) const fn live(&self) -> &Live {
        &self.live
    }

    /// The sessions that are shown as open.
    pub(super) fn shown(&self) -> Vec<SessionId> {
        self.live.ids()
    }

    pub(super) const fn launchers(&self) -> &Launchers {
        &self.launchers
    }

    pub(super) fn tell(&self, session: SessionId, message: ServerMessage) {
        self.switchboard.tell(session, message);
    }

    pub(super) fn publish_key(&self, key: Key) {
        self.admission.keys.publish(key);
    }

    pub(super) fn publish_share(&self, share: Share) {
        self.admission.shares.publish(share);
    }

    /// Show what was committed. Returns the sessions whose port cannot be had.
    pub(super) async fn publish(&mut self, changes: Vec<Change>) -> Vec<(SessionId, u16)> {
        let mut sessions = Vec::new();
        // Links and keys before the doors that they open.
        for change in changes {
            match change {
                Change::Session(session) => sessions.push(*session),
                Change::Key(key) => self.publish_key(key),
                Change::Share(share) => self.publish_share(*share),
                Change::Machine(_)
                | Change::MachineVersion(..)
                | Change::MachineDeleted(_)
                | Change::ForgetEndedBefore(_) => {}
            }
        }
        self.publish_sessions(sessions).await
    }

    pub(super) async fn publish_sessions(
        &mut self,
        sessions: Vec<Session>,
    ) -> Vec<(SessionId, u16)> {
        let mut unusable = Vec::new();
        for session in sessions {
            if let Err(failed) = self.publish_route(&session).await {
                unusable.push(failed);
            }
            if !session.is_open() {
                self.admission.shares.forget(session.id);
            }
            self.live.publish(session);
        }
        unusable
    }

    async fn publish_route(&mut self, session: &Session) -> Result<(), (SessionId, u16)> {
        let id = session.id;
        let before = self.routes.get(&id);
        let port = session.placement().map(|placement| placement.port);
        // A session that has ended is shown to have on the port that it had.
        let Some(port) = port.or_else(|| before.map(|(port, _)| *port)) else {
            return Ok(());
        };
        let Some(route) = self.route(session) else {
            return Ok(());
        };
        if before.is_some_and(|before| *before == (port, route.clone())) {
            return Ok(());
        }
        if session.is_open() {
            self.routes.insert(id, (port, route.clone()));
        } else {
            self.routes.remove(&id);
        }
        self.gateway.publish(port, route).await.map_err(|error| {
            tracing::debug!(session = %id, port, "the session's port cannot be had: {error}");
            (id, port)
        })
    }

    fn route(&self, session: &Session) -> Option<Route> {
        let status = match &session.state {
            State::Queued { .. } => return None,
            State::Starting { .. } => RouteStatus::Starting,
            State::Running { upstream, .. } => RouteStatus::Running(*upstream),
            State::Stopping { .. } => RouteStatus::Stopping,
            State::Ended { ending, .. } => RouteStatus::Ended(ending.clone()),
        };
        Some(Route {
            session: session.id,
            owner: session.owner.clone(),
            access: session.recipe.access.unwrap_or(self.default_access),
            status,
        })
    }
}
