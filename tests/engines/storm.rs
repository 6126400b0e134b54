//! Clients at work while an engine's daemons and the server are killed at random, and what
//! must hold when the storm is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;

use crate::client::{Client, Door};
use crate::harness::Server;
use crate::ledger::Ledger;

const CLIENTS: usize = 8;
/// Ghosts of daemons that were killed stay that long.
const AT_REST_WITHIN: Duration = Duration::from_secs(240);

/// Have clients work with `server` for this long while `rage` has its way with all: what they
/// were promised, and the server that is left. `app` makes a command of a test app's name.
pub async fn weathered(
    server: Server,
    seconds: u64,
    mut rng: Rng,
    app: impl Fn(&str) -> Value,
    rage: impl FnOnce(Server, Rng, Instant) -> Server + Send + 'static,
) -> (Server, Ledger) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let door = Door::to(server.api.clone());
            tokio::spawn(Client::new(door, &app, rng.fork()).work(until))
        })
        .collect();
    let server = tokio::task::spawn_blocking(move || rage(server, rng, until));
    let server = server.await.unwrap();
    let mut ledger = Ledger::default();
    for client in clients {
        ledger.sessions.extend(client.await.unwrap().sessions);
    }
    eprintln!("{} sessions came and went", ledger.sessions.len());
    assert!(
        ledger.sessions.len() > CLIENTS,
        "the storm kept all from working"
    );
    (server, ledger)
}

/// End what is open, and hold the server to all that it said: the ids of all sessions, of
/// which no more held a GPU at once than there are of its type.
pub async fn audit(server: &Server, ledger: &Ledger, of_type: [(&str, usize); 2]) -> Vec<String> {
    all_come_to_rest(server, ledger).await;
    let listed = server
        .api
        .get("/sessions?include_ended=true&limit=1000")
        .await;
    let listed = listed.json();
    let listed = listed.as_array().unwrap();
    let ids: Vec<String> = listed
        .iter()
        .map(|session| session["id"].as_str().unwrap().to_owned())
        .collect();
    for id in ledger.sessions.keys() {
        ledger.check(&server.api.session(id).await);
        assert!(ids.contains(id), "{id} is not listed");
    }
    for session in listed {
        an_end_is_told(session);
    }
    no_more_gpus_are_held_than_there_are(listed, of_type);
    ids
}

async fn all_come_to_rest(server: &Server, ledger: &Ledger) {
    let (began, mut asked) = (Instant::now(), BTreeSet::new());
    loop {
        let open = server.api.get("/sessions").await.json();
        let open = open.as_array().unwrap();
        if open.is_empty() {
            return;
        }
        assert!(began.elapsed() < AT_REST_WITHIN, "still open: {open:?}");
        for id in ledger.not_cancelled(open) {
            if asked.insert(id.clone()) {
                server.api.delete(&format!("/session/{id}")).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn moment(session: &Value, key: &str) -> Option<jiff::Timestamp> {
    session[key].as_str()?.parse().ok()
}

/// By one reason, with a sentence where one is owed, and its GPU was held within its life.
fn an_end_is_told(session: &Value) {
    assert_eq!(session["status"], "ended", "{session}");
    let reason = session["end_reason"].as_str().unwrap();
    let owes = ["failed", "lost"].contains(&reason);
    assert!(!owes || session["error"].is_string(), "{session}");
    let (start, end) = (moment(session, "start_time"), moment(session, "end_time"));
    assert_eq!(start.is_some(), end.is_some(), "{session}");
    if let (Some(start), Some(end)) = (start, end) {
        // A wall clock's moments are rounded.
        let slack = jiff::SignedDuration::from_secs(2);
        let (created, ended) = (moment(session, "created_at"), moment(session, "ended_at"));
        assert!(start + slack >= created.unwrap(), "{session}");
        assert!(end <= ended.unwrap() + slack, "{session}");
    }
}

fn no_more_gpus_are_held_than_there_are(sessions: &[Value], of_type: [(&str, usize); 2]) {
    for (gpu, count) in of_type {
        // Ends before beginnings, where they are the same moment.
        let mut steps: BTreeMap<(jiff::Timestamp, bool), i64> = BTreeMap::new();
        for session in sessions.iter().filter(|session| session["gpu"] == gpu) {
            if let (Some(start), Some(end)) =
                (moment(session, "start_time"), moment(session, "end_time"))
            {
                *steps.entry((start, true)).or_default() += 1;
                *steps.entry((end, false)).or_default() -= 1;
            }
        }
        let mut held = 0;
        for (moment, step) in steps {
            held += step;
            let count = i64::try_from(count).unwrap();
            assert!(held <= count, "{held} of {count} {gpu} at {moment:?}");
        }
    }
}
