//! Of several servers on one database one may write.

use std::cell::Cell;

use dwell::store::Store;

use super::{Database, refusal};
use crate::cluster::Cluster;
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn who_was_taken_over_can_write_no_more() {
    let home = Database::fresh().await;
    let (first, second) = (home.open().await, home.open().await);
    let refused = first.commit(vec![put(&session(1))]).await.unwrap_err();
    let expected = format!(
        "{} was taken over by another server, and this one can write no more; stop this one, or \
         restart it to take over again",
        home.address()
    );
    assert_eq!(refused.0, expected);
    second.commit(vec![put(&session(2))]).await.unwrap();
    // The first may still look.
    for store in [&first, &second] {
        let open = store.open_sessions(&ann(), None).await.unwrap();
        assert_eq!(open.len(), 1);
        assert_eq!(open[0].session, session(2));
    }
}

#[tokio::test]
async fn nothing_of_the_old_server_comes_after_the_new_one_has_begun() {
    let home = Database::fresh().await;
    let first = home.open().await;
    let acknowledged = Cell::new(0);
    let write = async {
        for n in 0.. {
            match first.commit(vec![put(&session(n))]).await {
                Ok(()) => acknowledged.set(n + 1),
                Err(refused) => {
                    assert!(refused.0.contains("taken over"), "{refused}");
                    return;
                }
            }
        }
    };
    let take_over = async {
        while acknowledged.get() < 20 {
            tokio::task::yield_now().await;
        }
        let second = home.open().await;
        let found = second.load().await.unwrap().sessions.len();
        (second, found)
    };
    let ((), (second, found)) = tokio::join!(write, take_over);
    assert_eq!(found, acknowledged.get() as usize);
    assert_eq!(second.load().await.unwrap().sessions.len(), found);
}

#[tokio::test]
async fn a_collision_is_tried_again_and_a_lasting_one_is_said() {
    for code in ["40001", "40P01"] {
        let home = Database::fresh().await;
        let store = home.open().await;
        // The first three collide; a sequence is not undone with its transaction.
        home.sql(&format!(
            "CREATE SEQUENCE tries;
             CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF nextval('tries') <= 3 THEN
                     RAISE EXCEPTION 'collided' USING ERRCODE = '{code}';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER collide BEFORE INSERT ON sessions
                 FOR EACH ROW EXECUTE FUNCTION collide()"
        ));
        store.commit(vec![put(&session(1))]).await.unwrap();
        assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 1);

        home.sql("ALTER SEQUENCE tries MINVALUE -1000000 RESTART -1000000");
        let refused = store.commit(vec![put(&session(2))]).await.unwrap_err();
        assert!(
            refused
                .0
                .contains("has others who write to it all the time (collided); try again"),
            "{refused}"
        );
        let tries: i64 = home.sql("SELECT last_value FROM tries").parse().unwrap();
        assert!((-1_000_000..-999_950).contains(&tries), "{tries}");
        assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_standby_is_refused_until_it_is_promoted() {
    let primary = Cluster::start();
    let database = primary.database();
    let address = primary.url(&database).parse().unwrap();
    let store = dwell::store::postgres::Postgres::open(&address)
        .await
        .unwrap();
    store.commit(vec![put(&session(1))]).await.unwrap();
    let standby = primary.standby();
    let address = standby.url(&database).parse().unwrap();
    let expected = format!("{address} is a standby, which can only be read; name the primary");
    assert_eq!(refusal(&address).await, expected);

    standby.program("pg_ctl", &["-w", "promote"]);
    let store = dwell::store::postgres::Postgres::open(&address)
        .await
        .unwrap();
    store.commit(vec![put(&session(2))]).await.unwrap();
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_server_that_becomes_read_only_refuses_and_works_when_it_is_not() {
    let home = Database::fresh().await;
    let store = home.open().await;
    let set = |value: &str| {
        home.sql(&format!(
            "ALTER DATABASE {} SET default_transaction_read_only = {value}",
            home.0
        ));
        // As when the primary became a standby: its clients have to come anew.
        home.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
    };
    set("on");
    let refused = store.commit(vec![put(&session(1))]).await.unwrap_err();
    let expected = format!("{} is read-only (", home.address());
    assert!(refused.0.starts_with(&expected), "{refused}");
    assert!(store.open_sessions(&ann(), None).await.unwrap().is_empty());
    assert!(refusal(&home.address()).await.starts_with(&expected));
    Cluster::shared().sql(
        "postgres",
        &format!(
            "ALTER DATABASE {} SET default_transaction_read_only = off",
            home.0
        ),
    );
    store.commit(vec![put(&session(1))]).await.unwrap();
}
