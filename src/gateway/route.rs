//! What is behind a session's door.

use std::sync::Arc;

use dwell_core::id::SessionId;
use dwell_core::machine::Access;
use dwell_core::owner::Owner;
use dwell_core::session::Ending;
use dwell_core::upstream::Upstream;
use tokio::sync::watch;

use super::channels::Tunnels;
use super::pool::Pool;
use super::traffic::Traffic;

/// What is behind a session's door now.
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

/// How far the session behind a door is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteStatus {
    /// Its app does not answer yet.
    Starting,
    /// Its app answers, and is reached so.
    Running(Upstream),
    /// It is being ended.
    Stopping,
    /// It has ended, for this reason.
    Ended(Ending),
}

impl Route {
    pub(super) const fn has_ended(&self) -> bool {
        matches!(self.status, RouteStatus::Ended(_))
    }

    const fn upstream(&self) -> Option<Upstream> {
        match self.status {
            RouteStatus::Running(upstream) => Some(upstream),
            RouteStatus::Starting | RouteStatus::Stopping | RouteStatus::Ended(_) => None,
        }
    }
}

/// A route, the connections to its app while it has one, and what has passed.
pub(super) struct Backend {
    pub(super) route: Route,
    pub(super) app: Option<Arc<Pool>>,
    pub(super) traffic: Arc<Traffic>,
}

impl Backend {
    /// The route with what has passed for its session, and its app's connections if it
    /// is the same app still, both from `before`.
    pub(super) fn new(route: Route, before: Option<&Self>, tunnels: &Tunnels) -> Arc<Self> {
        let before = before.filter(|before| before.route.session == route.session);
        let traffic = before.map_or_else(Arc::default, |before| Arc::clone(&before.traffic));
        let app = route.upstream().map(|upstream| {
            let kept = before.and_then(|before| before.app.as_ref());
            if let Some(pool) = kept.filter(|pool| pool.upstream() == upstream) {
                return Arc::clone(pool);
            }
            let channels = match upstream {
                Upstream::Direct(_) => None,
                Upstream::Tunnel(_) => Some(tunnels.of(route.session)),
            };
            Arc::new(Pool::new(upstream, channels, Arc::clone(&traffic)))
        });
        Arc::new(Self {
            route,
            app,
            traffic,
        })
    }
}

/// What a door's connections look at: `None` once the door is closed.
pub(super) type Current = watch::Receiver<Option<Arc<Backend>>>;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use dwell_core::owner::UserId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn connections_to_an_app_outlive_a_new_word_of_the_same_session_alone() {
        let app = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let tunnels = Tunnels::default();
        let running = |session| Route {
            session: SessionId(Uuid::from_u128(session)),
            owner: Owner::User(UserId("ada".to_owned())),
            access: Access::Link,
            status: RouteStatus::Running(app.into()),
        };
        let first = Backend::new(running(1), None, &tunnels);
        let pool = first.app.as_ref().unwrap();
        let again = Backend::new(running(1), Some(&first), &tunnels);
        assert!(Arc::ptr_eq(pool, again.app.as_ref().unwrap()));
        let other = Backend::new(running(2), Some(&first), &tunnels);
        assert!(!Arc::ptr_eq(pool, other.app.as_ref().unwrap()));
    }
}
