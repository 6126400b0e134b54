//! The store in a Postgres database.
//!
//! One writer commits together whatever waits ([`writer`]), each time in a transaction
//! that holds only while no other server has taken the store ([`line`]). Readers have
//! connections of their own ([`readers`]); each question is one statement, and so sees
//! the store as it is at one moment.

mod address;
mod columns;
mod error;
mod line;
mod queries;
mod readers;
mod rows;
mod schema;
mod whole;
mod writer;

use async_trait::async_trait;
use dwell_core::control_plane::{Change, Snapshot};
use dwell_core::id::{MachineId, MachineVersionId, SessionId};
use dwell_core::key::Key;
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::owner::Owner;
use dwell_core::session::Session;
use dwell_core::share::Share;

pub use self::address::Address;
use self::line::Line;
use self::readers::Readers;
pub(super) use self::whole::Whole;
use self::writer::Writer;
use super::{EventQuery, SessionRecord, Store, StoreError};

/// A store in a Postgres database.
pub struct Postgres {
    readers: Readers,
    writer: Writer,
    server_secret: [u8; 32],
}

impl Postgres {
    /// Takes the store at `address`, from whoever has it, and brings it to this
    /// version's schema. Who had it can write no more.
    ///
    /// # Errors
    /// When the database cannot be reached, does not let us in, cannot be written, or was
    /// written by a newer version.
    pub async fn open(address: &Address) -> Result<Self, StoreError> {
        let mut connection = schema::connect_to_write(address).await?;
        schema::migrate(address, &mut connection).await?;
        let server_secret = schema::server_secret(address, &mut connection).await?;
        let line = Line::take(address.clone(), connection).await?;
        Ok(Self {
            readers: Readers::new(address.clone()),
            writer: Writer::start(line),
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

/// What there is at `address`, in words; it is left as it is.
///
/// # Errors
/// When a server could not use it.
pub async fn look(address: &Address) -> Result<String, StoreError> {
    schema::look(address).await
}

#[async_trait]
impl Store for Postgres {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        queries::load(&self.readers).await
    }

    async fn all_keys(&self) -> Result<Vec<Key>, StoreError> {
        queries::all_keys(&self.readers).await
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
        queries::session(&self.readers, owner, id).await
    }

    async fn open_sessions(
        &self,
        owner: &Owner,
        machine: Option<MachineId>,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        queries::open_sessions(&self.readers, owner, machine).await
    }

    async fn recent_sessions(
        &self,
        owner: &Owner,
        machine: Option<MachineId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        queries::recent_sessions(&self.readers, owner, machine, limit).await
    }

    async fn gpu_events(
        &self,
        owner: &Owner,
        query: EventQuery,
    ) -> Result<Vec<Session>, StoreError> {
        queries::gpu_events(&self.readers, owner, &query).await
    }

    async fn machines(&self, owner: &Owner) -> Result<Vec<Machine>, StoreError> {
        queries::machines(&self.readers, owner).await
    }

    async fn machine(&self, owner: &Owner, id: MachineId) -> Result<Option<Machine>, StoreError> {
        queries::machine(&self.readers, owner, id).await
    }

    async fn machine_versions(
        &self,
        owner: &Owner,
        id: MachineId,
    ) -> Result<Vec<MachineVersion>, StoreError> {
        queries::machine_versions(&self.readers, owner, id).await
    }

    async fn machine_version(
        &self,
        owner: &Owner,
        id: MachineId,
        version: MachineVersionId,
    ) -> Result<Option<MachineVersion>, StoreError> {
        queries::machine_version(&self.readers, owner, id, version).await
    }

    async fn keys(&self, owner: &Owner) -> Result<Vec<Key>, StoreError> {
        queries::keys(&self.readers, owner).await
    }

    async fn shares(&self, owner: &Owner, session: SessionId) -> Result<Vec<Share>, StoreError> {
        queries::shares(&self.readers, owner, session).await
    }
}
