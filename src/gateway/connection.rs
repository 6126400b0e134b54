//! A port's listener, and one visitor's connection to it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dwell_core::id::SessionId;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Current, exchange};
use crate::keys::KeyRing;

/// Visitors' connections that a port serves at once. More wait in the kernel, so that
/// one session's visitors cannot use up the files that the whole server may open.
const CONNECTIONS: usize = 1_024;
/// How long a request's head may take to come in, and a connection be kept without
/// one.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// The longest request head, in bytes.
const HEAD_SIZE: usize = 64 * 1_024;
/// What is buffered of a connection, in bytes, each way.
const BUFFER_SIZE: usize = 128 * 1_024;
/// How long an exchange may go on when its session is over.
const FINISH_LIMIT: Duration = Duration::from_secs(30);
/// What to wait when no connection can be accepted, as when files have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections of a port share.
pub(super) struct Door {
    port: u16,
    keys: KeyRing,
    current: Current,
    gives_way: Arc<AtomicBool>,
    http: http1::Builder,
    places: Arc<Semaphore>,
}

impl Door {
    pub(super) fn new(
        port: u16,
        keys: KeyRing,
        current: Current,
        gives_way: Arc<AtomicBool>,
    ) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_header_size(HEAD_SIZE)
            .max_buf_size(BUFFER_SIZE);
        Self {
            port,
            keys,
            current,
            gives_way,
            http,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

/// Accept connections until aborted.
pub(super) async fn accept(listener: Arc<TcpListener>, door: Arc<Door>) {
    while let Ok(place) = Arc::clone(&door.places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, from)) => {
                tokio::spawn(serve(stream, from, Arc::clone(&door), place));
            }
            Err(error) => {
                tracing::debug!(port = door.port, "cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One visitor's connection. It belongs to the session that was behind the port when
/// it was made, and to no other.
pub(super) struct Visit {
    door: Arc<Door>,
    pub(super) current: Current,
    pub(super) session: SessionId,
    pub(super) from: SocketAddr,
    upgrade: Mutex<Option<Upgrade>>,
}

/// Both ends of a connection that is to speak another protocol.
struct Upgrade {
    visitor: OnUpgrade,
    app: OnUpgrade,
}

impl Visit {
    pub(super) fn port(&self) -> u16 {
        self.door.port
    }

    pub(super) fn keys(&self) -> &KeyRing {
        &self.door.keys
    }

    /// Is the visitor to come back on a connection to another gateway?
    pub(super) fn gives_way(&self) -> bool {
        self.door.gives_way.load(Ordering::Relaxed)
    }

    /// Once the response that is now returned is sent, both ends speak another
    /// protocol.
    pub(super) fn upgrade(&self, visitor: OnUpgrade, app: OnUpgrade) {
        let mut upgrade = self.upgrade.lock().unwrap_or_else(PoisonError::into_inner);
        *upgrade = Some(Upgrade { visitor, app });
    }

    fn take_upgrade(&self) -> Option<Upgrade> {
        let mut upgrade = self.upgrade.lock().unwrap_or_else(PoisonError::into_inner);
        upgrade.take()
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, door: Arc<Door>, _place: OwnedSemaphorePermit) {
    let current = door.current.clone();
    let Some((session, had_ended)) = current
        .borrow()
        .as_ref()
        .map(|backend| (backend.route.session, backend.route.has_ended()))
    else {
        return;
    };
    let mut over = pin!(session_over(current.clone(), session, had_ended));
    let visit = Arc::new(Visit {
        door,
        current,
        session,
        from: SocketAddr::new(from.ip().to_canonical(), from.port()),
        upgrade: Mutex::default(),
    });
    let service = service_fn(|request| {
        let visit = Arc::clone(&visit);
        async move { Ok::<_, Infallible>(exchange::answer(&visit, request).await) }
    });
    let io = TokioIo::new(stream);
    let mut connection = pin!(
        visit
            .door
            .http
            .serve_connection(io, service)
            .with_upgrades()
    );
    tokio::select! {
        // Its error is the visitor's doing: a head that is malformed (hyper has said
        // so), or gone in the middle.
        _ = connection.as_mut() => {}
        () = over.as_mut() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(FINISH_LIMIT, connection).await;
            return;
        }
    }
    if let Some(upgrade) = visit.take_upgrade() {
        tokio::select! {
            () = relay(upgrade) => {}
            () = over => {}
        }
    }
}

/// Carry bytes both ways until both ends are done, or one is gone.
async fn relay(upgrade: Upgrade) {
    let (Ok(visitor), Ok(app)) = tokio::join!(upgrade.visitor, upgrade.app) else {
        return;
    };
    let (mut visitor, mut app) = (TokioIo::new(visitor), TokioIo::new(app));
    // How it ended is between the two of them.
    let _ = tokio::io::copy_bidirectional(&mut visitor, &mut app).await;
}

/// Waits until `session` is no longer behind the port, or has ended if it had not.
async fn session_over(mut current: Current, session: SessionId, had_ended: bool) {
    // An error says that the port is closed.
    let _ = current
        .wait_for(|backend| {
            backend.as_ref().is_none_or(|backend| {
                backend.route.session != session || (backend.route.has_ended() && !had_ended)
            })
        })
        .await;
}
