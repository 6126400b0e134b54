//! The server: the parts put together, one listener, and the way down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dwell_core::control_plane::{ControlPlane, Settings, Snapshot};
use dwell_core::id::KeyId;
use dwell_core::key::Key;
use dwell_core::owner::{Principal, UserId};
use dwell_core::ports::PortPool;
use tokio::net::TcpListener;
use tokio::sync::watch;
use uuid::Uuid;

use crate::api::{self, Api};
use crate::clock;
use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError, DataDirLock, ServerFile};
use crate::driver::{Driver, Effects, Running};
use crate::failpoint::{self, Point};
use crate::gateway::Gateway;
use crate::gpus;
use crate::keys::{self, AgentSecrets, KeyRing};
use crate::launcher::local::Local;
use crate::store::sqlite::Sqlite;
use crate::store::{Store, StoreError};
use crate::tunnel::{Switchboard, Tunnel};

/// How long open requests may take to finish when the server goes.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Why the server could not start: one sentence that names what is wrong and what
/// to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

impl From<DataDirError> for StartError {
    fn from(error: DataDirError) -> Self {
        Self(error.to_string())
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self(error.0)
    }
}

/// What happens to open sessions when a server shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// They go on by themselves.
    LeaveSessions,
    /// They are ended first.
    EndSessions,
}

/// A server at work.
pub struct Server {
    url: String,
    admin_key: String,
    data_dir: DataDir,
    gateway: Gateway,
    driver: Driver,
    driving: Running,
    end_within: Duration,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
    _lock: DataDirLock,
}

impl Server {
    /// Take the data directory, open the store, take up what was going on, listen.
    ///
    /// # Errors
    /// When the directory, the store or the address cannot be had.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let data_dir = config.data_dir.clone();
        data_dir.create()?;
        let lock = data_dir.hold()?;
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&data_dir.store())?);
        let (listener, address) = listen(config.listen).await?;
        let url = format!("http://{address}");

        let cores = std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        let (inventory, notes) = gpus::inventory(&config.declared_gpus, cores);
        for note in notes {
            tracing::info!("{note}");
        }
        let settings = Settings {
            limits: config.limits.clone(),
            prices: config.prices.clone(),
            inventory,
            ports: PortPool::new(config.session_ports.clone(), first_port(&config)),
        };
        let snapshot = store.load().await?;
        log_what_goes_on(&snapshot);
        let plane = ControlPlane::recover(settings, snapshot, clock::now());
        let inventory = plane.settings().inventory.clone();
        let admin_key = first_key(&data_dir)?;
        let admin_key_hash = keys::hash(&admin_key);
        // One that was revoked is on record too, and stays revoked.
        let is_on_record = plane.keys().any(|key| key.hash == admin_key_hash);

        let secrets = AgentSecrets::new(store.server_secret().await?);
        let key_ring = KeyRing::default();
        let switchboard = Switchboard::default();
        let gateway = Gateway::new(address.ip(), key_ring.clone());
        let launcher = Local::new(
            data_dir.clone(),
            secrets.clone(),
            config.limits.heartbeat,
            config.app_limits,
        );
        // Agents read this before they call, so it stands before any is launched.
        data_dir.write_server_file(&ServerFile {
            url: url.clone(),
            pid: std::process::id(),
        })?;
        let effects = Effects::new(
            Arc::new(launcher),
            gateway.clone(),
            switchboard.clone(),
            key_ring.clone(),
            config.access,
        );
        let (driver, running) = Driver::start(plane, Arc::clone(&store), effects);
        if !is_on_record {
            put_first_key_on_record(&driver, &admin_key).await?;
        }
        let end_within = Duration::from(config.limits.grace) + DRAIN_MAX;
        let tunnel = Tunnel {
            driver: driver.clone(),
            secrets,
            switchboard,
            silence_max: Duration::from(config.limits.lost_after),
        };
        let api = Api {
            driver: driver.clone(),
            store,
            keys: key_ring,
            data_dir: data_dir.clone(),
            session_host: config.session_host,
            default_access: config.access,
            limits: config.limits,
            inventory,
            prices: config.prices,
        };
        let (stop, stopped) = watch::channel(false);
        let app = api::router(api).merge(tunnel.router());
        let serving = tokio::spawn(serve(listener, app, stopped));
        tracing::info!("listening on {url}");
        Ok(Self {
            url,
            admin_key,
            data_dir,
            gateway,
            driver,
            driving: running,
            end_within,
            stop,
            serving,
            _lock: lock,
        })
    }

    /// Where it listens: a bare origin.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The key in the data directory's `admin.key`.
    #[must_use]
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// Take no more requests, answer those that wait, stop.
    pub async fn shutdown(self, mode: ShutdownMode) {
        match mode {
            ShutdownMode::LeaveSessions => {}
            ShutdownMode::EndSessions => self.end_sessions().await,
        }
        self.stop.send_replace(true);
        if tokio::time::timeout(DRAIN_MAX, self.serving).await.is_err() {
            tracing::warn!("some requests did not finish within {DRAIN_MAX:?} and were cut off");
        }
        self.driving.stop().await;
        self.gateway.shutdown().await;
        self.data_dir.remove_server_file();
    }

    async fn end_sessions(&self) {
        let asked = self.driver.ask(|plane, now| {
            plane.cancel_all(now);
            Ok(plane
                .open_sessions()
                .map(|session| session.id)
                .collect::<Vec<_>>())
        });
        let ids = match asked.await {
            Ok(ids) => ids,
            Err(error) => return tracing::error!("the sessions could not be ended: {error}"),
        };
        let all_ended = async {
            for mut states in ids.into_iter().filter_map(|id| self.driver.watch(id)) {
                let _ = states.wait_for(|session| !session.is_open()).await;
            }
        };
        if tokio::time::timeout(self.end_within, all_ended)
            .await
            .is_err()
        {
            tracing::warn!("some sessions are still ending; their agents see to it");
        }
    }
}

/// Serve until told to stop, then let open requests finish.
async fn serve(listener: TcpListener, app: axum::Router, mut stopped: watch::Receiver<bool>) {
    let told = async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    if let Err(error) = axum::serve(listener, app)
        .with_graceful_shutdown(told)
        .await
    {
        tracing::error!("the listener failed: {error}");
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let refused = |error: std::io::Error| {
        StartError(if error.kind() == std::io::ErrorKind::AddrInUse {
            format!(
                "{address} is in use by another program; stop that or choose another with --listen"
            )
        } else {
            format!("cannot listen on {address}: {error}")
        })
    };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

/// Where the circle of session ports begins: elsewhere at each start, so that two
/// servers of one host with the same range seldom meet.
fn first_port(config: &Config) -> u16 {
    let (start, end) = (*config.session_ports.start(), *config.session_ports.end());
    let [high, low, ..] = *Uuid::new_v4().as_bytes();
    start + u16::from_be_bytes([high, low]) % (end - start).max(1)
}

fn log_what_goes_on(snapshot: &Snapshot) {
    if !snapshot.sessions.is_empty() {
        tracing::info!("{} open sessions are taken up", snapshot.sessions.len());
    }
}

/// The key in `admin.key`, which is made if it is not there. Its file stands before
/// it is on record: after a crash in between, the next start finds and records it.
fn first_key(data_dir: &DataDir) -> Result<String, StartError> {
    if let Some(secret) = data_dir.read_admin_key() {
        return Ok(secret);
    }
    let secret = new_secret()?;
    data_dir.write_admin_key(&secret)?;
    tracing::info!("the first key is in {}", data_dir.admin_key().display());
    failpoint::cross(Point::ServerAfterKeyFile);
    Ok(secret)
}

async fn put_first_key_on_record(driver: &Driver, secret: &str) -> Result<(), StartError> {
    let principal = Principal {
        user: UserId("admin".to_owned()),
        org: None,
        admin: true,
    };
    let key = key_of(secret, principal, "admin.key");
    driver
        .ask(move |plane, _now| plane.create_key(key, None))
        .await
        .map_err(|error| StartError(error.to_string()))
}

fn new_secret() -> Result<String, StartError> {
    keys::new_secret()
        .map_err(|error| StartError(format!("the system has no randomness to give: {error}")))
}

fn key_of(secret: &str, principal: Principal, name: &str) -> Key {
    Key {
        id: KeyId(Uuid::new_v4()),
        name: name.to_owned(),
        hash: keys::hash(secret),
        principal,
        created_at: clock::wall(),
        revoked_at: None,
    }
}

/// A key made at the machine itself while no server runs. Returns its secret.
///
/// # Errors
/// When a server has the data directory, or it cannot be written.
pub async fn create_key_offline(
    data_dir: &DataDir,
    principal: Principal,
    name: &str,
) -> Result<String, StartError> {
    data_dir.create()?;
    let _lock = data_dir.hold()?;
    let store = Sqlite::open(&data_dir.store())?;
    let snapshot = store.load().await?;
    let settings = Settings {
        limits: dwell_core::limits::Limits::default(),
        prices: dwell_core::pricing::Prices::default(),
        inventory: dwell_core::gpu::Inventory::default(),
        ports: PortPool::new(0..=0, 0),
    };
    let mut plane = ControlPlane::recover(settings, snapshot, clock::now());
    let secret = new_secret()?;
    let key = key_of(&secret, principal, name);
    plane
        .create_key(key, None)
        .map_err(|refusal| StartError(refusal.to_string()))?;
    store.commit(plane.changes()).await?;
    Ok(secret)
}
