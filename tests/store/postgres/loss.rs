//! Connections that break, servers that go, and what is said of what was under way.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dwell::store::Store;
use dwell::store::postgres::{Address, Postgres};
use futures_util::future::join_all;

use super::Database;
use super::line::{Cut, Line};
use crate::cluster::Cluster;
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_on_record_and_is_not_done_twice() {
    let (store, line) = by_a_line().await;
    line.cut(Cut::AfterCommit, false);
    let before = line.commits();
    store.commit(vec![put(&session(1))]).await.unwrap();
    assert_eq!(line.commits() - before, 1);
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 1);
    // And it goes on.
    store.commit(vec![put(&session(2))]).await.unwrap();
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_commit_that_never_reached_the_server_is_done_again() {
    let (store, line) = by_a_line().await;
    line.cut(Cut::BeforeCommit, false);
    let before = line.commits();
    store.commit(vec![put(&session(1))]).await.unwrap();
    assert_eq!(line.commits() - before, 2);
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn of_a_commit_nothing_is_said_until_it_is_known() {
    for cut in [Cut::AfterCommit, Cut::BeforeCommit] {
        let (store, line) = by_a_line().await;
        line.cut(cut, true);
        let mut asked = Box::pin(store.commit(vec![put(&session(1))]));
        tokio::select! {
            result = &mut asked => panic!("{cut:?}: {result:?}"),
            () = line.turned_away(5) => {}
        }
        line.open();
        asked.await.unwrap();
        assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_named_and_used_again_when_it_is_back() {
    let cluster = Cluster::start();
    let database = cluster.database();
    let address: Address = cluster.url(&database).parse().unwrap();
    let store = Postgres::open(&address).await.unwrap();
    store.commit(vec![put(&session(1))]).await.unwrap();
    cluster.down();

    let began = Instant::now();
    let owner = ann();
    let (read, written) = tokio::join!(
        store.open_sessions(&owner, None),
        store.commit(vec![put(&session(2))])
    );
    for refusal in [read.unwrap_err(), written.unwrap_err()] {
        assert!(
            refusal
                .0
                .starts_with(&format!("{address} cannot be reached (")),
            "{refusal}"
        );
        assert!(refusal.0.contains("see whether Postgres runs there"));
    }
    assert!(began.elapsed() < Duration::from_secs(30));

    cluster.up();
    store.commit(vec![put(&session(3))]).await.unwrap();
    let open = store.open_sessions(&ann(), None).await.unwrap();
    let ids: Vec<_> = open.into_iter().map(|record| record.session.id).collect();
    assert_eq!(ids, [session_id(3), session_id(1)], "not what was refused");
}

#[tokio::test]
async fn a_server_that_restarts_is_waited_for() {
    let cluster = Cluster::start();
    let database = cluster.database();
    let address = cluster.url(&database).parse().unwrap();
    let store = Postgres::open(&address).await.unwrap();
    under_load(&store, 3, || {
        cluster.down();
        cluster.up();
    })
    .await;
}

#[tokio::test]
async fn connections_that_are_ended_at_any_moment_lose_nothing() {
    let home = Database::fresh().await;
    let store = home.open().await;
    under_load(&store, 30, || {
        home.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_is_killed_leaves_nothing_half_done() {
    let cluster = Cluster::start();
    let database = cluster.database();
    let store = Postgres::open(&cluster.url(&database).parse().unwrap())
        .await
        .unwrap();
    under_load(&store, 3, || {
        let pid = cluster.sql(
            &database,
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'dwell' LIMIT 1",
        );
        let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        // All others are ended for that; it takes connections again when it has recovered.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !cluster.answers(&database) {
            assert!(Instant::now() < deadline, "it does not recover");
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await;
}

/// Pairs of sessions are committed, eight at a time, while `disturb` is done again and
/// again. What was acknowledged is on record, what was refused is not, and no half of
/// any is; and in the end it works.
async fn under_load(store: &Postgres, times: usize, disturb: impl Fn()) {
    let (going, next) = (Cell::new(true), Cell::new(0));
    let (acknowledged, refused) = (Cell::new(BTreeSet::new()), Cell::new(BTreeSet::new()));
    let note = |list: &Cell<BTreeSet<u32>>, n| {
        let mut so_far = list.take();
        so_far.insert(n);
        list.set(so_far);
    };
    let commit = async |_| {
        while going.get() {
            let n = next.replace(next.get() + 1);
            let pair = vec![put(&session(2 * n)), put(&session(2 * n + 1))];
            match store.commit(pair).await {
                Ok(()) => note(&acknowledged, n),
                Err(_) => note(&refused, n),
            }
            let seen = store.open_sessions(&ann(), None).await;
            assert_eq!(seen.unwrap().len() % 2, 0, "half a pair was seen");
        }
    };
    let disturb_all = async {
        for _ in 0..times {
            let enough = next.get() + 8;
            while next.get() < enough {
                tokio::task::yield_now().await;
            }
            // It blocks; what goes on meanwhile is on the server's side.
            disturb();
        }
        going.set(false);
    };
    tokio::join!(join_all((0..8).map(commit)), disturb_all);

    store.commit(vec![put_machine(&machine(1))]).await.unwrap();
    let open = store.open_sessions(&ann(), None).await.unwrap();
    let on_record: BTreeSet<_> = open.iter().map(|record| record.session.id).collect();
    let (acknowledged, refused) = (acknowledged.take(), refused.take());
    for n in 0..next.get() {
        let pair = [2 * n, 2 * n + 1].map(|n| on_record.contains(&session_id(n)));
        let expected = acknowledged.contains(&n);
        assert_eq!(pair, [expected; 2], "{n}");
        assert_ne!(expected, refused.contains(&n));
    }
    assert!(acknowledged.len() >= times);
}

/// A store that is reached by a line of ours.
async fn by_a_line() -> (Postgres, Line) {
    let line = Line::to(Cluster::shared().socket()).await;
    let address = line.address(&Cluster::shared().database());
    (Postgres::open(&address).await.unwrap(), line)
}
