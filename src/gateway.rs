//! The gateway: the proxy behind every session URL.
//!
//! It knows what was published to it and nothing else: a slow store, or a busy
//! driver, cannot stall live traffic. In port mode every session has a port of its
//! own, and each port one listener.
//!
//! ```text
//!  publish ─▶ port ─ watch ─▶ listener ─▶ connection ─▶ exchange ─▶ pool ─▶ app
//! ```
//!
//! It speaks HTTP/1.1 itself: heads are read where they lie and written anew, bodies
//! carried as they come. Every byte that a user sees passes here, so what measured best
//! stands here.

mod access;
mod answer;
mod buffered;
mod connection;
pub mod cors;
pub mod credentials;
mod exchange;
pub mod framing;
pub mod head;
pub mod headers;
mod page;
mod patience;
mod places;
mod pool;
mod relay;
mod traffic;
mod transfer;
mod workers;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::machine::Access;
use dwell_core::owner::Owner;
use dwell_core::session::Ending;
use dwell_core::time::{Millis, Monotonic};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::clock;
use crate::keys::KeyRing;
use connection::Door;
pub use patience::TimeLimits;
use pool::Pool;
pub use traffic::Passed;
use traffic::Traffic;
use workers::Workers;

/// How long a port says that its session has ended before it is closed.
const SHOW_ENDED: Millis = Millis::from_minutes(10);
/// How often connections and ports that nobody needs any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// How long [`Gateway::shutdown`] lets exchanges finish.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);
/// Connections that the kernel may hold for a port before they are accepted.
const BACKLOG: u32 = 1_024;

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

impl Route {
    const fn has_ended(&self) -> bool {
        matches!(self.status, RouteStatus::Ended(_))
    }

    const fn app(&self) -> Option<SocketAddr> {
        match self.status {
            RouteStatus::Running(app) => Some(app),
            RouteStatus::Starting | RouteStatus::Stopping | RouteStatus::Ended(_) => None,
        }
    }
}

/// A route, the connections to its app while it has one, and what has passed.
struct Backend {
    route: Route,
    app: Option<Arc<Pool>>,
    traffic: Arc<Traffic>,
}

/// What a port's connections look at: `None` once the port is closed.
type Current = watch::Receiver<Option<Arc<Backend>>>;

struct Port {
    current: watch::Sender<Option<Arc<Backend>>>,
    /// Until it is given away.
    socket: Option<Arc<TcpListener>>,
    listener: JoinHandle<()>,
    published: Monotonic,
}

impl Port {
    fn backend(&self) -> Option<Arc<Backend>> {
        self.current.borrow().clone()
    }

    /// Stop listening and have every connection end. When this returns, the port
    /// can be listened on again; the connections are still finishing.
    async fn close(&mut self) {
        self.current.send_replace(None);
        self.listener.abort();
        // An error only says that it was aborted.
        let _ = (&mut self.listener).await;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// The gateway. Clones are handles to the same one.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    bind: IpAddr,
    keys: KeyRing,
    limits: TimeLimits,
    ports: Mutex<Ports>,
    /// Set when another gateway takes the visitors from now on: connections are not
    /// kept past the response that is under way.
    gives_way: Arc<AtomicBool>,
}

#[derive(Default)]
struct Ports {
    by_number: HashMap<u16, Port>,
    /// Listeners of the gateway before this one, until they are published on.
    inherited: HashMap<u16, std::net::TcpListener>,
    sweeper: Option<JoinHandle<()>>,
    workers: Option<Arc<Workers>>,
}

impl Gateway {
    /// A gateway whose ports are on `bind`; `keys` opens private sessions.
    #[must_use]
    pub fn new(bind: IpAddr, keys: KeyRing) -> Self {
        Self::with(bind, keys, TimeLimits::default(), HashMap::new())
    }

    /// The same, with other limits, and with the listeners that another gateway gave
    /// up, by port.
    #[must_use]
    pub fn with(
        bind: IpAddr,
        keys: KeyRing,
        limits: TimeLimits,
        inherited: HashMap<u16, std::net::TcpListener>,
    ) -> Self {
        let ports = Ports {
            inherited,
            ..Ports::default()
        };
        Self {
            shared: Arc::new(Shared {
                bind,
                keys,
                limits,
                ports: Mutex::new(ports),
                gives_way: Arc::default(),
            }),
        }
    }

    /// What is behind `port` from now on. Listens there if nothing did before.
    ///
    /// When another session is published on a port, or the one there ends, the
    /// connections that the old one's visitors hold are closed. The end of a session
    /// whose port another one has by now is no news.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub async fn publish(&self, port: u16, route: Route) -> io::Result<()> {
        let mut ports = self.shared.ports.lock().await;
        let published = clock::monotonic();
        if let Some(open) = ports.by_number.get_mut(&port) {
            let before = open.backend();
            if route.has_ended()
                && before.as_ref().is_some_and(|before| {
                    before.route.session != route.session && !before.route.has_ended()
                })
            {
                return Ok(());
            }
            open.published = published;
            open.current
                .send_replace(Some(backend(route, before.as_deref())));
            return Ok(());
        }
        let workers = match &ports.workers {
            Some(workers) => Arc::clone(workers),
            None => Arc::clone(ports.workers.insert(Arc::new(Workers::start()?))),
        };
        let worker = workers.next().1.clone();
        let socket = {
            // The listener belongs to the thread that accepts.
            let _on_worker = worker.enter();
            Arc::new(match ports.inherited.remove(&port) {
                Some(inherited) => TcpListener::from_std(inherited)?,
                None => listen(SocketAddr::new(self.shared.bind, port))?,
            })
        };
        let (current, watched) = watch::channel(Some(backend(route, None)));
        let shared = &self.shared;
        let door = Arc::new(Door::new(
            port,
            shared.keys.clone(),
            watched,
            Arc::clone(&shared.gives_way),
            shared.limits,
        ));
        let accept = connection::accept(Arc::clone(&socket), door, workers);
        let listener = worker.spawn(accept);
        ports.by_number.insert(
            port,
            Port {
                current,
                socket: Some(socket),
                listener,
                published,
            },
        );
        if ports.sweeper.is_none() {
            ports.sweeper = Some(tokio::spawn(keep_sweeping(Arc::downgrade(&self.shared))));
        }
        Ok(())
    }

    /// What has passed for `session`, which has `port`.
    pub async fn passed(&self, port: u16, session: SessionId) -> Option<Passed> {
        let ports = self.shared.ports.lock().await;
        let backend = ports.by_number.get(&port)?.backend()?;
        let is_its_own = backend.route.session == session;
        is_its_own.then(|| backend.traffic.passed(clock::monotonic()))
    }

    /// What has passed for every session that has a port.
    pub async fn all_passed(&self) -> Vec<(SessionId, Passed)> {
        let now = clock::monotonic();
        let ports = self.shared.ports.lock().await;
        let backends = ports.by_number.values().filter_map(Port::backend);
        backends
            .map(|backend| (backend.route.session, backend.traffic.passed(now)))
            .collect()
    }

    /// Let go of inherited listeners that nothing was published on.
    pub async fn release_inherited(&self) {
        self.shared.ports.lock().await.inherited.clear();
    }

    /// Accept no more visitors, and return what another gateway accepts them with.
    /// Those who are here stay until their exchange, or their upgraded connection,
    /// ends by itself.
    ///
    /// # Errors
    /// When a listener cannot be shared.
    pub async fn give_way(&self) -> io::Result<HashMap<u16, std::net::TcpListener>> {
        self.shared.gives_way.store(true, Ordering::Relaxed);
        let mut ports = self.shared.ports.lock().await;
        let mut given = std::mem::take(&mut ports.inherited);
        for (number, port) in &mut ports.by_number {
            port.listener.abort();
            if let Some(socket) = port.socket.take() {
                let descriptor = socket.as_fd().try_clone_to_owned()?;
                given.insert(*number, descriptor.into());
            }
        }
        Ok(given)
    }

    /// Wait until no visitor is left of those who were here when this gateway gave
    /// way.
    pub async fn all_left(&self) {
        let mut ports = self.shared.ports.lock().await;
        let ports: Vec<Port> = ports.by_number.drain().map(|(_, port)| port).collect();
        // Each connection holds a receiver, so the last one gone closes the channel.
        for port in &ports {
            port.current.closed().await;
        }
    }

    /// Close every port. Exchanges that are under way may finish for a few seconds;
    /// what then still runs is cut off. Upgraded connections are cut off at once.
    pub async fn shutdown(&self) {
        let mut ports = self.shared.ports.lock().await;
        if let Some(sweeper) = ports.sweeper.take() {
            sweeper.abort();
        }
        let mut closing: Vec<Port> = ports.by_number.drain().map(|(_, port)| port).collect();
        drop(ports);
        for port in &mut closing {
            port.close().await;
        }
        // Each connection holds a receiver, so the last one gone closes the channel.
        let all_gone = async {
            for port in &closing {
                port.current.closed().await;
            }
        };
        let _ = tokio::time::timeout(SHUTDOWN_LIMIT, all_gone).await;
    }
}

/// The route with what has passed for its session, and its app's connections if it is
/// the same app still, both from `before`.
fn backend(route: Route, before: Option<&Backend>) -> Arc<Backend> {
    let before = before.filter(|before| before.route.session == route.session);
    let traffic = before.map_or_else(Arc::default, |before| Arc::clone(&before.traffic));
    let app = route.app().map(|app| {
        before
            .and_then(|before| before.app.as_ref())
            .filter(|pool| pool.app() == app)
            .map_or_else(
                || Arc::new(Pool::new(app, Arc::clone(&traffic))),
                Arc::clone,
            )
    });
    Arc::new(Backend {
        route,
        app,
        traffic,
    })
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A port whose last connections are still in TIME_WAIT can be listened on.
    socket.set_reuseaddr(true)?;
    // Connections that are accepted inherit both.
    socket.set_nodelay(true)?;
    notice_dead_peers(&socket)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// A quiet connection may live for days; one whose other end is gone without a word
/// is noticed within two minutes.
fn notice_dead_peers(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &60)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &15)?;
    setsockopt(socket, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

impl Shared {
    /// Close what nobody needs any more at `now`.
    async fn sweep(&self, now: Monotonic) {
        let mut ports = self.ports.lock().await;
        let mut stale = Vec::new();
        for (number, port) in &ports.by_number {
            let Some(backend) = port.backend() else {
                continue;
            };
            if let Some(pool) = &backend.app {
                pool.sweep(now);
            }
            if backend.route.has_ended() && now.since(port.published) >= SHOW_ENDED {
                stale.push(*number);
            }
        }
        for number in stale {
            if let Some(mut port) = ports.by_number.remove(&number) {
                port.close().await;
            }
        }
    }
}

/// Sweep again and again, until the gateway is gone.
async fn keep_sweeping(gateway: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(shared) = gateway.upgrade() else {
            return;
        };
        shared.sweep(clock::monotonic()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use dwell_core::owner::UserId;
    use dwell_core::session::EndReason;
    use uuid::Uuid;

    use super::*;

    fn route(session: u128, status: RouteStatus) -> Route {
        Route {
            session: SessionId(Uuid::from_u128(session)),
            owner: Owner::User(UserId("ada".to_owned())),
            access: Access::Link,
            status,
        }
    }

    fn ended() -> RouteStatus {
        RouteStatus::Ended(Ending::plain(EndReason::Idle))
    }

    /// A gateway, and a port on which it shows `route`.
    async fn showing(route: Route) -> (Gateway, u16) {
        let gateway = Gateway::new(Ipv4Addr::LOCALHOST.into(), KeyRing::default());
        loop {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            match gateway.publish(port, route.clone()).await {
                Ok(()) => return (gateway, port),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
            }
        }
    }

    async fn shown(gateway: &Gateway, port: u16) -> Option<Route> {
        let ports = gateway.shared.ports.lock().await;
        let backend = ports.by_number.get(&port)?.backend()?;
        Some(backend.route.clone())
    }

    #[tokio::test]
    async fn a_port_shows_an_end_for_some_time_and_is_then_closed() {
        let (gateway, port) = showing(route(1, ended())).await;
        let now = clock::monotonic();
        let (early, late) = (Millis::from_minutes(9), SHOW_ENDED.plus(Millis(1_000)));
        gateway.shared.sweep(now.plus(early)).await;
        assert_eq!(shown(&gateway, port).await, Some(route(1, ended())));
        gateway.shared.sweep(now.plus(late)).await;
        assert_eq!(shown(&gateway, port).await, None);
        gateway
            .publish(port, route(2, RouteStatus::Starting))
            .await
            .unwrap();
        gateway.shared.sweep(clock::monotonic().plus(late)).await;
        assert!(shown(&gateway, port).await.is_some());
    }

    #[tokio::test]
    async fn a_late_word_of_an_end_does_not_touch_the_session_that_has_the_port_now() {
        let now_here = route(2, RouteStatus::Starting);
        let (gateway, port) = showing(now_here.clone()).await;
        gateway.publish(port, route(1, ended())).await.unwrap();
        assert_eq!(shown(&gateway, port).await, Some(now_here));
    }

    #[tokio::test]
    async fn connections_to_an_app_outlive_a_new_word_of_the_same_session_alone() {
        let app = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let first = backend(route(1, RouteStatus::Running(app)), None);
        let pool = first.app.as_ref().unwrap();
        let again = backend(route(1, RouteStatus::Running(app)), Some(&first));
        assert!(Arc::ptr_eq(pool, again.app.as_ref().unwrap()));
        let other = backend(route(2, RouteStatus::Running(app)), Some(&first));
        assert!(!Arc::ptr_eq(pool, other.app.as_ref().unwrap()));
    }
}
