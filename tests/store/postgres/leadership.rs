//! Of several servers one leads, and the others hear what it puts on record.

use std::collections::BTreeSet;
use std::time::Duration;

use dwell::store::Store;
use dwell::store::postgres::{Candidate, Claim, Lease, Listener, News, Postgres};
use dwell_core::control_plane::Change;
use dwell_core::leadership::{Held, LEASE, ServerId};
use dwell_core::time::Millis;
use tokio::time::timeout;
use uuid::Uuid;

use super::Database;
use crate::conformance::Home;
use crate::rows::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn candidate(name: &str) -> Candidate {
    Candidate {
        id: ServerId(name.into()),
        url: format!("http://{name}"),
    }
}

async fn join(home: &Database) -> Postgres {
    Postgres::join(&home.address()).await.unwrap()
}

async fn won(store: &Postgres, name: &str) -> Lease {
    match store.claim(&candidate(name)).await.unwrap() {
        Claim::Ours(lease) => lease,
        Claim::Theirs(held) => panic!("{held:?} leads"),
    }
}

async fn lost(store: &Postgres, name: &str) -> Held {
    match store.claim(&candidate(name)).await.unwrap() {
        Claim::Ours(_) => panic!("{name} leads"),
        Claim::Theirs(held) => held,
    }
}

/// What is heard next; in vain it is not waited for.
async fn heard(listener: &mut Listener) -> News {
    let heard = timeout(PATIENCE, listener.next()).await;
    heard.expect("nothing was heard").unwrap()
}

/// As if nobody had renewed it for so long.
fn runs_out(home: &Database) {
    home.sql("UPDATE leadership SET until = clock_timestamp() WHERE NOT superseded");
}

fn sessions(changes: &[Change]) -> BTreeSet<Uuid> {
    let mut ids = BTreeSet::new();
    for change in changes {
        if let Change::Session(session) = change {
            ids.insert(session.id.0);
        }
    }
    ids
}

#[tokio::test]
async fn a_lease_that_is_good_is_nobody_elses_and_one_that_is_not_goes_to_who_asks() {
    let home = Database::fresh().await;
    let (first, second) = (join(&home).await, join(&home).await);
    let mut lease = won(&first, "first").await;
    let held = lost(&second, "second").await;
    assert_eq!((&*held.holder.0, &*held.url), ("first", "http://first"));
    assert!(Millis::ZERO < held.left && held.left <= LEASE, "{held:?}");
    let refused = second.commit(vec![put(&session(1))]).await;
    assert!(refused.is_err(), "one that follows has written");
    first.commit(vec![put(&session(2))]).await.unwrap();

    runs_out(&home);
    let mut next = won(&second, "second").await;
    assert!(!lease.renew().await.unwrap(), "it was another's already");
    assert!(next.renew().await.unwrap());
    let refused = first.commit(vec![put(&session(3))]).await.unwrap_err();
    assert!(refused.0.contains("was taken over"), "{refused}");
    second.commit(vec![put(&session(4))]).await.unwrap();
    let found = second.load().await.unwrap();
    let found: Vec<_> = found.sessions.iter().map(|session| session.id).collect();
    assert_eq!(found, [session_id(2), session_id(4)]);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_still_its_holders_until_another_asks() {
    let home = Database::fresh().await;
    let (first, second) = (join(&home).await, join(&home).await);
    let mut lease = won(&first, "first").await;
    runs_out(&home);
    assert!(lease.renew().await.unwrap());
    lost(&second, "second").await;
    first.commit(vec![put(&session(1))]).await.unwrap();
}

#[tokio::test]
async fn of_many_that_ask_at_once_one_leads() {
    let home = Database::fresh().await;
    let mut stores = Vec::new();
    for _ in 0..8 {
        stores.push(join(&home).await);
    }
    for round in 0..5 {
        let claims = stores.iter().enumerate().map(|(number, store)| async move {
            let candidate = candidate(&format!("{round}-{number}"));
            store.claim(&candidate).await.unwrap()
        });
        let claims = futures_util::future::join_all(claims).await;
        let leading = claims
            .iter()
            .filter(|claim| matches!(claim, Claim::Ours(_)))
            .count();
        assert_eq!(leading, 1);
        runs_out(&home);
    }
}

#[tokio::test]
async fn who_gives_the_lease_up_has_another_lead_at_once_and_who_listens_hears_of_it() {
    let home = Database::fresh().await;
    let (first, second) = (join(&home).await, join(&home).await);
    let lease = won(&first, "first").await;
    let mut listener = second.listen().await.unwrap();
    lease.release().await.unwrap();
    assert_eq!(heard(&mut listener).await, News::Leadership);
    let held = listener.look(&candidate("second")).await.unwrap().unwrap();
    assert_eq!(held.left, Millis::ZERO);
    won(&second, "second").await;
}

#[tokio::test]
async fn who_follows_hears_of_each_row_that_it_shows_and_of_none_that_was_refused() {
    let home = Database::fresh().await;
    let (first, second) = (join(&home).await, join(&home).await);
    let _lease = won(&first, "first").await;
    let mut listener = second.listen().await.unwrap();
    // More than one notification can name.
    let many: Vec<_> = (1..=450).map(|n| put(&session(n))).collect();
    first.commit(many).await.unwrap();
    let mut named = BTreeSet::new();
    while named.len() < 450 {
        match heard(&mut listener).await {
            News::Rows(ids) => named.extend(ids),
            News::Leadership => panic!("nobody else leads"),
        }
    }
    let rows = second.rows(named.iter().copied().collect()).await.unwrap();
    assert_eq!(sessions(&rows), named);

    runs_out(&home);
    let third = join(&home).await;
    let _lease = won(&third, "third").await;
    assert_eq!(heard(&mut listener).await, News::Leadership);
    first.commit(vec![put(&session(500))]).await.unwrap_err();
    third.commit(vec![put(&session(501))]).await.unwrap();
    let news = heard(&mut listener).await;
    assert_eq!(news, News::Rows(vec![session_id(501).0]));
}

#[tokio::test]
async fn who_missed_something_reads_what_is_open_and_the_end_of_what_it_knew() {
    let home = Database::fresh().await;
    let first = join(&home).await;
    let _lease = won(&first, "first").await;
    let all = vec![
        put(&session(1)),
        put(&ended(session(2), 5)),
        put(&ended(session(3), 5)),
    ];
    first.commit(all).await.unwrap();
    let second = join(&home).await;
    let read = second.all_rows(vec![session_id(2)]).await.unwrap();
    let expected = [session_id(1).0, session_id(2).0];
    assert_eq!(sessions(&read), expected.into());
}

#[tokio::test]
async fn servers_that_serve_know_of_each_other_until_one_is_not_seen_any_more() {
    let home = Database::fresh().await;
    let (first, second) = (join(&home).await, join(&home).await);
    let mut lease = won(&first, "first").await;
    assert!(lease.renew().await.unwrap());
    let mut listener = second.listen().await.unwrap();
    listener.look(&candidate("second")).await.unwrap();
    let both = lease.servers(&candidate("first")).await.unwrap();
    assert_eq!(both, ["http://first", "http://second"]);
    home.sql("UPDATE servers SET seen_at = seen_at - interval '1 minute' WHERE id = 'second'");
    let one = lease.servers(&candidate("first")).await.unwrap();
    assert_eq!(one, ["http://first"]);
}
