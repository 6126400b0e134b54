//! The gateway: the proxy behind every session URL.
//!
//! It knows what was published to it and nothing else: a slow store, or a busy
//! driver, cannot stall live traffic. Every session has a door: a port of its own, or a
//! name of its own on the server's one listener.
//!
//! ```text
//!  publish ─▶ door ─ watch ─▶ connection ─▶ exchange ─▶ pool ─▶ app
//!                                  ▲
//!  listener ─▶ reception ─▶ TLS ───┤
//!                  │               │
//!                  └─▶ desk (API)  └─ HTTP/2, a stream at a time
//! ```
//!
//! It speaks HTTP/1.1 itself: heads are read where they lie and written anew, bodies
//! carried as they come. Every byte that a user sees passes here, so what measured best
//! stands here.

mod access;
mod answer;
mod buffered;
mod certificates;
mod channels;
mod connection;
pub mod cors;
pub mod credentials;
mod desk;
mod door;
mod exchange;
pub mod framing;
pub mod head;
pub mod headers;
mod http2;
mod listening;
pub(crate) mod page;
mod patience;
mod places;
mod pool;
mod reception;
mod relay;
mod route;
mod stalled;
mod tls;
mod traffic;
mod transfer;
mod workers;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::time::{Millis, Monotonic};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::admission::Admission;
use crate::clock;
use crate::session_urls::{Address, Scheme, SessionUrls};
pub use certificates::{Issued, Proving};
use channels::Tunnels;
pub use desk::Desk;
use door::{Door, Names};
use listening::{Listening, listen, prepare};
pub use patience::TimeLimits;
use reception::Reception;
use route::Backend;
pub use route::{Route, RouteStatus};
pub use tls::{Tls, TlsError};
pub use traffic::Passed;
use workers::Workers;

/// How long a door says that its session has ended before it is closed.
const SHOW_ENDED: Millis = Millis::from_minutes(10);
/// How often connections and doors that nobody needs any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// How long [`Gateway::shutdown`] lets exchanges finish.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// A door, and how it is told what is behind it.
struct Published {
    current: watch::Sender<Option<Arc<Backend>>>,
    listening: Option<Listening>,
    since: Monotonic,
}

impl Published {
    fn backend(&self) -> Option<Arc<Backend>> {
        self.current.borrow().clone()
    }

    /// Stop listening and have every connection end. When this returns, its port
    /// can be listened on again; the connections are still finishing.
    async fn close(&mut self) {
        self.current.send_replace(None);
        if let Some(listening) = &mut self.listening {
            listening.stop().await;
        }
    }
}

/// What a gateway is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address that sessions' ports are on.
    pub bind: IpAddr,
    /// Where sessions are reached.
    pub urls: SessionUrls,
    /// How long it waits.
    pub limits: TimeLimits,
    /// What visitors' connections are encrypted by.
    pub tls: Option<Tls>,
}

impl Settings {
    /// Ports on `bind`, in the clear, and the usual limits.
    #[must_use]
    pub fn ports(bind: IpAddr) -> Self {
        Self {
            bind,
            urls: SessionUrls::ports(Scheme::Http, bind.to_string(), 0),
            limits: TimeLimits::default(),
            tls: None,
        }
    }
}

/// The gateway. Clones are handles to the same one.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    admission: Admission,
    /// The server's own origin.
    home: Arc<str>,
    doors: Mutex<Doors>,
    /// Those of them that are found by a request's host.
    names: Arc<Names>,
    tunnels: Tunnels,
    /// True once another gateway takes the visitors: connections are not kept past the
    /// response that is under way.
    gives_way: watch::Sender<bool>,
}

#[derive(Default)]
struct Doors {
    by_address: HashMap<Address, Published>,
    /// Listeners of the gateway before this one, until they are published on.
    inherited: HashMap<u16, std::net::TcpListener>,
    sweeper: Option<JoinHandle<()>>,
    workers: Option<Arc<Workers>>,
}

impl Doors {
    fn workers(&mut self) -> io::Result<Arc<Workers>> {
        Ok(match &self.workers {
            Some(workers) => Arc::clone(workers),
            None => Arc::clone(self.workers.insert(Arc::new(Workers::start()?))),
        })
    }
}

impl Gateway {
    /// A gateway whose ports are on `bind`; who may pass is for `admission` to say.
    #[must_use]
    pub fn new(bind: IpAddr, admission: Admission) -> Self {
        Self::with(Settings::ports(bind), admission, HashMap::new())
    }

    /// A gateway by these settings, with the listeners that another one gave up, by
    /// port.
    #[must_use]
    pub fn with(
        settings: Settings,
        admission: Admission,
        inherited: HashMap<u16, std::net::TcpListener>,
    ) -> Self {
        let doors = Doors {
            inherited,
            ..Doors::default()
        };
        let names = Arc::new(Names::under(settings.urls.domain()));
        Self {
            shared: Arc::new(Shared {
                home: settings.urls.home().into(),
                settings,
                admission,
                doors: Mutex::new(doors),
                names,
                tunnels: Tunnels::default(),
                gives_way: watch::Sender::default(),
            }),
        }
    }

    /// Take the visitors of the server's own listener, and lead those who do not come
    /// for a session to `desk`. None come any more once what is returned is dropped.
    ///
    /// # Errors
    /// When there are no threads, or no file, to be had.
    pub async fn receive(&self, listener: std::net::TcpListener, desk: Desk) -> io::Result<Open> {
        let shared = &self.shared;
        let workers = shared.doors.lock().await.workers()?;
        prepare(&listener)?;
        listener.set_nonblocking(true)?;
        let reception = Reception::of_all(
            Arc::clone(&shared.names),
            desk.beside(Arc::clone(&shared.names)),
            &shared.settings,
            shared.gives_way.subscribe(),
            Arc::clone(&workers),
        );
        let worker = workers.next().1.clone();
        let socket = {
            let _on_worker = worker.enter();
            Arc::new(TcpListener::from_std(listener)?)
        };
        let accepting = worker.spawn(reception.accept(socket));
        Ok(Open(Listening {
            socket: None,
            accepting,
        }))
    }

    /// What is behind the session's door from now on; `port` is the one that the session
    /// was given. Opens the door if it was not open before.
    ///
    /// When another session is published on a port, or the one there ends, the
    /// connections that the old one's visitors hold are closed. The end of a session
    /// whose port another one has by now is no news.
    ///
    /// # Errors
    /// When the port cannot be listened on.
    pub async fn publish(&self, port: u16, route: Route) -> io::Result<()> {
        let shared = &self.shared;
        let mut doors = shared.doors.lock().await;
        let since = clock::monotonic();
        let address = shared.settings.urls.address(route.session, port);
        if let Some(open) = doors.by_address.get_mut(&address) {
            let before = open.backend();
            if route.has_ended()
                && before.as_ref().is_some_and(|before| {
                    before.route.session != route.session && !before.route.has_ended()
                })
            {
                return Ok(());
            }
            open.since = since;
            open.current.send_replace(Some(Backend::new(
                route,
                before.as_deref(),
                &shared.tunnels,
            )));
            return Ok(());
        }
        let (current, watched) = watch::channel(Some(Backend::new(route, None, &shared.tunnels)));
        let door = Door::new(
            address.clone(),
            shared.admission.clone(),
            Arc::clone(&shared.home),
            watched,
            shared.gives_way.subscribe(),
            shared.settings.limits,
        );
        let listening = match &address {
            Address::Port(port) => Some(shared.listen(&mut doors, *port, Arc::new(door))?),
            Address::Name(name) => {
                shared.names.add(name, door);
                None
            }
        };
        let published = Published {
            current,
            listening,
            since,
        };
        doors.by_address.insert(address, published);
        if doors.sweeper.is_none() {
            doors.sweeper = Some(tokio::spawn(keep_sweeping(Arc::downgrade(&self.shared))));
        }
        Ok(())
    }

    /// Take in a channel to `session`'s app that its agent keeps ready: a connection to
    /// the server's own listener that the [`Desk`] has upgraded.
    pub fn take_in(&self, session: SessionId, channel: hyper::upgrade::Upgraded) {
        match desk::taken_back(channel) {
            Some((stream, worker)) => self.shared.tunnels.of(session).offer(stream, worker),
            None => tracing::debug!(%session, "its agent spoke on a channel before it was opened"),
        }
    }

    /// What has passed for `session`, which was given `port`.
    pub async fn passed(&self, port: u16, session: SessionId) -> Option<Passed> {
        let address = self.shared.settings.urls.address(session, port);
        let doors = self.shared.doors.lock().await;
        let backend = doors.by_address.get(&address)?.backend()?;
        let is_its_own = backend.route.session == session;
        is_its_own.then(|| backend.traffic.passed(clock::monotonic()))
    }

    /// What has passed for every session that has a door.
    pub async fn all_passed(&self) -> Vec<(SessionId, Passed)> {
        let now = clock::monotonic();
        let doors = self.shared.doors.lock().await;
        let backends = doors.by_address.values().filter_map(Published::backend);
        backends
            .map(|backend| (backend.route.session, backend.traffic.passed(now)))
            .collect()
    }

    /// Let go of inherited listeners that nothing was published on.
    pub async fn release_inherited(&self) {
        self.shared.doors.lock().await.inherited.clear();
    }

    /// Have agents on other hosts make channels to whoever accepts connections now.
    pub fn give_way_to_channels(&self) {
        self.shared.tunnels.give_way();
    }

    /// Accept no more visitors, and return what another gateway accepts them with.
    /// Those who are here stay until their exchange, or their upgraded connection,
    /// ends by itself.
    ///
    /// # Errors
    /// When a listener cannot be shared.
    pub async fn give_way(&self) -> io::Result<HashMap<u16, std::net::TcpListener>> {
        self.shared.gives_way.send_replace(true);
        let mut doors = self.shared.doors.lock().await;
        let mut given = std::mem::take(&mut doors.inherited);
        for (address, published) in &mut doors.by_address {
            let (Address::Port(port), Some(listening)) = (address, &mut published.listening) else {
                continue;
            };
            listening.accepting.abort();
            if let Some(socket) = listening.socket.take() {
                let descriptor = socket.as_fd().try_clone_to_owned()?;
                given.insert(*port, descriptor.into());
            }
        }
        Ok(given)
    }

    /// Wait until no visitor is left of those who were here when this gateway gave
    /// way.
    pub async fn all_left(&self) {
        for published in self.closing().await {
            published.current.closed().await;
        }
    }

    /// Close every door. Exchanges that are under way may finish for a few seconds;
    /// what then still runs is cut off. Upgraded connections are cut off at once.
    pub async fn shutdown(&self) {
        let mut closing = self.closing().await;
        for published in &mut closing {
            published.close().await;
        }
        let all_gone = async {
            for published in &closing {
                published.current.closed().await;
            }
        };
        let _ = tokio::time::timeout(SHUTDOWN_LIMIT, all_gone).await;
    }

    /// All doors, which nobody finds any more. Each connection holds a receiver, so the
    /// last one gone closes the door's channel.
    async fn closing(&self) -> Vec<Published> {
        let mut doors = self.shared.doors.lock().await;
        if let Some(sweeper) = doors.sweeper.take() {
            sweeper.abort();
        }
        self.shared.names.forget_all();
        doors.by_address.drain().map(|(_, door)| door).collect()
    }
}

/// The server's own listener, taking visitors.
pub struct Open(Listening);

impl Open {
    /// Take none any more. When this returns, the address can be listened on again.
    pub async fn close(mut self) {
        self.0.stop().await;
    }
}

impl Shared {
    /// Have visitors of `port` come to `door`.
    fn listen(&self, doors: &mut Doors, port: u16, door: Arc<Door>) -> io::Result<Listening> {
        let workers = doors.workers()?;
        let worker = workers.next().1.clone();
        let socket = {
            // The listener belongs to the thread that accepts.
            let _on_worker = worker.enter();
            Arc::new(match doors.inherited.remove(&port) {
                Some(inherited) => TcpListener::from_std(inherited)?,
                None => listen(SocketAddr::new(self.settings.bind, port))?,
            })
        };
        let reception = Reception::of_one(door, &self.settings, workers);
        let accepting = worker.spawn(reception.accept(Arc::clone(&socket)));
        Ok(Listening {
            socket: Some(socket),
            accepting,
        })
    }

    /// Close what nobody needs any more at `now`.
    async fn sweep(&self, now: Monotonic) {
        let mut doors = self.doors.lock().await;
        let mut stale = Vec::new();
        let mut open = HashSet::new();
        for (address, published) in &doors.by_address {
            let Some(backend) = published.backend() else {
                continue;
            };
            if let Some(pool) = &backend.app {
                pool.sweep(now);
            }
            if !backend.route.has_ended() {
                open.insert(backend.route.session);
            }
            if backend.route.has_ended() && now.since(published.since) >= SHOW_ENDED {
                stale.push(address.clone());
            }
        }
        self.tunnels.sweep(&open, now);
        for address in stale {
            if let Address::Name(name) = &address {
                self.names.forget(name);
            }
            if let Some(mut published) = doors.by_address.remove(&address) {
                published.close().await;
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

    use dwell_core::machine::Access;
    use dwell_core::owner::{Owner, UserId};
    use dwell_core::session::{EndReason, Ending};
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

    fn admission() -> Admission {
        Admission::new([7; 32]).unwrap().0
    }

    /// A gateway, and a port on which it shows `route`.
    async fn showing(route: Route) -> (Gateway, u16) {
        let gateway = Gateway::new(Ipv4Addr::LOCALHOST.into(), admission());
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
        let doors = gateway.shared.doors.lock().await;
        let backend = doors.by_address.get(&Address::Port(port))?.backend()?;
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
}
