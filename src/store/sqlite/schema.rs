//! Opening the file, and bringing it to this version's schema.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

use super::error::sentence;
use crate::store::StoreError;

/// In order: number N makes schema N of schema N - 1. Never edit one that was
/// released; add another.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/sqlite/0001_sessions_machines_keys.sql"),
    include_str!("../../../migrations/sqlite/0002_shares.sql"),
];

/// How long another program may hold the file's lock before we give up.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The log is cut back to this after a burst made it long.
const LOG_SIZE_LIMIT_BYTES: i64 = 64 << 20;

/// The one connection that writes; the file is made if there is none.
pub(super) fn open_writer(file: &Path) -> Result<Connection, StoreError> {
    // Made by us and not by SQLite, for the mode: it holds secrets. SQLite gives its
    // other files the same one.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(file)
        .map_err(|error| {
            StoreError(format!(
                "{} could not be opened for writing: {error}; its directory must exist and be \
                 writable for dwell's user",
                file.display()
            ))
        })?;
    let mut connection = open(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // First of all: the file of a newer version is left exactly as it is.
    refuse_newer(file, &connection)?;
    write_ahead(file, &connection)?;
    prepare_to_write(&mut connection).map_err(|error| sentence(file, &error))?;
    Ok(connection)
}

/// One of the connections that read. The writer must have been opened before.
pub(super) fn open_reader(file: &Path) -> Result<Connection, StoreError> {
    open(file, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn open(file: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    // Each connection stays on one thread: SQLite's own locking is not needed.
    let open = || -> rusqlite::Result<Connection> {
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        connection.busy_timeout(LOCK_PATIENCE)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    open().map_err(|error| sentence(file, &error))
}

fn refuse_newer(file: &Path, connection: &Connection) -> Result<(), StoreError> {
    let schema = schema_of(connection).map_err(|error| sentence(file, &error))?;
    let known = MIGRATIONS.len();
    if usize::try_from(schema).is_ok_and(|schema| schema <= known) {
        return Ok(());
    }
    Err(StoreError(format!(
        "{} was written by a newer version of dwell (schema {schema}, this one knows {known}); \
         upgrade dwell",
        file.display()
    )))
}

fn write_ahead(file: &Path, connection: &Connection) -> Result<(), StoreError> {
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |mode| mode.get(0))
        .map_err(|error| sentence(file, &error))?;
    if mode == "wal" {
        return Ok(());
    }
    Err(StoreError(format!(
        "{} is on a file system that SQLite cannot keep its log on (a network share?); move it \
         to a local one",
        file.display()
    )))
}

fn prepare_to_write(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "journal_size_limit", LOG_SIZE_LIMIT_BYTES)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Asked again, now that nobody else can be migrating.
    let schema = schema_of(&transaction)?;
    for (number, migration) in (1..).zip(MIGRATIONS) {
        if number > schema {
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", number)?;
        }
    }
    transaction.commit()
}

fn schema_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |version| version.get(0))
}

/// The server's secret; made now if there is none.
pub(super) fn server_secret(file: &Path, writer: &Connection) -> Result<[u8; 32], StoreError> {
    let stored = || {
        writer
            .query_row(
                "SELECT value FROM meta WHERE name = 'server_secret'",
                [],
                |row| row.get::<_, [u8; 32]>(0),
            )
            .optional()
    };
    let refused = |error: rusqlite::Error| sentence(file, &error);
    if let Some(secret) = stored().map_err(refused)? {
        return Ok(secret);
    }
    let mut fresh = [0_u8; 32];
    getrandom::fill(&mut fresh).map_err(|error| {
        StoreError(format!(
            "The system has no randomness to give for {}: {error}",
            file.display()
        ))
    })?;
    // If another process was faster, its secret counts.
    writer
        .execute(
            "INSERT INTO meta (name, value) VALUES ('server_secret', ?1) ON CONFLICT DO NOTHING",
            [fresh],
        )
        .map_err(refused)?;
    Ok(stored().map_err(refused)?.unwrap_or(fresh))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_waits_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let writer = open_writer(&dir.path().join("store.db")).unwrap();
        let setting = |name| {
            writer
                .pragma_query_value(None, name, |value| {
                    value.get::<_, rusqlite::types::Value>(0)
                })
                .unwrap()
        };
        assert_eq!(setting("journal_mode"), "wal".to_owned().into());
        assert_eq!(setting("synchronous"), 2.into(), "FULL");
        assert_eq!(setting("foreign_keys"), 1.into());
    }
}
