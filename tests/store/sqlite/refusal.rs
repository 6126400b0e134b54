//! Commits that cannot be written, and what waits beside them.

use dwell::store::Store;
use futures_util::future::join_all;
use rusqlite::{Connection, TransactionBehavior};

use super::Directory;
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn commits_that_wait_together_are_written_together() {
    let home = Directory::fresh().await;
    let store = home.open().await;
    let before = store.transactions();
    // Someone else has the file while a hundred commits are asked for.
    let mut other = Connection::open(home.file()).unwrap();
    let lock = other
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .unwrap();
    let commits = join_all((0..100).map(|n| store.commit(vec![put(&session(n))])));
    let (results, ()) = tokio::join!(commits, async { drop(lock) });
    for result in results {
        result.unwrap();
    }
    // What the writer had begun to wait with, and all the others.
    assert!(store.transactions() - before <= 2);
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 100);
}

#[tokio::test]
async fn a_file_that_another_program_locks_is_said_and_read_meanwhile() {
    let home = Directory::fresh().await;
    let store = home.open().await;
    store.commit(vec![put(&session(1))]).await.unwrap();
    let mut other = Connection::open(home.file()).unwrap();
    let lock = other
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .unwrap();

    let two = [vec![put(&session(2))], vec![put(&session(3))]];
    for result in join_all(two.map(|changes| store.commit(changes))).await {
        let expected = format!(
            "{} is locked by another program (a backup?); try again when that is done",
            home.file().display()
        );
        assert_eq!(result.unwrap_err().0, expected);
    }
    let open = store.open_sessions(&ann(), None).await.unwrap();
    assert_eq!(open.len(), 1, "what is on record can be read");

    drop(lock);
    store.commit(vec![put(&session(2))]).await.unwrap();
    let open = store.open_sessions(&ann(), None).await.unwrap();
    assert_eq!(open.len(), 2);
}

#[tokio::test]
async fn a_commit_goes_on_when_its_asker_has_gone() {
    let home = Directory::fresh().await;
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
