//! The server: the parts put together, one listener, and the way down.

mod local_keys;
mod records;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use dwell_core::control_plane::Settings;
use dwell_core::job::{self, Offer};
use dwell_core::placement::Places;
use dwell_core::ports::PortPool;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::acme::Renewal;
use crate::admission::{Admission, Redemption};
use crate::agents::{self, Agents};
use crate::api::{self, Api};
use crate::config::{Config, PlaceConfig, TlsFiles, host_of};
use crate::data_dir::{DataDir, DataDirError, DataDirLock, ServerFile};
use crate::driver::{Driver, Effects, Running};

use crate::gate::Gate;
use crate::gateway::{self, Desk, Gateway, Issued, Open, TimeLimits, Tls, TlsError};
use crate::gpus;
use crate::keys::{self, AgentSecrets, SlugSecret};
use crate::launcher::Launchers;
use crate::launcher::cluster::{ClusterLauncher, ClusterSettings};
use crate::launcher::local::Local;
use crate::member::Membership;
use crate::peers::Peers;
use crate::session_urls::{Origin, Scheme, SessionUrls};
use crate::store::StoreError;
use crate::store::postgres::Tickets;
use crate::sweep;
use crate::takeover::{Doorbell, Listeners, Successor};
use crate::tunnel::{Switchboard, Tunnel};
pub use local_keys::create_key_offline;
use local_keys::{first_key, put_first_key_on_record};
use records::Records;

/// How long open requests may take to finish when the server goes.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long the store may take for what it was told last, then.
const STOP_MAX: Duration = Duration::from_secs(15);
/// How long a connection is kept for its next request once another server has taken
/// over.
const KEEP_IDLE: Duration = Duration::from_secs(10);
/// Where an ACME authority looks at a name.
const HTTPS_PORT: u16 = 443;
/// How often the certificate's files are looked at.
const LOOK_AT_CERTIFICATE_EVERY: Duration = Duration::from_secs(5);

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

impl From<TlsError> for StartError {
    fn from(error: TlsError) -> Self {
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
    admin_key: Option<String>,
    data_dir: DataDir,
    gate: Gate,
    gateway: Gateway,
    switchboard: Switchboard,
    driver: Driver,
    driving: Running,
    membership: Option<Membership>,
    end_within: Duration,
    listener: TcpListener,
    open: Open,
    desk: Desk,
    background: JoinSet<()>,
    lock: DataDirLock,
}

impl Server {
    /// Take the data directory, open the store, listen, and begin to take up what was
    /// going on: see [`Server::loaded`]. With listeners of another server's, listen
    /// with those.
    ///
    /// # Errors
    /// When the directory, the store or the address cannot be had.
    pub async fn start(config: Config, inherited: Option<Listeners>) -> Result<Self, StartError> {
        let data_dir = config.data_dir.clone();
        data_dir.create()?;
        let lock = data_dir.hold()?;
        let sessions = config.launcher.sessions(&data_dir);
        sessions.create()?;
        let (listener, session_listeners) = match inherited {
            Some(Listeners { api, sessions }) => (api, sessions),
            None => (listen(config.listen)?, HashMap::new()),
        };
        let cannot_listen = |error| StartError(format!("cannot listen: {error}"));
        let address = listener.local_addr().map_err(cannot_listen)?;
        let url = format!("http://{address}");
        let cores = std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        let (inventory, notes) = gpus::inventory(&config.declared_gpus, cores);
        let records = Records::open(&config, address, &inventory).await?;
        for note in notes {
            tracing::info!("{note}");
        }
        let store = records.store();
        let renewal = config.acme.clone().map(|acme| {
            let issued = Issued::default();
            (Renewal::new(acme, &data_dir, issued.clone()), issued)
        });
        let (renewal, issued) = renewal.unzip();
        let tls = tls(config.tls.as_ref(), issued)?;

        let settings = Settings {
            limits: config.limits.clone(),
            prices: config.prices.clone(),
            places: Places {
                inventory,
                offers: config.places.iter().map(|it| offer(it, &config)).collect(),
            },
            ports: PortPool::new(config.session_ports.clone(), first_port(&config)),
        };
        // One that follows has the keys of the one that leads.
        let admin_key = if records.leads() {
            Some(first_key(&data_dir)?)
        } else {
            data_dir.read_admin_key()
        };
        let server_secret = store.server_secret().await?;
        let secrets = AgentSecrets::new(server_secret);
        let urls = session_urls(&config, address.port(), SlugSecret::new(server_secret));
        let no_randomness = |error| StartError(format!("the system has no randomness: {error}"));
        let (mut admission, mut visits) = Admission::new(server_secret).map_err(no_randomness)?;
        let mut background = JoinSet::new();
        if let Some(tickets) = records.tickets() {
            let (shared, to_redeem) = admission.shared();
            admission = shared;
            background.spawn(redeem(tickets, to_redeem));
        }
        let admin_key_hash = admin_key.as_deref().map(keys::hash);
        // One that was revoked is on record too, and stays revoked.
        let mut is_on_record = false;
        for key in store.all_keys().await? {
            is_on_record |= Some(key.hash) == admin_key_hash;
            admission.keys.publish(key);
        }
        let switchboard = Switchboard::default();
        let doors = gateway::Settings {
            bind: address.ip(),
            urls: urls.clone(),
            limits: TimeLimits::default(),
            tls: tls.clone(),
        };
        let gateway = Gateway::with(doors, admission.clone(), session_listeners);
        let launcher = Local::new(
            &data_dir,
            config.launcher.clone(),
            secrets.clone(),
            config.limits.heartbeat,
            config.app_limits,
        );
        // Agents read this before they call, so it stands before any is launched.
        data_dir.write_server_file(&ServerFile {
            url: url.clone(),
            pid: std::process::id(),
        })?;
        let (leads, servers) = (records.leads(), watch::Sender::new(records.servers()));
        let agents = Agents::new(data_dir.agents(), servers.subscribe());
        let is_cluster = |place: &PlaceConfig| *place != PlaceConfig::Host;
        let agent = if config.places.iter().any(is_cluster) {
            let agent = agents.take_in(agents::own()).await;
            agent.map_err(|why| StartError(format!("there is no agent to hand out: {why}")))?
        } else {
            String::new()
        };
        let clusters = clusters(&config, &secrets, address, &agent)?;
        if !clusters.is_empty() {
            let retention = Duration::from(config.limits.retention);
            background.spawn(agents.clone().keep(agent, retention));
        }
        let launchers = Launchers::new(Arc::new(launcher), clusters.clone());
        let places = settings.places.clone();
        let effects = Effects::new(
            launchers.clone(),
            gateway.clone(),
            switchboard.clone(),
            admission.clone(),
            config.access,
        );
        let (driver, driving, membership) = records.drive(settings, effects, servers.clone());
        if let Some(key) = admin_key.as_deref().filter(|_| leads && !is_on_record) {
            put_first_key_on_record(&driver, key).await?;
        }
        let end_within = Duration::from(config.limits.grace) + DRAIN_MAX;
        let tunnel = Tunnel {
            driver: driver.clone(),
            secrets,
            switchboard: switchboard.clone(),
            gateway: gateway.clone(),
            servers: servers.subscribe(),
            peers: Peers::default(),
            sessions: sessions.clone(),
            log_bytes_max: config.app_limits.log_mib.saturating_mul(1 << 20),
            silence_max: Duration::from(config.limits.lost_after),
        };
        let retention = config.limits.retention;
        let gate = Gate::new(driver.role());
        let api = Api {
            driver: driver.clone(),
            store,
            gate: gate.clone(),
            gateway: gateway.clone(),
            admission,
            sessions: sessions.clone(),
            urls: urls.clone(),
            default_access: config.access,
            limits: config.limits,
            places,
            launchers,
            prices: config.prices,
            engine: config.launcher.engine.clone(),
        };
        background.spawn(sweep::keep_sweeping(
            driver.clone(),
            sessions,
            config.launcher.engine,
            retention,
        ));
        for cluster in clusters {
            background.spawn(cluster.keep_looking(driver.clone()));
        }
        let recorder = driver.clone();
        background.spawn(async move {
            while let Some(visit) = visits.recv().await {
                recorder.share_visited(visit).await;
            }
        });
        if let Some(renewal) = renewal {
            if address.port() != HTTPS_PORT {
                tracing::info!(
                    "to give a certificate, the authority comes to port {HTTPS_PORT} of each name; \
                     something must lead it to {address}"
                );
            }
            background.spawn(renewal.go_on());
        }
        if let Some(tls) = tls {
            background.spawn(tls.keep_fresh(LOOK_AT_CERTIFICATE_EVERY));
        }
        let desk = Desk::new(
            api::router(api)
                .merge(tunnel.router())
                .merge(agents.router()),
        );
        if membership.is_some() {
            // Another serves visitors until this one knows where to lead them.
            driver.loaded().await.map_err(StartError)?;
        }
        let shared = listener.try_clone().map_err(cannot_listen)?;
        let open = gateway.receive(shared, desk.clone()).await;
        let open = open.map_err(cannot_listen)?;
        tracing::info!("listening on {url}");
        if let Some(domain) = urls.domain() {
            let scheme = urls.scheme().as_str();
            tracing::info!("sessions are at {scheme}://NAME.{domain}");
        }
        Ok(Self {
            url,
            admin_key,
            data_dir,
            gate,
            gateway,
            switchboard,
            driver,
            driving,
            membership,
            end_within,
            listener,
            open,
            desk,
            background,
            lock,
        })
    }

    /// Where it listens: a bare origin.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The key in the data directory's `admin.key`, if there is one.
    #[must_use]
    pub fn admin_key(&self) -> Option<&str> {
        self.admin_key.as_deref()
    }

    /// Wait until all that was going on has been taken up. Requests are accepted
    /// before, and those that would change something wait.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn loaded(&self) -> Result<(), StartError> {
        self.driver.loaded().await.map_err(StartError)?;
        self.gateway.release_inherited().await;
        Ok(())
    }

    /// The next server that asks to take over from this one. Until this is called, and
    /// when it is not waited for any more, none can.
    pub async fn asked_to_give_way(&self) -> Successor {
        match Doorbell::hang(&self.data_dir) {
            Ok(doorbell) => doorbell.rung().await,
            Err(error) => {
                tracing::warn!("no other server can take over from this one: {error}");
                std::future::pending().await
            }
        }
    }

    /// Let `successor` take over. What is open here goes on until it ends by itself:
    /// see [`Finishing`]. If the successor fails, what it was given is returned, for
    /// another [`Server::start`].
    ///
    /// # Errors
    /// When files have run out, so that nothing can be handed over: this server has
    /// stopped, and none serves until one is started.
    pub async fn give_way(
        self,
        successor: Successor,
    ) -> Result<(Finishing, Option<Listeners>), StartError> {
        let Self {
            gate,
            gateway,
            switchboard,
            driving,
            membership,
            listener,
            open,
            desk,
            background,
            lock,
            ..
        } = self;
        // What the successor begins is none of ours to sweep.
        drop(background);
        open.close().await;
        gate.close().await;
        let listeners = share(&listener, &gateway).await;
        drop(listener);
        driving.stop().await;
        if let Some(membership) = membership {
            membership.give_way().await;
        }
        switchboard.hang_up_all();
        drop(lock);
        let listeners = listeners
            .map_err(|error| StartError(format!("the listeners cannot be shared: {error}")))?;
        if let Ok(address) = listeners.api.local_addr() {
            gate.lead_to(address);
        }
        let finishing = Finishing { gateway, desk };
        let given = tokio::task::spawn_blocking(move || {
            let given = successor
                .give(&listeners)
                .and_then(|()| successor.give_way());
            given.map_err(|error| (error, listeners))
        });
        let back = match given.await {
            Ok(Ok(())) => None,
            Ok(Err((error, listeners))) => {
                tracing::error!("the server that was to take over failed ({error}); going on");
                Some(listeners)
            }
            Err(error) => return Err(StartError(error.to_string())),
        };
        // Some call through other servers, and hear nothing of this.
        finishing.gateway.give_way_to_channels();
        Ok((finishing, back))
    }

    /// Take no more requests, answer those that wait, stop.
    pub async fn shutdown(self, mode: ShutdownMode) {
        match mode {
            ShutdownMode::LeaveSessions => {}
            ShutdownMode::EndSessions => self.end_sessions().await,
        }
        self.gate.leave();
        self.open.close().await;
        // Who comes now is better told that nobody listens: there may be other servers.
        drop(self.listener);
        let finished = self.desk.finish();
        if tokio::time::timeout(DRAIN_MAX, finished).await.is_err() {
            tracing::warn!("some requests did not finish within {DRAIN_MAX:?} and were cut off");
        }
        if tokio::time::timeout(STOP_MAX, self.driving.stop())
            .await
            .is_err()
        {
            tracing::warn!("the store does not answer; what it was told last may be on record");
        }
        if let Some(membership) = self.membership {
            membership.leave().await;
        }
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
            for id in ids {
                if let Some(mut states) = self.driver.watch(id).await {
                    let _ = states.wait_for(|session| !session.is_open()).await;
                }
            }
            // Each agent goes once it has heard that its session's end is on record.
            self.switchboard.all_hung_up().await;
        };
        if tokio::time::timeout(self.end_within, all_ended)
            .await
            .is_err()
        {
            tracing::warn!("some sessions are still ending; their agents see to it");
        }
    }
}

/// What is left of a server that gave way: connections that were open then.
pub struct Finishing {
    gateway: Gateway,
    desk: Desk,
}

impl Finishing {
    /// Until the last of them has ended by itself.
    pub async fn finish(self) {
        let api = async {
            // Each closes after its next answer, and that comes from the successor.
            tokio::time::sleep(KEEP_IDLE).await;
            self.desk.finish().await;
        };
        tokio::join!(api, self.gateway.all_left());
    }
}

/// All that is listened with, for another server too.
async fn share(listener: &TcpListener, gateway: &Gateway) -> io::Result<Listeners> {
    Ok(Listeners {
        api: listener.try_clone()?,
        sessions: gateway.give_way().await?,
    })
}

/// Redeem tickets until nobody has any.
async fn redeem(mut tickets: Tickets, mut to_redeem: mpsc::Receiver<Redemption>) {
    while let Some((nonce, reply)) = to_redeem.recv().await {
        let is_first = tickets.redeem(&nonce).await.unwrap_or_else(|error| {
            tracing::warn!("a ticket is refused that cannot be redeemed: {error}");
            false
        });
        // Who showed it may have gone.
        let _ = reply.send(is_first);
    }
}

/// What connections are encrypted by, if they are.
fn tls(files: Option<&TlsFiles>, issued: Option<Issued>) -> Result<Option<Tls>, TlsError> {
    if files.is_none() && issued.is_none() {
        return Ok(None);
    }
    let files = files.map(|files| (files.certificate.as_path(), files.key.as_path()));
    Tls::with(files, issued).map(Some)
}

/// Where sessions are reached, `port` being the one that is listened on.
fn session_urls(config: &Config, port: u16, slugs: SlugSecret) -> SessionUrls {
    let scheme = if config.tls.is_some() || config.acme.is_some() {
        Scheme::Https
    } else {
        Scheme::Http
    };
    match &config.domain {
        None => SessionUrls::ports(scheme, config.session_host.clone(), port),
        Some(domain) => {
            let origin = domain.origin.unwrap_or(Origin { scheme, port });
            SessionUrls::names(&domain.name, origin, slugs)
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let refused = |error: io::Error| {
        StartError(if error.kind() == io::ErrorKind::AddrInUse {
            format!(
                "{address} is in use by another program; stop that or choose another with --listen"
            )
        } else {
            format!("cannot listen on {address}: {error}")
        })
    };
    let listener = TcpListener::bind(address).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}

/// Where the circle of session ports begins: elsewhere at each start, so that two
/// servers of one host with the same range seldom meet.
fn first_port(config: &Config) -> u16 {
    let (start, end) = (*config.session_ports.start(), *config.session_ports.end());
    let [high, low, ..] = *Uuid::new_v4().as_bytes();
    start + u16::from_be_bytes([high, low]) % (end - start).max(1)
}

/// What the core is to know of a place.
fn offer(place: &PlaceConfig, config: &Config) -> Offer {
    match place {
        PlaceConfig::Host => Offer::Host {
            runs_images: config.launcher.engine.is_some(),
        },
        PlaceConfig::Cluster(cluster) => Offer::Cluster(job::Cluster {
            name: cluster.settings.name.clone(),
            gpu_types: cluster.settings.gpus.keys().cloned().collect(),
            jobs_max: cluster.settings.jobs_max,
            runs_images: cluster.engine.runs_images(),
            moves_time_limits: cluster.engine.moves_time_limits(),
        }),
    }
}

/// The launchers of all clusters that the configuration names; jobs may fetch the agent with
/// the hash `agent`.
fn clusters(
    config: &Config,
    secrets: &AgentSecrets,
    listens_at: SocketAddr,
    agent: &str,
) -> Result<Vec<Arc<ClusterLauncher>>, StartError> {
    let of_place = |place: &PlaceConfig| match place {
        PlaceConfig::Host => None,
        PlaceConfig::Cluster(cluster) => Some(cluster.clone()),
    };
    let clusters = config.places.iter().filter_map(of_place).map(|cluster| {
        let installation = secrets.installation();
        let engine = cluster.engine.connect(&cluster.settings, &installation);
        let server_url = where_nodes_reach_us(config, &cluster.settings, listens_at)?;
        Ok(Arc::new(ClusterLauncher::new(
            cluster.settings,
            server_url,
            engine,
            secrets.clone(),
            config.limits.heartbeat,
            config.app_limits,
            agent,
        )))
    });
    clusters.collect()
}

/// What a cluster's agents are told to call.
fn where_nodes_reach_us(
    config: &Config,
    cluster: &ClusterSettings,
    listens_at: SocketAddr,
) -> Result<String, StartError> {
    let said = cluster
        .server_url
        .as_ref()
        .or(config.advertise_url.as_ref());
    if let Some(url) = said {
        return Ok(url.clone());
    }
    let name = &cluster.name;
    if config.tls.is_some() || config.acme.is_some() {
        return Err(StartError(format!(
            "launcher {name}: its nodes know this server by the name in its certificate; say \
             which, as server_url of the [[launcher]] or advertise_url"
        )));
    }
    if listens_at.ip().is_loopback() {
        tracing::warn!(
            "the nodes of {name} do not reach {listens_at}, unless they are this host; listen \
             elsewhere, or say where they do as server_url of the [[launcher]]"
        );
    }
    let (host, port) = (host_of(listens_at.ip()), listens_at.port());
    Ok(format!("http://{host}:{port}"))
}
