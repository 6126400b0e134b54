//! What is asked of the store.

use dwell_core::control_plane::Snapshot;
use dwell_core::gpu::GpuId;
use dwell_core::id::{MachineId, MachineVersionId, SessionId};
use dwell_core::key::Key;
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::owner::Owner;
use dwell_core::session::Session;
use dwell_core::share::Share;
use dwell_core::time::Timestamp;
use serde::de::DeserializeOwned;
use sqlx_core::Error;
use sqlx_core::arguments::Arguments;
use sqlx_core::encode::Encode;
use sqlx_core::row::Row;
use sqlx_core::types::Type;
use sqlx_postgres::{PgArguments, PgRow, Postgres};

use super::columns::{body, text, untext};
use super::readers::Readers;
use crate::store::columns::owner_column;
use crate::store::{EventQuery, SessionRecord, StoreError};

// For a server that starts.
const ALL_KEYS: &str = "SELECT body FROM keys";
// All of one moment. Few sessions are shared: they are found from their links.
const ALL_THAT_MATTERS: &str = "
    SELECT body, 'session' AS kind, NULL AS id, NULL::bigint AS free_since
        FROM sessions WHERE ended_at IS NULL
    UNION ALL SELECT body, 'machine', NULL, NULL FROM machines
    UNION ALL SELECT body, 'key', NULL, NULL FROM keys
    UNION ALL SELECT h.body, 'share', NULL, NULL
        FROM shares h JOIN sessions s ON s.id = h.session_id WHERE s.ended_at IS NULL
    UNION ALL SELECT '', 'gpu', id, free_since FROM gpus";

/// Sessions with their positions. A queue is one for all owners, and is read only if
/// somebody of the list waits in it.
macro_rules! with_positions {
    ($sessions:literal) => {
        concat!(
            "WITH listed AS (",
            $sessions,
            "), queued AS (
                SELECT gpu_type, ticket, (sum(count(*)) OVER
                    (PARTITION BY gpu_type ORDER BY ticket))::bigint AS position
                FROM sessions
                WHERE ticket <= (SELECT max(ticket) FROM listed)
                    AND gpu_type = ANY (ARRAY(
                        SELECT DISTINCT gpu_type FROM listed WHERE ticket IS NOT NULL))
                GROUP BY gpu_type, ticket)
            SELECT l.body, q.position FROM listed l
            LEFT JOIN queued q ON q.gpu_type = l.gpu_type AND q.ticket = l.ticket
            ORDER BY l.created_at DESC, l.id"
        )
    };
}

// One owner's ($1).
const SESSION: &str = "
    SELECT s.body, CASE WHEN s.ticket IS NOT NULL THEN
        (SELECT count(*) FROM sessions q WHERE q.gpu_type = s.gpu_type AND q.ticket <= s.ticket)
    END AS position
    FROM sessions s WHERE s.owner = $1 AND s.id = $2";
const OPEN: &str = with_positions!(
    "SELECT id, gpu_type, ticket, created_at, body FROM sessions
     WHERE owner = $1 AND ended_at IS NULL AND ($2::uuid IS NULL OR machine_id = $2)"
);
const RECENT: &str = with_positions!(
    "SELECT id, gpu_type, ticket, created_at, body FROM sessions
     WHERE owner = $1 ORDER BY created_at DESC, id LIMIT $2"
);
const RECENT_OF_MACHINE: &str = with_positions!(
    "SELECT id, gpu_type, ticket, created_at, body FROM sessions
     WHERE owner = $1 AND machine_id = $3 ORDER BY created_at DESC, id LIMIT $2"
);
const EVENTS: &str = "SELECT body FROM sessions
    WHERE owner = $1 AND held_from IS NOT NULL
        AND coalesce(held_until, 9223372036854775807) >= $2 AND held_from < $3
    ORDER BY created_at DESC, id";
const EVENTS_OF_MACHINE: &str = "SELECT body FROM sessions
    WHERE owner = $1 AND machine_id = $4 AND held_from IS NOT NULL
        AND coalesce(held_until, 9223372036854775807) >= $2 AND held_from < $3
    ORDER BY created_at DESC, id";
const MACHINES: &str = "SELECT body FROM machines WHERE owner = $1 ORDER BY created_at DESC, id";
const MACHINE: &str = "SELECT body FROM machines WHERE owner = $1 AND id = $2";
const VERSIONS: &str =
    "SELECT v.body FROM machines m JOIN machine_versions v ON v.machine_id = m.id
    WHERE m.owner = $1 AND m.id = $2 ORDER BY v.version DESC";
const VERSION: &str = "SELECT v.body FROM machines m JOIN machine_versions v ON v.machine_id = m.id
    WHERE m.owner = $1 AND m.id = $2 AND v.id = $3";
const KEYS: &str = "SELECT body FROM keys WHERE owner = $1 ORDER BY created_at DESC, id";
const SHARES: &str = "SELECT body FROM shares WHERE owner = $1 AND session_id = $2
    ORDER BY created_at DESC, id";

pub(super) async fn load(readers: &Readers) -> Result<Snapshot, StoreError> {
    let rows = readers
        .rows(ALL_THAT_MATTERS, PgArguments::default())
        .await?;
    // There may be very many.
    let reading = tokio::task::spawn_blocking(move || snapshot(&rows));
    let snapshot = reading
        .await
        .map_err(|error| StoreError(error.to_string()))?;
    snapshot.map_err(|error| readers.misread(&error))
}

fn snapshot(rows: &[PgRow]) -> Result<Snapshot, Error> {
    let mut snapshot = Snapshot::default();
    for row in rows {
        match row.try_get(1)? {
            "session" => snapshot.sessions.push(body(row)?),
            "machine" => snapshot.machines.push(body(row)?),
            "key" => snapshot.keys.push(body(row)?),
            "share" => snapshot.shares.push(body(row)?),
            _ => {
                let (id, free_since) = (GpuId(untext(row.try_get(2)?)), row.try_get(3)?);
                snapshot.gpu_free_since.insert(id, Timestamp(free_since));
            }
        }
    }
    Ok(snapshot)
}

pub(super) async fn all_keys(readers: &Readers) -> Result<Vec<Key>, StoreError> {
    let rows = readers.rows(ALL_KEYS, PgArguments::default()).await?;
    bodies(readers, &rows)
}

pub(super) async fn session(
    readers: &Readers,
    owner: &Owner,
    id: SessionId,
) -> Result<Option<SessionRecord>, StoreError> {
    let rows = readers.rows(SESSION, Of(owner).and(id.0)?).await?;
    Ok(records(readers, &rows)?.pop())
}

pub(super) async fn open_sessions(
    readers: &Readers,
    owner: &Owner,
    machine: Option<MachineId>,
) -> Result<Vec<SessionRecord>, StoreError> {
    let arguments = Of(owner).and(machine.map(|id| id.0))?;
    records(readers, &readers.rows(OPEN, arguments).await?)
}

pub(super) async fn recent_sessions(
    readers: &Readers,
    owner: &Owner,
    machine: Option<MachineId>,
    limit: u32,
) -> Result<Vec<SessionRecord>, StoreError> {
    let arguments = Of(owner).and(i64::from(limit))?;
    let rows = match machine {
        None => readers.rows(RECENT, arguments).await,
        Some(id) => readers.rows(RECENT_OF_MACHINE, arguments.and(id.0)?).await,
    };
    records(readers, &rows?)
}

pub(super) async fn gpu_events(
    readers: &Readers,
    owner: &Owner,
    query: &EventQuery,
) -> Result<Vec<Session>, StoreError> {
    let from = query.from.map_or(i64::MIN, |from| from.0);
    let until = query.until.map_or(i64::MAX, |until| until.0);
    let arguments = Of(owner).and(from)?.and(until)?;
    let rows = match query.machine {
        None => readers.rows(EVENTS, arguments).await,
        Some(id) => readers.rows(EVENTS_OF_MACHINE, arguments.and(id.0)?).await,
    };
    bodies(readers, &rows?)
}

pub(super) async fn machines(readers: &Readers, owner: &Owner) -> Result<Vec<Machine>, StoreError> {
    bodies(readers, &readers.rows(MACHINES, Of(owner).alone()?).await?)
}

pub(super) async fn machine(
    readers: &Readers,
    owner: &Owner,
    id: MachineId,
) -> Result<Option<Machine>, StoreError> {
    let rows = readers.rows(MACHINE, Of(owner).and(id.0)?).await?;
    Ok(bodies(readers, &rows)?.pop())
}

pub(super) async fn machine_versions(
    readers: &Readers,
    owner: &Owner,
    id: MachineId,
) -> Result<Vec<MachineVersion>, StoreError> {
    let rows = readers.rows(VERSIONS, Of(owner).and(id.0)?).await?;
    bodies(readers, &rows)
}

pub(super) async fn machine_version(
    readers: &Readers,
    owner: &Owner,
    id: MachineId,
    version: MachineVersionId,
) -> Result<Option<MachineVersion>, StoreError> {
    let arguments = Of(owner).and(id.0)?.and(version.0)?;
    let rows = readers.rows(VERSION, arguments).await?;
    Ok(bodies(readers, &rows)?.pop())
}

pub(super) async fn keys(readers: &Readers, owner: &Owner) -> Result<Vec<Key>, StoreError> {
    bodies(readers, &readers.rows(KEYS, Of(owner).alone()?).await?)
}

pub(super) async fn shares(
    readers: &Readers,
    owner: &Owner,
    session: SessionId,
) -> Result<Vec<Share>, StoreError> {
    let rows = readers.rows(SHARES, Of(owner).and(session.0)?).await?;
    bodies(readers, &rows)
}

/// Whose rows: the first argument.
struct Of<'a>(&'a Owner);

impl Of<'_> {
    fn alone(self) -> Result<PgArguments, StoreError> {
        PgArguments::default().and(text(&owner_column(self.0)))
    }

    fn and<T>(self, value: T) -> Result<PgArguments, StoreError>
    where
        T: for<'t> Encode<'t, Postgres> + Type<Postgres>,
    {
        self.alone()?.and(value)
    }
}

/// Arguments one after another.
pub(super) trait And: Sized {
    fn and<T>(self, value: T) -> Result<Self, StoreError>
    where
        T: for<'t> Encode<'t, Postgres> + Type<Postgres>;
}

impl And for PgArguments {
    fn and<T>(mut self, value: T) -> Result<Self, StoreError>
    where
        T: for<'t> Encode<'t, Postgres> + Type<Postgres>,
    {
        self.add(value)
            .map_err(|error| StoreError(format!("This cannot be asked for: {error}")))?;
        Ok(self)
    }
}

fn bodies<T: DeserializeOwned>(readers: &Readers, rows: &[PgRow]) -> Result<Vec<T>, StoreError> {
    let bodies: Result<_, _> = rows.iter().map(body).collect();
    bodies.map_err(|error| readers.misread(&error))
}

fn records(readers: &Readers, rows: &[PgRow]) -> Result<Vec<SessionRecord>, StoreError> {
    let record = |row: &PgRow| -> Result<SessionRecord, Error> {
        let position: Option<i64> = row.try_get(1)?;
        Ok(SessionRecord {
            session: body(row)?,
            queue_position: position.and_then(|position| u32::try_from(position).ok()),
        })
    };
    let records: Result<_, _> = rows.iter().map(record).collect();
    records.map_err(|error| readers.misread(&error))
}
