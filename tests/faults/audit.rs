//! What must hold once all has come to rest, whatever went wrong before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::harness::PATIENCE;
use super::ledger::{
    Ledger, every_app_was_started_once_at_most, every_end_has_a_reason, no_gpu_was_held_twice, text,
};
use super::witness::gone_at;
use super::world::World;

/// An event may be longer than its app was seen by this: what an agent needs around it.
const SLACK_MS: u64 = 1_000;

/// End what is open, wait until all is at rest, and check that nothing is left and
/// everything is true.
pub async fn audit(world: &mut World, ledger: &Ledger) {
    // The one who answers may be another than the one who was started last.
    world.revive();
    end_what_is_open(world, ledger).await;
    for id in ledger.sessions.keys() {
        ledger.check(&world.get(&format!("/session/{id}")).await);
    }
    let sessions = sessions_on_record(&world.data_dir().join("store.db"));
    nothing_is_left(world, &sessions).await;
    every_end_has_a_reason(&sessions);
    let started: Vec<_> = world
        .starts()
        .into_iter()
        .map(|(session, _)| session)
        .collect();
    every_app_was_started_once_at_most(&started, &sessions);
    no_gpu_was_held_twice(&sessions);
    no_event_is_longer_than_its_app_was_there(world, ledger, &sessions);
    the_bill_is_the_sum_of_its_events(world, &sessions).await;
}

async fn end_what_is_open(world: &mut World, ledger: &Ledger) {
    let mut asked = BTreeSet::new();
    let began = Instant::now();
    loop {
        let open = world.get("/sessions").await;
        let open = open.as_array().unwrap();
        if open.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "still open: {open:?}");
        for id in ledger.not_cancelled(open) {
            let path = format!("/session/{id}");
            if asked.insert(id) {
                world.ask(Method::DELETE, &path, json!(null)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The sessions as the store has them.
pub fn sessions_on_record(store: &Path) -> Vec<Value> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(store, flags).unwrap();
    let mut query = connection.prepare("SELECT body FROM sessions").unwrap();
    let bodies = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
    bodies
        .map(|body| serde_json::from_str(&body.unwrap()).unwrap())
        .collect()
}

async fn nothing_is_left(world: &World, sessions: &[Value]) {
    let began = Instant::now();
    loop {
        let mut left: Vec<String> = world.processes().iter().map(described).collect();
        for hierarchy in ["unified", "memory", "pids", "."] {
            let place = Path::new("/sys/fs/cgroup").join(hierarchy).join("dwell");
            let dirs = sessions.iter().map(|of| place.join(text(&of["id"])));
            left.extend(
                dirs.filter(|dir| dir.exists())
                    .map(|dir| dir.display().to_string()),
            );
        }
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "left: {left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn described(pid: &u32) -> String {
    let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("process {pid}: {}", words.replace('\0', " "))
}

fn no_event_is_longer_than_its_app_was_there(world: &World, ledger: &Ledger, sessions: &[Value]) {
    let starts: BTreeMap<String, u64> = world.starts().into_iter().collect();
    for session in sessions {
        let id = text(&session["id"]);
        let (Some(start), Some(gone)) = (starts.get(id), gone_at(id)) else {
            continue;
        };
        if ledger.stood_still.contains(id) {
            continue;
        }
        let held = session["gpu_event"]["held"].as_u64().unwrap();
        let seen = gone.saturating_sub(*start);
        assert!(held <= seen + SLACK_MS, "seen for {seen} ms: {session}");
    }
}

async fn the_bill_is_the_sum_of_its_events(world: &mut World, sessions: &[Value]) {
    let in_micro_dollars = |dollars: &Value| (dollars.as_f64().unwrap() * 1e6).round();
    let events = world.get("/platform/usage-details").await;
    let events = events.as_array().unwrap();
    let sum: f64 = events
        .iter()
        .map(|event| in_micro_dollars(&event["cost"]))
        .sum();
    let usage = world.get("/platform/usage").await;
    assert_eq!(sum, in_micro_dollars(&usage["total_cost"]), "{usage}");
    // The prices are so many micro-dollars a millisecond.
    let owed = |session: &Value| {
        let held = session["gpu_event"]["held"].as_f64().unwrap_or_default();
        held * if session["gpu_type"] == "CPU" {
            1e3
        } else {
            2e3
        }
    };
    assert_eq!(sum, sessions.iter().map(owed).sum::<f64>());
}
