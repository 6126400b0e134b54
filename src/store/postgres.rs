//! The store in a Postgres database.
//!
//! One writer commits together whatever waits ([`writer`]), each time in a transaction
//! that holds only while no other server has taken the store ([`line`]). Readers have
//! connections of their own ([`readers`]); each question is one statement, and so sees
//! the store as it is at one moment. Of several servers one leads, by a lease ([`lease`]);
//! the others hear of what it puts on record ([`news`]).

mod address;
mod columns;
mod error;
mod lease;
mod line;
mod news;
mod queries;
mod readers;
mod rows;
mod schema;
mod tickets;
mod whole;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dwell_core::control_plane::{Change, Snapshot};
use dwell_core::id::{MachineId, MachineVersionId, SessionId};
use dwell_core::key::Key;
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::owner::Owner;
use dwell_core::session::Session;
use dwell_core::share::Share;
use sqlx_postgres::PgConnection;
use uuid::Uuid;

pub use self::address::Address;
use self::error::Trouble;
pub use self::lease::{Candidate, Claim, Lease};
use self::line::Line;
pub use self::news::{Listener, News};
use self::readers::Readers;
pub use self::tickets::Tickets;
pub(super) use self::whole::Whole;
use self::writer::Writer;
use super::{EventQuery, SessionRecord, Store, StoreError};

/// A store in a Postgres database.
pub struct Postgres {
    address: Address,
    readers: Readers,
    /// While the store is ours to write.
    writer: Mutex<Option<Arc<Writer>>>,
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
        let (store, connection) = Self::connect(address).await?;
        // Without a candidate it is never another's.
        store.take(connection, None).await?;
        Ok(store)
    }

    /// The store at `address`, brought to this version's schema, to be read until a
    /// [`Self::claim`] succeeds.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn join(address: &Address) -> Result<Self, StoreError> {
        Ok(Self::connect(address).await?.0)
    }

    async fn connect(address: &Address) -> Result<(Self, PgConnection), StoreError> {
        let mut connection = schema::connect_to_write(address).await?;
        schema::migrate(address, &mut connection).await?;
        let server_secret = schema::server_secret(address, &mut connection).await?;
        let store = Self {
            address: address.clone(),
            readers: Readers::new(address.clone()),
            writer: Mutex::default(),
            server_secret,
        };
        Ok((store, connection))
    }

    /// Lead, and write, if `candidate` may: see
    /// [`may_lead`](dwell_core::leadership::may_lead).
    ///
    /// # Errors
    /// When the database does not say.
    pub async fn claim(&self, candidate: &Candidate) -> Result<Claim, StoreError> {
        let connection = schema::connect_to_write(&self.address).await?;
        self.take(connection, Some(candidate)).await
    }

    async fn take(
        &self,
        mut connection: PgConnection,
        candidate: Option<&Candidate>,
    ) -> Result<Claim, StoreError> {
        let taken = lease::take(&mut connection, candidate).await;
        let taken = taken.map_err(|error| Trouble::of(&self.address, &error).sentence)?;
        Ok(match taken {
            Err(held) => Claim::Theirs(held),
            Ok(fence) => {
                let line = Line::new(self.address.clone(), connection, fence);
                *self.lock() = Some(Arc::new(Writer::start(line)));
                Claim::Ours(Lease::new(self.address.clone(), fence))
            }
        })
    }

    /// Write no more.
    pub fn step_down(&self) {
        *self.lock() = None;
    }

    /// By which servers have each ticket be good once.
    #[must_use]
    pub fn tickets(&self) -> Tickets {
        Tickets::new(self.address.clone())
    }

    /// Hear of what the server that leads puts on record from now on.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        Listener::connect(self.address.clone()).await
    }

    /// What is on record in these rows, of those that servers show.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn rows(&self, ids: Vec<Uuid>) -> Result<Vec<Change>, StoreError> {
        news::rows(&self.readers, ids).await
    }

    /// What is on record in all of them, and of the sessions that are `known`, which may
    /// have ended.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn all_rows(&self, known: Vec<SessionId>) -> Result<Vec<Change>, StoreError> {
        news::all_rows(&self.readers, known).await
    }

    /// How many transactions have been written since it was opened: fewer than
    /// commits, when many came at once.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.lock()
            .as_ref()
            .map_or(0, |writer| writer.transactions())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Writer>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
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
        let writer = self.lock().clone();
        let not_ours = || lease::is_led_by_another(&self.address).sentence;
        writer.ok_or_else(not_ours)?.commit(changes).await
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
