//! Thousands of sessions, with commands that answer as Slurm's do at that size.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::stand_in::StandIn;
use crate::harness::Server;
use crate::seen::words;

const SESSIONS: usize = 5_000;
const CLIENTS: usize = 8;
/// Longer than it takes to submit all of them, or to look a few times.
const PATIENCE: Duration = Duration::from_secs(300);
/// So many looks are looked at.
const LOOKS: u32 = 6;
/// From the end of a look to the next, unless `look_seconds` says otherwise.
const PAUSE: Duration = Duration::from_secs(3);

/// How long a process has computed.
fn computed(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|at| fields[*at].parse::<u64>().unwrap())
        .sum();
    // A hundred in a second, on every Linux.
    Duration::from_millis(ticks * 10)
}

async fn until(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "it is not so");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Until that many looks have begun: all but the last are over.
async fn looks(slurm: &StandIn, more: u32) {
    let before = slurm.looks();
    until(|| slurm.looks() >= before + more as usize).await;
}

/// It asks one question each time, not sooner than without sessions, and rests.
async fn next_to_no_work(server: &Server, slurm: &StandIn, what: &str) {
    // Until what was new is on record.
    looks(slurm, 2).await;
    let (before, began) = (computed(server.pid()), Instant::now());
    looks(slurm, LOOKS).await;
    let span = began.elapsed();
    let took = computed(server.pid()).saturating_sub(before);
    let said = format!("{SESSIONS} {what}: {LOOKS} looks in {span:?}, {took:?} of a core");
    eprintln!("{said}");
    assert!(span >= PAUSE * (LOOKS - 1), "{said}");
    assert!(took < span / 10, "{said}");
}

#[tokio::test]
async fn thousands_of_sessions_are_one_question_and_next_to_no_work() {
    let slurm = StandIn::new();
    // Agents that never call are waited for.
    let config = "[limits]\nsessions_per_machine = 100000\nsessions_per_owner = 100000\n\
                  lost_after_seconds = 3600\n\
                  [[launcher]]\nkind = \"slurm\"\ngpus = { A10G = \"gpu:a10g\" }\n";
    let dir = tempfile::tempdir().unwrap();
    let environment = slurm.environment();
    let server = Server::try_start_in(dir.path(), config, "127.0.0.1:0", &[], &environment);
    let server = server.unwrap();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let api = server.api.clone();
        clients.spawn(async move {
            let mut last = String::new();
            for _ in 0..SESSIONS / CLIENTS {
                last = api
                    .create_with(json!({"command": ["true"], "gpu": "A10G"}))
                    .await;
            }
            last
        });
    }
    let some = clients.join_all().await;
    until(|| slurm.jobs() >= SESSIONS).await;
    next_to_no_work(&server, &slurm, "that wait").await;
    let are = async |state: &str, said: &str| {
        for id in &some {
            let session: Value = server.api.session(id).await;
            assert_eq!(session["status"], state, "{session}");
            assert_eq!(words(&session).last().unwrap(), said, "{session}");
        }
    };
    are("queued", "PENDING (Priority)").await;

    slurm.all_run();
    next_to_no_work(&server, &slurm, "whose jobs run").await;
    are("starting", "RUNNING").await;
    assert_eq!(slurm.jobs(), SESSIONS);
}
