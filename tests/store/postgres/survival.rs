//! What is left when the process that writes is killed.

use dwell::store::Store;
use dwell::store::postgres::Postgres;

use super::Database;
use crate::child::{commit_for_ever, place_to_play_with, sessions_acknowledged, this_test};
use crate::cluster::Cluster;
use crate::conformance::Home;
use crate::rows::*;

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    if let Some(url) = place_to_play_with() {
        let address = url.to_str().unwrap().parse().unwrap();
        return commit_for_ever(Postgres::open(&address).await.unwrap()).await;
    }
    let home = Database::fresh().await;
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut server = this_test(
            "postgres::survival::what_was_acknowledged_survives_a_kill",
            Cluster::shared().url(&home.0).as_ref(),
            round * 1_000_000,
        );
        let mut said = sessions_acknowledged(&mut server);
        // At no particular moment: it goes on while we count.
        acknowledged.extend(said.by_ref().take(fastrand::usize(1..300)));
        server.kill().unwrap();
        server.wait().unwrap();
        acknowledged.extend(said);

        let store = home.open().await;
        for n in &acknowledged {
            let found = store.session(&ann(), session_id(*n)).await.unwrap();
            assert_eq!(found.map(|record| record.session), Some(session(*n)));
        }
    }
    assert!(acknowledged.len() >= 5);
}
