//! Many rows make no question slow.

use dwell::store::{EventQuery, Store};
use dwell_core::session::Session;

use super::Database;
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn no_question_of_an_owner_reads_whole_tables() {
    let home = Database::fresh().await;
    let store = home.open().await;
    let of_machine = |session: Session| Session {
        machine_id: Some(machine_id(1)),
        ..session
    };
    let held = held(ended(session(2), 30), "A10G/0000", 10, Some(30));
    store
        .commit(vec![
            put_machine(&machine(1)),
            put_version(machine_id(1), &machine(1).current),
            put(&of_machine(session(1))),
            put(&of_machine(held)),
            put_share(&share(1, session_id(1))),
            dwell_core::control_plane::Change::Key(key(1)),
        ])
        .await
        .unwrap();
    // Somebody else's, in such numbers that it matters.
    home.sql(
        "INSERT INTO sessions SELECT gen_random_uuid(), 'user:bob', gen_random_uuid(), 'L4', n,
             CASE WHEN n % 10 = 0 THEN n END, CASE WHEN n % 10 > 0 THEN n END, n, n + 5, 'x'
             FROM generate_series(1, 20000) n;
         INSERT INTO machines SELECT gen_random_uuid(), 'user:bob', n, 'x'
             FROM generate_series(1, 20000) n;
         INSERT INTO machine_versions SELECT gen_random_uuid(), id, 1, 'x'
             FROM machines WHERE body = 'x';
         INSERT INTO keys SELECT gen_random_uuid(), 'user:bob', n, 'x'
             FROM generate_series(1, 20000) n;
         INSERT INTO shares SELECT gen_random_uuid(), owner, id, created_at, 'x'
             FROM sessions WHERE body = 'x';
         ANALYZE",
    );
    drop(store);
    alone(&home).await;
    home.sql("SELECT pg_stat_reset()");
    let store = home.open().await;
    let (ann, machine, version) = (ann(), machine_id(1), machine(1).current.id);
    // Often enough that plans for any arguments are made.
    for _ in 0..10 {
        assert!(store.session(&ann, session_id(1)).await.unwrap().is_some());
        for of in [None, Some(machine)] {
            assert_eq!(store.open_sessions(&ann, of).await.unwrap().len(), 1);
            assert_eq!(store.recent_sessions(&ann, of, 9).await.unwrap().len(), 2);
            let query = EventQuery {
                machine: of,
                ..EventQuery::default()
            };
            assert_eq!(store.gpu_events(&ann, query).await.unwrap().len(), 1);
        }
        assert_eq!(store.machines(&ann).await.unwrap().len(), 1);
        assert!(store.machine(&ann, machine).await.unwrap().is_some());
        assert_eq!(
            store.machine_versions(&ann, machine).await.unwrap().len(),
            1
        );
        let found = store.machine_version(&ann, machine, version).await;
        assert!(found.unwrap().is_some());
        assert_eq!(store.keys(&ann).await.unwrap().len(), 1);
        assert_eq!(store.shares(&ann, session_id(1)).await.unwrap().len(), 1);
    }
    drop(store);
    alone(&home).await;
    let read = home.sql(
        "SELECT string_agg(relname || ' ' || seq_scan || ' ' || (idx_tup_fetch < 500), ', '
                           ORDER BY relname)
         FROM pg_stat_user_tables
         WHERE relname IN ('sessions', 'machines', 'machine_versions', 'keys', 'shares')",
    );
    assert_eq!(
        read,
        "keys 0 true, machine_versions 0 true, machines 0 true, sessions 0 true, shares 0 true"
    );
}

/// Until all others have gone: a connection's reads are counted for others to see at its
/// end.
async fn alone(home: &Database) {
    let others = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    while home.sql(others) != "0" {
        // They close their connections meanwhile.
        tokio::task::yield_now().await;
    }
}
