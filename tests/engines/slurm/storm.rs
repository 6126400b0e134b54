//! Clients at work while Slurm's daemons and the server are killed at random.
//! `DWELL_SLURM_SECONDS` is for how long, `DWELL_SLURM_SEED` which storm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};

use super::cluster::{Cluster, NODES};
use super::servers::{Manner, nothing_is_left, server_of};
use crate::client::{Client, Door, number};
use crate::harness::{DWELL, Server, here};
use crate::ledger::Ledger;

const CLIENTS: usize = 8;
/// Ghosts of a controller that was killed stay that long.
const AT_REST_WITHIN: Duration = Duration::from_secs(240);

/// The clients' `CPU` is what the cluster has least of.
const TYPES: &str = "gpus = { A10G = \"gpu:a10g\", CPU = \"gpu:l4\" }";
const OF_TYPE: [(&str, usize); 2] = [("A10G", 8), ("CPU", 2)];

fn rage(cluster: &Cluster, mut server: Server, mut rng: Rng, until: Instant) -> Server {
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(rng.u64(500..3_000)));
        let span = Duration::from_millis(rng.u64(100..3_000));
        match rng.u8(..4) {
            0 => {
                server.kill();
                std::thread::sleep(span / 2);
                server.restart();
            }
            1 => {
                cluster.kill_slurmctld();
                std::thread::sleep(span);
                cluster.slurmctld_comes_back();
            }
            2 => {
                cluster.pause_slurmctld();
                std::thread::sleep(span);
                cluster.resume_slurmctld();
            }
            _ => {
                let node = NODES[rng.usize(..NODES.len())].node;
                cluster.kill_slurmd(node);
                std::thread::sleep(span);
                cluster.slurmd_comes_back(node);
            }
        }
    }
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_in_a_storm_holds_and_nothing_is_left() {
    let seed = number("DWELL_SLURM_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = number("DWELL_SLURM_SECONDS").unwrap_or(45);
    eprintln!("storm {seed} for {seconds} s; again with DWELL_SLURM_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let cluster = Arc::new(Cluster::with("MessageTimeout=2"));
    let starts = cluster.file("app-starts");
    let app = |name: &str| {
        let app = here(&format!("tests/apps/{name}"));
        let line = format!(
            "echo $DWELL_SESSION_ID >> {}; exec python3 -S {}",
            starts.display(),
            app.display()
        );
        json!(["sh", "-c", line])
    };
    let manner = Manner {
        launcher: format!("moves_time_limits = true\nagent = \"{DWELL}\"\n"),
        gpus: TYPES,
        ..Manner::default()
    };
    let server = server_of(&cluster, &manner);
    let until = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let door = Door::to(server.api.clone());
            tokio::spawn(Client::new(door, app, rng.fork()).work(until))
        })
        .collect();
    let raging = Arc::clone(&cluster);
    let server = tokio::task::spawn_blocking(move || rage(&raging, server, rng, until));
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
    all_come_to_rest(&server, &ledger).await;

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
    no_more_gpus_are_held_than_there_are(listed);
    nothing_is_left(&cluster, &ids).await;
    let started = std::fs::read_to_string(starts).unwrap();
    let mut seen = BTreeSet::new();
    for id in started.lines() {
        assert!(seen.insert(id), "{id} was started twice");
    }
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

fn no_more_gpus_are_held_than_there_are(sessions: &[Value]) {
    for (gpu, count) in OF_TYPE {
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
