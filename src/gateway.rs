//! The gateway: the proxy behind every session URL. (Being written.)

use std::net::{IpAddr, SocketAddr};

use dwell_core::id::SessionId;
use dwell_core::machine::Access;
use dwell_core::owner::Owner;
use dwell_core::session::Ending;

use crate::keys::KeyRing;

/// What is behind a session's port now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The session.
    pub session: SessionId,
    /// Whose it is.
    pub owner: Owner,
    /// Who may use it.
    pub access: Access,
    /// How far it is.
    pub status: RouteStatus,
}

/// How far the session behind a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteStatus {
    /// Its app does not answer yet.
    Starting,
    /// Its app listens here.
    Running(SocketAddr),
    /// It is being ended.
    Stopping,
    /// It has ended, for this reason.
    Ended(Ending),
}

/// The gateway.
#[derive(Clone)]
pub struct Gateway {}

impl Gateway {
    /// A gateway whose ports are on `bind`; `keys` opens private sessions.
    #[must_use]
    pub fn new(bind: IpAddr, keys: KeyRing) -> Self {
        let _ = (bind, keys);
        Self {}
    }

    /// What is behind `port` from now on. Listens there if nothing did before.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub async fn publish(&self, port: u16, route: Route) -> std::io::Result<()> {
        let _ = (port, route);
        Ok(())
    }
}
