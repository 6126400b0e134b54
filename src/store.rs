//! What is on record.
//!
//! One writer (the driver), any number of readers. Whoever reads a tenant's rows
//! says whose: a query without an owner does not compile. What is newest is what was
//! created last; of what was created in one moment, the lowest id comes first.
//!
//! What a store promises is told, story by story, in `tests/store/conformance.rs`.

mod columns;
pub mod copy;
pub mod postgres;
pub mod sqlite;
mod whole;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use dwell_core::control_plane::{Change, Snapshot};
use dwell_core::id::{MachineId, MachineVersionId, SessionId};
use dwell_core::key::Key;
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::owner::Owner;
use dwell_core::session::Session;
use dwell_core::share::Share;
use dwell_core::time::Timestamp;

/// Why the store could not do it. The sentence names the file or server and says
/// what to do, where there is something to be done.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAt {
    /// In the data directory, by SQLite.
    DataDir,
    /// In a Postgres database.
    Postgres(postgres::Address),
}

impl StoreAt {
    /// Opens the store, to read and to write, from whoever has it; in `file` if it is
    /// SQLite's.
    ///
    /// # Errors
    /// See [`sqlite::Sqlite::open`] and [`postgres::Postgres::open`].
    pub async fn open(&self, file: &Path) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::DataDir => Arc::new(sqlite::Sqlite::open(file)?),
            Self::Postgres(address) => Arc::new(postgres::Postgres::open(address).await?),
        })
    }
}

/// A session as it is on record.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    /// The session.
    pub session: Session,
    /// How many of its GPU type are served before it, itself included, while it
    /// waits.
    pub queue_position: Option<u32>,
}

/// Which GPU events.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Of this machine's sessions only.
    pub machine: Option<MachineId>,
    /// That had not ended before this.
    pub from: Option<Timestamp>,
    /// That began before this.
    pub until: Option<Timestamp>,
}

/// A store: SQLite or Postgres; both pass the same conformance suite.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Everything that still matters, for a server that starts.
    async fn load(&self) -> Result<Snapshot, StoreError>;

    /// Every key, revoked ones included, for a server that starts: it is to know its
    /// callers before it has loaded the rest.
    async fn all_keys(&self) -> Result<Vec<Key>, StoreError>;

    /// All of these, or none. On record for good when this returns, except that very
    /// many sessions may take a while to be forgotten. Goes on when the caller drops
    /// it. After an error nothing of it is on record, and it can be asked for again.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError>;

    /// The secret that agents' secrets are derived from, made at first use.
    async fn server_secret(&self) -> Result<[u8; 32], StoreError>;

    /// One session, open or ended.
    async fn session(
        &self,
        owner: &Owner,
        id: SessionId,
    ) -> Result<Option<SessionRecord>, StoreError>;

    /// Open sessions, newest first.
    async fn open_sessions(
        &self,
        owner: &Owner,
        machine: Option<MachineId>,
    ) -> Result<Vec<SessionRecord>, StoreError>;

    /// Sessions, ended ones included, newest first, at most `limit`.
    async fn recent_sessions(
        &self,
        owner: &Owner,
        machine: Option<MachineId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError>;

    /// Sessions whose GPU events fit, newest first. A session that never held a GPU
    /// has no event.
    async fn gpu_events(
        &self,
        owner: &Owner,
        query: EventQuery,
    ) -> Result<Vec<Session>, StoreError>;

    /// Machines, newest first.
    async fn machines(&self, owner: &Owner) -> Result<Vec<Machine>, StoreError>;

    /// One machine.
    async fn machine(&self, owner: &Owner, id: MachineId) -> Result<Option<Machine>, StoreError>;

    /// A machine's versions, newest first; none if the machine is not the owner's.
    async fn machine_versions(
        &self,
        owner: &Owner,
        id: MachineId,
    ) -> Result<Vec<MachineVersion>, StoreError>;

    /// One version of a machine.
    async fn machine_version(
        &self,
        owner: &Owner,
        id: MachineId,
        version: MachineVersionId,
    ) -> Result<Option<MachineVersion>, StoreError>;

    /// Keys, newest first, revoked ones included.
    async fn keys(&self, owner: &Owner) -> Result<Vec<Key>, StoreError>;

    /// A session's share links, newest first, revoked and expired ones included.
    async fn shares(&self, owner: &Owner, session: SessionId) -> Result<Vec<Share>, StoreError>;
}
