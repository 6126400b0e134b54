//! The records of a server, and its part among the servers that share them.

use std::path::PathBuf;
use std::sync::Arc;

use dwell_core::control_plane::Settings;
use dwell_core::gpu::Inventory;
use tokio::sync::watch;

use super::StartError;
use crate::config::{Config, PlaceConfig, host_of};
use crate::driver::{Driver, Effects, Role, Running};
use crate::member::{self, Member, Membership, Won};
use crate::store::postgres::{Address, Candidate, Postgres, Tickets};
use crate::store::{Store, StoreAt};

/// What there is to begin with.
pub(super) enum Records {
    /// Nobody else has them.
    Own(Arc<dyn Store>),
    /// They may be others' too.
    Shared(Shared),
}

/// Records in a database.
pub(super) struct Shared {
    store: Arc<Postgres>,
    candidate: Candidate,
    /// If this server leads.
    won: Option<Won>,
    leader_file: Option<PathBuf>,
}

impl Records {
    /// Open them for the server that listens at `listens_at`, on a host that has this.
    pub(super) async fn open(
        config: &Config,
        listens_at: std::net::SocketAddr,
        inventory: &Inventory,
    ) -> Result<Self, StartError> {
        match &config.store {
            StoreAt::DataDir => Ok(Self::Own(
                config.store.open(&config.data_dir.store()).await?,
            )),
            StoreAt::Postgres(address) => {
                let shared = Shared::join(config, address, listens_at, inventory).await?;
                Ok(Self::Shared(shared))
            }
        }
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Own(store) => Arc::clone(store),
            Self::Shared(shared) => Arc::clone(&shared.store) as Arc<dyn Store>,
        }
    }

    /// By which tickets are redeemed, where several servers do.
    pub(super) fn tickets(&self) -> Option<Tickets> {
        match self {
            Self::Own(_) => None,
            Self::Shared(shared) => Some(shared.store.tickets()),
        }
    }

    /// Does this server decide, to begin with?
    pub(super) const fn leads(&self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Shared(shared) => shared.won.is_some(),
        }
    }

    /// Which servers serve besides each other, as far as it is known to begin with.
    pub(super) const fn servers(&self) -> Option<Vec<String>> {
        match self {
            Self::Own(_) => Some(Vec::new()),
            Self::Shared(_) => None,
        }
    }

    /// Take up what is on record, to decide or to show it; which `servers` serve is said
    /// while this one leads.
    pub(super) fn drive(
        self,
        settings: Settings,
        effects: Effects,
        servers: watch::Sender<Option<Vec<String>>>,
    ) -> (Driver, Running, Option<Membership>) {
        let store = self.store();
        match self {
            Self::Own(_) => {
                let to_load = Arc::clone(&store);
                let load = async move {
                    let loaded = member::load(&*to_load, settings).await;
                    loaded.map_err(|error| error.0)
                };
                let (driver, running) = Driver::start(load, store, effects);
                (driver, running, None)
            }
            Self::Shared(shared) => {
                let role = match shared.won {
                    Some(_) => Role::Leads,
                    None => Role::Follows(None),
                };
                let (driver, helm, running) = Driver::under_helm(role, store, effects);
                let member = Member {
                    store: shared.store,
                    candidate: shared.candidate,
                    helm,
                    settings,
                    leader_file: shared.leader_file,
                    servers,
                };
                (driver, running, Some(member.start(shared.won)))
            }
        }
    }
}

impl Shared {
    async fn join(
        config: &Config,
        address: &Address,
        listens_at: std::net::SocketAddr,
        inventory: &Inventory,
    ) -> Result<Self, StartError> {
        let url = config.advertise_url.clone().unwrap_or_else(|| {
            let (host, port) = (host_of(listens_at.ip()), listens_at.port());
            format!("http://{host}:{port}")
        });
        let id = config.data_dir.server_id()?;
        let candidate = Candidate { id, url };
        let store = Arc::new(Postgres::join(address).await?);
        let sessions_dir = config.launcher.sessions_dir.as_ref();
        let won = match member::claim(&store, &candidate).await? {
            Ok(won) => Some(won),
            Err(held) if sessions_dir.is_some() => {
                let has_apps =
                    config.places.contains(&PlaceConfig::Host) && inventory.iter().next().is_some();
                if has_apps && config.launcher.server.is_none() {
                    may_follow(&candidate.url, &held.url).map_err(StartError)?;
                }
                None
            }
            Err(held) => {
                return Err(StartError(format!(
                    "{address} is written by the server at {}; several servers must all reach \
                     their sessions' directories: name where, as sessions_dir of the [[launcher]] \
                     in each one's config file, or stop that one",
                    held.url
                )));
            }
        };
        let sessions = config.launcher.sessions(&config.data_dir);
        let leader_file = sessions_dir.map(|_| sessions.leader_file());
        Ok(Self {
            store,
            candidate,
            won,
            leader_file,
        })
    }
}

/// Whether a server at `own` may lead visitors to apps beside the one that leads, at `leader`:
/// on another host their addresses are other programs'.
fn may_follow(own: &str, leader: &str) -> Result<(), String> {
    let host = |url: &str| {
        let uri = url.parse::<hyper::Uri>().ok();
        uri.and_then(|uri| uri.host().map(str::to_owned))
    };
    if host(own) == host(leader) {
        return Ok(());
    }
    Err(format!(
        "the server that leads is at {leader}, and this one at {own}: visitors reach the apps of \
         another host through their agents only; set server_url of the [[launcher]] kind = \
         \"local\" in each one's config file, to the address of what is in front of them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_another_host_reaches_no_apps_by_their_addresses() {
        let refused = may_follow("http://10.0.0.2:8080", "http://10.0.0.1:8080").unwrap_err();
        assert!(refused.contains("set server_url"), "{refused}");
        let one_host = may_follow("http://127.0.0.1:8081", "http://127.0.0.1:8080");
        assert_eq!(one_host, Ok(()));
    }
}
