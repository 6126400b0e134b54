//! A session ends within a second of its deadline, whatever happens to everything that
//! is not its agent. (A paused agent: `tests/agent`.)

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::harness::{ROOMY, Server, app, app_processes, here, signal};

/// The shortest that a session can be granted.
const GRANTED: Duration = Duration::from_secs(60);

/// When a session was asked for, and when it was seen to run: its deadline is a minute
/// after that, or a little earlier.
#[derive(Clone, Copy)]
struct Began {
    asked: Instant,
    seen: Instant,
}

/// A session of an app that ignores TERM.
async fn running(server: &Server) -> (String, Began) {
    let asked = Instant::now();
    let body = json!({"command": app("stubborn.py"), "timeout": 1});
    let id = server.api.create_with(body).await;
    server.api.running(&id).await;
    let seen = Instant::now();
    (id, Began { asked, seen })
}

/// Its last process goes at its deadline, not before and not much later. The longest
/// that it can have held its GPU.
async fn ends_on_time(session: &str, began: Began) -> Duration {
    let Began { asked, seen } = began;
    let sessions = [session.to_owned()];
    while !app_processes(&sessions).is_empty() {
        let after = seen.elapsed();
        assert!(
            after < GRANTED + Duration::from_secs(1),
            "there after {after:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = seen.elapsed();
    assert!(
        after > GRANTED - Duration::from_secs(1),
        "gone after {after:?}"
    );
    asked.elapsed()
}

/// It is on record as timed out, with an event that is as long as it ran.
async fn is_on_record(server: &Server, session: &str, held_max: Duration) {
    let ended = server.api.ended(session).await;
    assert_eq!(ended["end_reason"], "timed_out", "{ended}");
    let events = server.api.get("/platform/usage-details").await.json();
    let event = events
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["session_id"] == session)
        .unwrap();
    let moment = |name: &str| -> i64 {
        let moment: jiff::Timestamp = event[name].as_str().unwrap().parse().unwrap();
        moment.as_millisecond()
    };
    let held = moment("end_time") - moment("start_time");
    let held = Duration::from_millis(held.try_into().unwrap());
    // Its agent may look a moment later than we did.
    let expected = GRANTED..held_max + Duration::from_secs(1);
    assert!(
        expected.contains(&held),
        "{held:?}, not {expected:?}: {event}"
    );
}

/// All at once, since each takes its minute.
#[tokio::test]
async fn a_session_ends_on_time_whatever_becomes_of_server_network_store_and_clock() {
    const DAY_SECONDS: i64 = 86_400;
    tokio::join!(
        with_the_server_killed(),
        with_the_network_cut_so_that_nothing_comes_and_nothing_is_refused(),
        with_the_store_gone_and_back_again(),
        with_the_clock_stepped(DAY_SECONDS),
        with_the_clock_stepped(-DAY_SECONDS),
    );
}

async fn with_the_server_killed() {
    let mut server = Server::start(ROOMY);
    let (id, began) = running(&server).await;
    server.kill();
    let held_max = ends_on_time(&id, began).await;
    server.restart();
    is_on_record(&server, &id, held_max).await;
    server.nothing_is_left(&[id]).await;
}

async fn with_the_network_cut_so_that_nothing_comes_and_nothing_is_refused() {
    let server = Server::start(ROOMY);
    let (id, began) = running(&server).await;
    // Its sockets stay open, as those of a host behind a cut cable do.
    signal(server.pid(), Signal::SIGSTOP);
    let held_max = ends_on_time(&id, began).await;
    signal(server.pid(), Signal::SIGCONT);
    is_on_record(&server, &id, held_max).await;
    server.nothing_is_left(&[id]).await;
}

async fn with_the_store_gone_and_back_again() {
    let mut server = Server::start(ROOMY);
    let (id, began) = running(&server).await;
    let aside = server.dir.join("aside");
    std::fs::create_dir(&aside).unwrap();
    let files = ["store.db", "store.db-wal", "store.db-shm"];
    for name in files {
        std::fs::rename(server.dir.join(name), aside.join(name)).unwrap();
    }
    // Nothing is acknowledged that would be lost with what is gone.
    let refused = server
        .api
        .post("/session/dynamic", json!({"command": app("serve.py")}))
        .await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.detail().contains("store.db"), "{refused:?}");
    let held_max = ends_on_time(&id, began).await;
    for name in files {
        std::fs::rename(aside.join(name), server.dir.join(name)).unwrap();
    }
    is_on_record(&server, &id, held_max).await;
    server.nothing_is_left(std::slice::from_ref(&id)).await;
    // It was the same store all the time.
    server.kill();
    server.restart();
    is_on_record(&server, &id, held_max).await;
}

async fn with_the_clock_stepped(by_seconds: i64) {
    let dir = tempfile::tempdir().unwrap();
    let step = dir.path().join("step");
    std::fs::write(&step, 0_i64.to_ne_bytes()).unwrap();
    let environment = [
        (
            "LD_PRELOAD",
            stepped_clock(dir.path()).display().to_string(),
        ),
        ("STEPPED_CLOCK", step.display().to_string()),
    ];
    let data_dir = dir.path().join("data");
    let server = Server::try_start_in(&data_dir, ROOMY, "127.0.0.1:0", &[], &environment).unwrap();
    let (id, began) = running(&server).await;
    let wall = async |id: &str| -> i64 {
        let session: Value = server.api.session(id).await;
        let created: jiff::Timestamp = session["created_at"].as_str().unwrap().parse().unwrap();
        created.as_second()
    };
    let before = wall(&id).await;
    std::fs::write(&step, by_seconds.to_ne_bytes()).unwrap();
    let later = server.api.create(app("serve.py")).await;
    let stepped = wall(&later).await - before;
    assert!(
        (stepped - by_seconds).abs() < 60,
        "the clock was not stepped: {stepped} s"
    );
    let held_max = ends_on_time(&id, began).await;
    is_on_record(&server, &id, held_max).await;
    server.api.stop(&later).await;
    server.nothing_is_left(&[id, later]).await;
}

fn stepped_clock(dir: &std::path::Path) -> PathBuf {
    let library = dir.join("stepped_clock.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(here("tests/setup/stepped_clock.c"))
        .arg("-ldl")
        .status();
    assert!(compiled.unwrap().success());
    library
}
