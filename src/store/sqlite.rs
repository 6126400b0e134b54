//! The store in one SQLite file.
//!
//! WAL with `synchronous=FULL`: what is acknowledged is on the disk. One writer
//! commits together whatever waits ([`writer`]); readers never wait for it
//! ([`readers`]).

mod columns;
mod error;
mod queries;
mod readers;
mod schema;
mod whole;
mod writer;

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

use self::readers::Readers;
pub(super) use self::whole::Whole;
use self::writer::Writer;
use super::columns::owner_column;
use super::{EventQuery, SessionRecord, Store, StoreError};

/// A store in one SQLite file. Dropping it finishes what was asked of it and closes
/// the file.
pub struct Sqlite {
    // Dropped in this order: the writer must be the last to close, since only it can
    // fold the log into the file.
    readers: Readers,
    writer: Writer,
    server_secret: [u8; 32],
}

impl Sqlite {
    /// Opens the store in `file`, made if there is none, and brings it to this
    /// version's schema.
    ///
    /// # Errors
    /// When the file cannot be read and written, is damaged, is locked, or was
    /// written by a newer version.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let writer = schema::open_writer(file)?;
        let server_secret = schema::server_secret(file, &writer)?;
        let file: Arc<Path> = Arc::from(file);
        Ok(Self {
            readers: Readers::start(Arc::clone(&file))?,
            writer: Writer::start(writer, file)?,
            server_secret,
        })
    }

    /// How many transactions have been written since it was opened: fewer than
    /// commits, when many came at once.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.writer.transactions()
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        self.readers.read(queries::load).await
    }

    async fn all_keys(&self) -> Result<Vec<Key>, StoreError> {
        self.readers.read(queries::all_keys).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.writer.commit(changes).await
    }

    async fn server_secret(&self) -> Result<[u8; 32], StoreError> {
        Ok(self.server_secret)
    }

    async fn session(
        &self,
        owner: &Owner,
        id: SessionId,
    ) -> Result<Option<SessionRecord>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::session(connection, &owner, id))
            .await
    }

    async fn open_sessions(
        &self,
        owner: &Owner,
        machine: Option<MachineId>,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::open_sessions(connection, &owner, machine))
            .await
    }

    async fn recent_sessions(
        &self,
        owner: &Owner,
        machine: Option<MachineId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::recent_sessions(connection, &owner, machine, limit))
            .await
    }

    async fn gpu_events(
        &self,
        owner: &Owner,
        query: EventQuery,
    ) -> Result<Vec<Session>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::gpu_events(connection, &owner, &query))
            .await
    }

    async fn machines(&self, owner: &Owner) -> Result<Vec<Machine>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::machines(connection, &owner))
            .await
    }

    async fn machine(&self, owner: &Owner, id: MachineId) -> Result<Option<Machine>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::machine(connection, &owner, id))
            .await
    }

    async fn machine_versions(
        &self,
        owner: &Owner,
        id: MachineId,
    ) -> Result<Vec<MachineVersion>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::machine_versions(connection, &owner, id))
            .await
    }

    async fn machine_version(
        &self,
        owner: &Owner,
        id: MachineId,
        version: MachineVersionId,
    ) -> Result<Option<MachineVersion>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::machine_version(connection, &owner, id, version))
            .await
    }

    async fn keys(&self, owner: &Owner) -> Result<Vec<Key>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::keys(connection, &owner))
            .await
    }

    async fn shares(&self, owner: &Owner, session: SessionId) -> Result<Vec<Share>, StoreError> {
        let owner = owner_column(owner);
        self.readers
            .read(move |connection| queries::shares(connection, &owner, session))
            .await
    }
}
