//! What is asked of the store.

use std::collections::BTreeMap;

use dwell_core::control_plane::Snapshot;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::id::{MachineId, MachineVersionId, SessionId};
use dwell_core::key::Key;
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::session::{Session, State};
use dwell_core::share::Share;
use dwell_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, params};
use serde::de::DeserializeOwned;

use super::columns::body;
use crate::store::{EventQuery, SessionRecord};

// For a server that starts.
const OPEN_SESSIONS: &str = "SELECT body FROM sessions WHERE ended_at IS NULL";
const ALL_MACHINES: &str = "SELECT body FROM machines";
const ALL_KEYS: &str = "SELECT body FROM keys";
// Few sessions are shared: they are found from their links.
const OPEN_SHARES: &str = "SELECT h.body FROM shares h CROSS JOIN sessions s
    ON s.id = h.session_id WHERE s.ended_at IS NULL";
const GPUS_FREE_SINCE: &str = "SELECT id, free_since FROM gpus";

// One owner's (?1).
const SESSION: &str = "SELECT body FROM sessions WHERE owner = ?1 AND id = ?2";
const OPEN: &str = "SELECT body FROM sessions
    WHERE owner = ?1 AND ended_at IS NULL AND (?2 IS NULL OR machine_id = ?2)
    ORDER BY created_at DESC, id";
const RECENT: &str =
    "SELECT body FROM sessions WHERE owner = ?1 ORDER BY created_at DESC, id LIMIT ?2";
const RECENT_OF_MACHINE: &str = "SELECT body FROM sessions WHERE owner = ?1 AND machine_id = ?3
    ORDER BY created_at DESC, id LIMIT ?2";
const EVENTS: &str = "SELECT body FROM sessions INDEXED BY sessions_held
    WHERE owner = ?1 AND held_from IS NOT NULL
        AND coalesce(held_until, 9223372036854775807) >= ?2 AND held_from < ?3
    ORDER BY created_at DESC, id";
const EVENTS_OF_MACHINE: &str = "SELECT body FROM sessions
    WHERE owner = ?1 AND machine_id = ?4 AND held_from IS NOT NULL
        AND (held_until IS NULL OR held_until >= ?2) AND held_from < ?3
    ORDER BY created_at DESC, id";
const MACHINES: &str = "SELECT body FROM machines WHERE owner = ?1 ORDER BY created_at DESC, id";
const MACHINE: &str = "SELECT body FROM machines WHERE owner = ?1 AND id = ?2";
const VERSIONS: &str =
    "SELECT v.body FROM machines m JOIN machine_versions v ON v.machine_id = m.id
    WHERE m.owner = ?1 AND m.id = ?2 ORDER BY v.version DESC";
const VERSION: &str = "SELECT v.body FROM machines m JOIN machine_versions v ON v.machine_id = m.id
    WHERE m.owner = ?1 AND m.id = ?2 AND v.id = ?3";
const KEYS: &str = "SELECT body FROM keys WHERE owner = ?1 ORDER BY created_at DESC, id";
const SHARES: &str = "SELECT body FROM shares WHERE owner = ?1 AND session_id = ?2
    ORDER BY created_at DESC, id";

// Everybody's: a queue is one for all owners.
const SERVED_BETWEEN: &str =
    "SELECT count(*) FROM sessions WHERE gpu_type = ?1 AND ticket > ?2 AND ticket <= ?3";

pub(super) fn load(connection: &Connection) -> rusqlite::Result<Snapshot> {
    let gpu_free_since = connection
        .prepare_cached(GPUS_FREE_SINCE)?
        .query_map([], |row| Ok((GpuId(row.get(0)?), Timestamp(row.get(1)?))))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Snapshot {
        sessions: all(connection, OPEN_SESSIONS, [])?,
        machines: all(connection, ALL_MACHINES, [])?,
        keys: all(connection, ALL_KEYS, [])?,
        shares: all(connection, OPEN_SHARES, [])?,
        gpu_free_since,
    })
}

pub(super) fn all_keys(connection: &Connection) -> rusqlite::Result<Vec<Key>> {
    all(connection, ALL_KEYS, [])
}

pub(super) fn session(
    connection: &Connection,
    owner: &str,
    id: SessionId,
) -> rusqlite::Result<Option<SessionRecord>> {
    let session = one(connection, SESSION, params![owner, id.0.as_bytes()])?;
    let records = with_positions(connection, session.into_iter().collect())?;
    Ok(records.into_iter().next())
}

pub(super) fn open_sessions(
    connection: &Connection,
    owner: &str,
    machine: Option<MachineId>,
) -> rusqlite::Result<Vec<SessionRecord>> {
    let machine = machine.map(|id| *id.0.as_bytes());
    with_positions(connection, all(connection, OPEN, params![owner, machine])?)
}

pub(super) fn recent_sessions(
    connection: &Connection,
    owner: &str,
    machine: Option<MachineId>,
    limit: u32,
) -> rusqlite::Result<Vec<SessionRecord>> {
    let sessions = match machine {
        None => all(connection, RECENT, params![owner, limit]),
        Some(id) => all(
            connection,
            RECENT_OF_MACHINE,
            params![owner, limit, id.0.as_bytes()],
        ),
    }?;
    with_positions(connection, sessions)
}

pub(super) fn gpu_events(
    connection: &Connection,
    owner: &str,
    query: &EventQuery,
) -> rusqlite::Result<Vec<Session>> {
    let from = query.from.map_or(i64::MIN, |from| from.0);
    let until = query.until.map_or(i64::MAX, |until| until.0);
    match query.machine {
        None => all(connection, EVENTS, params![owner, from, until]),
        Some(id) => all(
            connection,
            EVENTS_OF_MACHINE,
            params![owner, from, until, id.0.as_bytes()],
        ),
    }
}

pub(super) fn machines(connection: &Connection, owner: &str) -> rusqlite::Result<Vec<Machine>> {
    all(connection, MACHINES, [owner])
}

pub(super) fn machine(
    connection: &Connection,
    owner: &str,
    id: MachineId,
) -> rusqlite::Result<Option<Machine>> {
    one(connection, MACHINE, params![owner, id.0.as_bytes()])
}

pub(super) fn machine_versions(
    connection: &Connection,
    owner: &str,
    id: MachineId,
) -> rusqlite::Result<Vec<MachineVersion>> {
    all(connection, VERSIONS, params![owner, id.0.as_bytes()])
}

pub(super) fn machine_version(
    connection: &Connection,
    owner: &str,
    id: MachineId,
    version: MachineVersionId,
) -> rusqlite::Result<Option<MachineVersion>> {
    one(
        connection,
        VERSION,
        params![owner, id.0.as_bytes(), version.0.as_bytes()],
    )
}

pub(super) fn keys(connection: &Connection, owner: &str) -> rusqlite::Result<Vec<Key>> {
    all(connection, KEYS, [owner])
}

pub(super) fn shares(
    connection: &Connection,
    owner: &str,
    session: SessionId,
) -> rusqlite::Result<Vec<Share>> {
    all(connection, SHARES, params![owner, session.0.as_bytes()])
}

/// The sessions with their positions. Each stretch of a queue is counted once, from
/// one session's ticket to the next one's.
fn with_positions(
    connection: &Connection,
    sessions: Vec<Session>,
) -> rusqlite::Result<Vec<SessionRecord>> {
    let mut queued: BTreeMap<(&GpuType, i64), u32> = sessions
        .iter()
        .filter_map(|session| Some(((&session.gpu_type, ticket(session)?), 0)))
        .collect();
    let (mut gpu_type, mut ticket_before, mut position_before) = (None, -1, 0);
    for ((its_type, its_ticket), position) in &mut queued {
        if gpu_type != Some(*its_type) {
            (gpu_type, ticket_before, position_before) = (Some(*its_type), -1, 0);
        }
        let served: u32 = connection
            .prepare_cached(SERVED_BETWEEN)?
            .query_row(params![its_type.0, ticket_before, its_ticket], |row| {
                row.get(0)
            })?;
        *position = position_before + served;
        (ticket_before, position_before) = (*its_ticket, *position);
    }
    let positions: Vec<_> = sessions
        .iter()
        .map(|session| {
            let place = (&session.gpu_type, ticket(session)?);
            queued.get(&place).copied()
        })
        .collect();
    Ok(sessions
        .into_iter()
        .zip(positions)
        .map(|(session, queue_position)| SessionRecord {
            session,
            queue_position,
        })
        .collect())
}

fn ticket(session: &Session) -> Option<i64> {
    match &session.state {
        State::Queued { ticket } => i64::try_from(*ticket).ok(),
        State::Starting { .. }
        | State::Running { .. }
        | State::Stopping { .. }
        | State::Ended { .. } => None,
    }
}

fn all<T: DeserializeOwned>(
    connection: &Connection,
    sql: &str,
    values: impl Params,
) -> rusqlite::Result<Vec<T>> {
    connection
        .prepare_cached(sql)?
        .query_map(values, body)?
        .collect()
}

fn one<T: DeserializeOwned>(
    connection: &Connection,
    sql: &str,
    values: impl Params,
) -> rusqlite::Result<Option<T>> {
    connection
        .prepare_cached(sql)?
        .query_row(values, body)
        .optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema::open_writer;

    #[test]
    fn no_question_of_an_owner_reads_more_rows_than_it_answers() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open_writer(&dir.path().join("store.db")).unwrap();
        for sql in [
            SESSION,
            OPEN,
            RECENT,
            RECENT_OF_MACHINE,
            EVENTS,
            EVENTS_OF_MACHINE,
            MACHINES,
            MACHINE,
            VERSIONS,
            VERSION,
            KEYS,
            SHARES,
            SERVED_BETWEEN,
        ] {
            let plan = plan(&connection, sql);
            assert!(!plan.contains("SCAN"), "{sql}\n{plan}");
            let may_sort = sql == EVENTS;
            assert!(may_sort || !plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
        }
    }

    #[test]
    fn what_is_asked_most_goes_by_the_small_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open_writer(&dir.path().join("store.db")).unwrap();
        for (sql, index) in [
            (OPEN, "sessions_open"),
            (OPEN_SESSIONS, "sessions_open"),
            (RECENT_OF_MACHINE, "sessions_newest_of_machine"),
            (EVENTS, "sessions_held (owner=? AND <expr>>?)"),
            (EVENTS_OF_MACHINE, "sessions_newest_of_machine"),
            (SERVED_BETWEEN, "sessions_queued"),
        ] {
            let plan = plan(&connection, sql);
            assert!(plan.contains(&format!("INDEX {index}")), "{sql}\n{plan}");
        }
    }

    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        let none = vec![rusqlite::types::Null; statement.parameter_count()];
        let steps = statement
            .query_map(rusqlite::params_from_iter(none), |row| {
                row.get::<_, String>(3)
            })
            .unwrap();
        steps.map(|step| step.unwrap() + "\n").collect::<String>()
    }
}
