//! What is said of a database that cannot be used, and commits that it refuses.

use dwell::store::{Store, postgres};
use futures_util::future::join_all;

use super::{Database, refusal};
use crate::cluster::Cluster;
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn commits_that_wait_together_are_written_together() {
    let home = Database::fresh().await;
    let store = home.open().await;
    let before = store.transactions();
    let commits = (0..100).map(|n| store.commit(vec![put(&session(n))]));
    for result in join_all(commits).await {
        result.unwrap();
    }
    assert!(store.transactions() - before <= 2);
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 100);
}

#[tokio::test]
async fn a_commit_goes_on_when_its_asker_has_gone() {
    let home = Database::fresh().await;
    let store = home.open().await;
    {
        let mut asked = Box::pin(store.commit(vec![put(&session(1))]));
        let now = std::future::poll_fn(|context| {
            std::task::Poll::Ready(asked.as_mut().poll(context).is_ready())
        });
        let _ = now.await;
    }
    // In the writer's order: the first is there when the second is.
    store.commit(vec![put(&session(2))]).await.unwrap();
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_lock_that_another_session_holds_is_said_and_read_meanwhile() {
    let home = Database::fresh().await;
    let store = home.open().await;
    store.commit(vec![put(&session(1))]).await.unwrap();
    let lock = "BEGIN; LOCK TABLE sessions IN EXCLUSIVE MODE";
    let other = Cluster::shared().meanwhile(&home.0, lock);
    let refused = store.commit(vec![put(&session(2))]).await.unwrap_err();
    let expected = format!("{} is locked by another session", home.address());
    assert!(refused.0.starts_with(&expected), "{refused}");
    let open = store.open_sessions(&ann(), None).await.unwrap();
    assert_eq!(open.len(), 1, "what is on record can be read");
    drop(other);
    store.commit(vec![put(&session(2))]).await.unwrap();
}

#[tokio::test]
async fn who_is_not_let_in_is_told_so_and_no_password_is_shown() {
    let home = Database::fresh().await;
    home.sql(
        "DO $$ BEGIN CREATE ROLE ann LOGIN PASSWORD 'right'; EXCEPTION WHEN duplicate_object \
         THEN NULL; END $$",
    );
    let as_ann = |password: &str| {
        let url = Cluster::shared().url(&home.0);
        url.replace("dwell@", &format!("ann:{password}@"))
            .parse()
            .unwrap()
    };
    let refused = refusal(&as_ann("wrong-secret")).await;
    assert!(refused.contains("does not let us in"), "{refused}");
    assert!(refused.contains("PGPASSFILE"), "{refused}");
    assert!(!refused.contains("secret"), "{refused}");
    // In, and not allowed to make tables there.
    let refused = refusal(&as_ann("right")).await;
    assert!(refused.contains("does not allow it"), "{refused}");
    assert!(refused.contains("make dwell's user the owner"), "{refused}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let address = Cluster::shared().url("nowhere").parse().unwrap();
    let expected =
        format!("{address} is not there: make the database with createdb, or name another");
    assert_eq!(refusal(&address).await, expected);
    let elsewhere = "postgres://dwell@127.0.0.1:1/dwell".parse().unwrap();
    let refused = refusal(&elsewhere).await;
    let expected = "postgres://dwell@127.0.0.1:1/dwell cannot be reached (";
    assert!(refused.starts_with(expected), "{refused}");
    assert!(!refused.contains('\n'), "{refused}");
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let name = format!("{}_latin", Cluster::shared().database());
    Cluster::shared().sql(
        "postgres",
        &format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"),
    );
    let refused = refusal(&Cluster::shared().url(&name).parse().unwrap()).await;
    assert!(refused.contains("has the encoding LATIN1"), "{refused}");
}

#[tokio::test]
async fn a_database_of_something_else_is_refused_and_left_as_it_is() {
    let home = Database::fresh().await;
    home.sql("CREATE TABLE sessions (mine TEXT)");
    let refused = refusal(&home.address()).await;
    assert!(
        refused.contains("has something else of a name that dwell needs"),
        "{refused}"
    );
    let tables =
        home.sql("SELECT string_agg(tablename, ',') FROM pg_tables WHERE schemaname = 'public'");
    assert_eq!(tables, "sessions");
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let home = Database::fresh().await;
    drop(home.open().await);
    home.sql("UPDATE dwell_schema SET version = 7");
    let fences = home.sql("SELECT count(*) FROM leadership");
    let expected = format!(
        "{} was written by a newer version of dwell (schema 7, this one knows 1); upgrade dwell",
        home.address()
    );
    assert_eq!(refusal(&home.address()).await, expected);
    assert_eq!(home.sql("SELECT count(*) FROM leadership"), fences);
}

#[tokio::test]
async fn who_only_looks_changes_nothing_and_takes_nothing_over() {
    let home = Database::fresh().await;
    let address = home.address();
    let found = postgres::look(&address).await.unwrap();
    assert!(found.ends_with(", nothing of dwell's yet"), "{found}");
    assert_eq!(home.sql("SELECT to_regclass('sessions') IS NULL"), "t");
    let store = home.open().await;
    let found = postgres::look(&address).await.unwrap();
    assert!(found.starts_with(&format!("{address}, Postgres ")));
    assert!(found.ends_with(", schema 1"), "{found}");
    store.commit(vec![put(&session(1))]).await.unwrap();
}

#[tokio::test]
async fn a_row_that_cannot_be_understood_is_said() {
    let home = Database::fresh().await;
    let store = home.open().await;
    store.commit(vec![put(&session(1))]).await.unwrap();
    home.sql("UPDATE sessions SET body = '{}'");
    for refused in [
        store.session(&ann(), session_id(1)).await.unwrap_err(),
        store.load().await.unwrap_err(),
    ] {
        let expected = format!("{} has a row that cannot be read", home.address());
        assert!(refused.0.starts_with(&expected), "{refused}");
    }
}

#[tokio::test]
async fn a_database_that_lacks_a_table_is_said() {
    let home = Database::fresh().await;
    let store = home.open().await;
    home.sql("DROP TABLE shares");
    let refused = store.load().await.unwrap_err();
    assert!(
        refused.0.contains("lacks something of dwell's"),
        "{refused}"
    );
    assert!(refused.0.contains("restore the database from a backup"));
}
