//! Connecting, and bringing the database to this version's schema.

use std::time::Duration;

use sqlx_core::Error;
use sqlx_core::connection::ConnectOptions;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_core::raw_sql::raw_sql;
use sqlx_core::row::Row;
use sqlx_postgres::PgConnection;
use tokio::time::{Instant, sleep, timeout};

use super::Address;
use super::error::{Kind, Trouble};
use crate::store::StoreError;

/// In order: number N makes schema N of schema N - 1. Never edit one that was
/// released; add another.
const MIGRATIONS: &[&str] = &[include_str!(
    "../../../migrations/postgres/0001_everything.sql"
)];

/// A server that does not answer by then is not there.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(5);

/// For how long it is waited for somebody who uses the store.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Whoever brings the schema to a version holds this advisory lock of the database.
const MIGRATING: i64 = 0x6477_656c_6c01;
/// Whoever writes shares this one; whoever copies the whole has it alone.
const IN_USE: i64 = 0x6477_656c_6c02;

/// A connection.
pub(super) async fn connect(address: &Address) -> Result<PgConnection, Trouble> {
    match timeout(CONNECT_MAX, address.options().connect()).await {
        Ok(connected) => connected.map_err(|error| Trouble::of(address, &error)),
        Err(_) => Err(Trouble::silent(address)),
    }
}

/// One to write by: what a commit says is on the disk, and nobody copies the store
/// meanwhile.
pub(super) async fn connect_to_write(address: &Address) -> Result<PgConnection, Trouble> {
    let mut connection = connect_to_primary(address).await?;
    let shared = lock(&mut connection, "SELECT pg_try_advisory_lock_shared($1)").await;
    match shared.map_err(|error| Trouble::of(address, &error))? {
        true => Ok(connection),
        false => Err(Trouble::at(
            address,
            Kind::Unable,
            "is being copied by `dwell store copy`; start again when that is done",
        )),
    }
}

/// One to copy by: no server is at work on the store, and none begins.
pub(super) async fn connect_alone(address: &Address) -> Result<PgConnection, Trouble> {
    let mut connection = connect_to_primary(address).await?;
    let alone = lock(&mut connection, "SELECT pg_try_advisory_lock($1)").await;
    match alone.map_err(|error| Trouble::of(address, &error))? {
        true => Ok(connection),
        false => Err(Trouble::at(
            address,
            Kind::Unable,
            "is in use by a server; stop that first",
        )),
    }
}

/// Whether the lock was had. Of one who was killed it is free a moment later.
async fn lock(connection: &mut PgConnection, sql: &'static str) -> Result<bool, Error> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let asked = query_scalar(sql).bind(IN_USE).fetch_one(&mut *connection);
        let had = asked.await?;
        if had || Instant::now() > deadline {
            return Ok(had);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A connection to a server that can be written, for good once it says so.
async fn connect_to_primary(address: &Address) -> Result<PgConnection, Trouble> {
    let mut connection = connect(address).await?;
    let trouble = |error| Trouble::of(address, &error);
    let unable = |what: &str| Err(Trouble::at(address, Kind::Unable, what));
    let found = query(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
                current_setting('server_encoding'), current_setting('synchronous_commit') = 'off'",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(trouble)?;
    let standby: bool = found.try_get(0).map_err(trouble)?;
    let read_only: bool = found.try_get(1).map_err(trouble)?;
    let encoding: String = found.try_get(2).map_err(trouble)?;
    let would_not_wait: bool = found.try_get(3).map_err(trouble)?;
    if standby {
        return unable("is a standby, which can only be read; name the primary");
    }
    if read_only {
        return unable(
            "is read-only (default_transaction_read_only is on); let it be written, or name \
             another",
        );
    }
    if encoding != "UTF8" {
        return unable(&format!(
            "has the encoding {encoding}, which cannot hold every text; make a database with \
             createdb --encoding UTF8 --template template0"
        ));
    }
    if would_not_wait {
        query("SET synchronous_commit = on")
            .execute(&mut connection)
            .await
            .map_err(trouble)?;
    }
    Ok(connection)
}

/// What a server would find, in words.
pub(super) async fn look(address: &Address) -> Result<String, StoreError> {
    let mut connection = connect_to_primary(address).await?;
    let trouble = |error| Trouble::of(address, &error).sentence;
    let (version, is_new): (String, bool) =
        query_as("SELECT current_setting('server_version'), to_regclass('dwell_schema') IS NULL")
            .fetch_one(&mut connection)
            .await
            .map_err(trouble)?;
    let found = if is_new {
        "nothing of dwell's yet".to_owned()
    } else {
        let schema = query_scalar("SELECT version FROM dwell_schema")
            .fetch_one(&mut connection)
            .await;
        let schema = schema.map_err(trouble)?;
        refuse_newer(address, schema)?;
        format!("schema {schema}")
    };
    Ok(format!("{address}, Postgres {version}, {found}"))
}

/// Bring the schema to this version's.
pub(super) async fn migrate(
    address: &Address,
    connection: &mut PgConnection,
) -> Result<(), StoreError> {
    let migrated = try_migrate(connection).await;
    let schema = migrated.map_err(|error| Trouble::of(address, &error).sentence)?;
    refuse_newer(address, schema)
}

fn refuse_newer(address: &Address, schema: i64) -> Result<(), StoreError> {
    let known = MIGRATIONS.len();
    if usize::try_from(schema).is_ok_and(|schema| schema <= known) {
        return Ok(());
    }
    Err(StoreError(format!(
        "{address} was written by a newer version of dwell (schema {schema}, this one knows \
         {known}); upgrade dwell"
    )))
}

/// The schema that there was. That of a newer version is left as it is.
async fn try_migrate(connection: &mut PgConnection) -> Result<i64, Error> {
    raw_sql("BEGIN").execute(&mut *connection).await?;
    // Ends with the transaction.
    query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATING)
        .execute(&mut *connection)
        .await?;
    let is_new: bool = query_scalar("SELECT to_regclass('dwell_schema') IS NULL")
        .fetch_one(&mut *connection)
        .await?;
    if is_new {
        raw_sql(
            "CREATE TABLE dwell_schema (version BIGINT NOT NULL);
             INSERT INTO dwell_schema VALUES (0)",
        )
        .execute(&mut *connection)
        .await?;
    }
    let schema: i64 = query_scalar("SELECT version FROM dwell_schema")
        .fetch_one(&mut *connection)
        .await?;
    for (number, migration) in (1..).zip(MIGRATIONS) {
        if number > schema {
            raw_sql(*migration).execute(&mut *connection).await?;
            query("UPDATE dwell_schema SET version = $1")
                .bind(number)
                .execute(&mut *connection)
                .await?;
        }
    }
    raw_sql("COMMIT").execute(&mut *connection).await?;
    Ok(schema)
}

/// The server's secret; made now if there is none.
pub(super) async fn server_secret(
    address: &Address,
    connection: &mut PgConnection,
) -> Result<[u8; 32], StoreError> {
    let mut fresh = [0_u8; 32];
    getrandom::fill(&mut fresh).map_err(|error| {
        StoreError(format!(
            "The system has no randomness to give for {address}: {error}"
        ))
    })?;
    let trouble = |error| Trouble::of(address, &error).sentence;
    query("INSERT INTO meta (name, value) VALUES ('server_secret', $1) ON CONFLICT DO NOTHING")
        .bind(&fresh[..])
        .execute(&mut *connection)
        .await
        .map_err(trouble)?;
    let stored: Vec<u8> = query_scalar("SELECT value FROM meta WHERE name = 'server_secret'")
        .fetch_one(&mut *connection)
        .await
        .map_err(trouble)?;
    <[u8; 32]>::try_from(stored).map_err(|_| {
        StoreError(format!(
            "{address} has a server secret of a wrong length; restore the database from a backup"
        ))
    })
}
