//! A store that an earlier version wrote is brought forward with all that is in it.
//!
//! `schemas/KIND_N.sql` has rows of each kind as they were when schema N was the newest.

use std::path::{Path, PathBuf};

use dwell::store::Store;
use dwell::store::postgres::Postgres;
use dwell::store::sqlite::Sqlite;
use dwell_core::control_plane::Change;
use dwell_core::gpu::GpuId;
use dwell_core::key::Key;
use dwell_core::session::Session;
use dwell_core::share::Share;
use dwell_core::time::Timestamp;

use crate::cluster::Cluster;
use crate::rows::*;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// For each schema there has been, what makes a store of it, with rows.
fn every_schema(kind: &str) -> Vec<(usize, String)> {
    let entries = std::fs::read_dir(here("migrations").join(kind)).unwrap();
    let mut migrations: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    migrations.sort();
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path);
        text.unwrap_or_else(|why| panic!("{}: {why}", path.display()))
    };
    (1..=migrations.len())
        .map(|schema| {
            let mut sql: String = migrations[..schema].iter().map(read).collect();
            sql += &read(&here(&format!("tests/store/schemas/{kind}_{schema}.sql")));
            (schema, sql)
        })
        .collect()
}

fn sessions() -> [Session; 4] {
    [
        session(1),
        starting(session(2)),
        held(starting(session(3)), "A10G/0001", 5, None),
        held(ended(session(4), 40), "A10G/0000", 10, Some(40)),
    ]
}

fn keys() -> [Key; 2] {
    let revoked = Key {
        revoked_at: Some(Timestamp(9)),
        ..key(2)
    };
    [key(1), revoked]
}

fn shares(schema_has_them: bool) -> Vec<Share> {
    let shares = schema_has_them.then(|| share(1, session_id(1)));
    shares.into_iter().collect()
}

async fn has_all(store: &dyn Store, has_shares: bool) {
    let mut snapshot = store.load().await.unwrap();
    snapshot.sessions.sort_by_key(|session| session.id);
    snapshot.keys.sort_by_key(|key| key.id);
    assert_eq!(snapshot.sessions, sessions()[..3]);
    assert_eq!(snapshot.machines, [machine(1)]);
    assert_eq!(snapshot.keys, keys());
    assert_eq!(snapshot.shares, shares(has_shares));
    let free_since: Vec<_> = snapshot.gpu_free_since.into_iter().collect();
    assert_eq!(free_since, [(GpuId("A10G/0000".into()), Timestamp(40))]);
    let recent = store.recent_sessions(&ann(), None, 9).await.unwrap();
    let recent = recent.into_iter().rev().map(|record| record.session);
    assert!(recent.eq(sessions()));
    let versions = store.machine_versions(&ann(), machine_id(1)).await;
    assert_eq!(versions.unwrap(), [version(1, 1)]);
    assert_eq!(store.server_secret().await.unwrap(), [7; 32]);
    // And it is one of this version's.
    let change = Change::Share(Box::new(share(2, session_id(2))));
    store.commit(vec![change]).await.unwrap();
}

#[tokio::test]
async fn every_schema_of_sqlite_is_brought_forward() {
    for (schema, sql) in every_schema("sqlite") {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.db");
        let old = rusqlite::Connection::open(&file).unwrap();
        old.execute_batch(&sql).unwrap();
        old.pragma_update(None, "user_version", u32::try_from(schema).unwrap())
            .unwrap();
        old.close().unwrap();
        has_all(&Sqlite::open(&file).unwrap(), schema >= 2).await;
    }
}

#[tokio::test]
async fn every_schema_of_postgres_is_brought_forward() {
    for (schema, sql) in every_schema("postgres") {
        let database = Cluster::shared().database();
        let version = format!(
            "CREATE TABLE dwell_schema (version BIGINT NOT NULL);
             INSERT INTO dwell_schema VALUES ({schema});"
        );
        Cluster::shared().sql(&database, &(sql + &version));
        let address = Cluster::shared().url(&database).parse().unwrap();
        has_all(&Postgres::open(&address).await.unwrap(), true).await;
    }
}
