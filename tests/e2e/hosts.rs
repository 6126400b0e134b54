//! Hosts that vanish, and come back.

use nix::sys::signal::Signal;
use serde_json::json;

use super::harness::{Server, app, app_processes, processes, signal};

/// Short silences, so that the test is too.
const IMPATIENT: &str = "[gpus]
CPU = 2
[prices]
CPU = 3600.0
[limits]
heartbeat_seconds = 0.2
relaunch_after_seconds = 1
lost_after_seconds = 3
";

/// A session's host as the server sees one that it cannot reach: all of it stands
/// still, and no agent can be asked for there.
struct Vanished {
    processes: Vec<u32>,
    place: std::path::PathBuf,
    aside: std::path::PathBuf,
}

impl Vanished {
    fn host_of(server: &Server, session: &str) -> Self {
        let mut all = server.agent_of(session);
        // The first process is the agent's child and has no mark of the session.
        for agent in all.clone() {
            let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children"));
            all.extend(
                children
                    .unwrap()
                    .split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
        all.extend(app_processes(&[session.to_owned()]));
        for pid in &all {
            signal(*pid, Signal::SIGSTOP);
        }
        let place = server.dir.join("sessions").join(session);
        let aside = server.dir.join("vanished");
        std::fs::rename(&place, &aside).unwrap();
        // Nothing can be made where a file is in the way.
        std::fs::write(&place, "").unwrap();
        Self {
            processes: all,
            place,
            aside,
        }
    }

    fn comes_back(&self) {
        std::fs::remove_file(&self.place).unwrap();
        std::fs::rename(&self.aside, &self.place).unwrap();
        for pid in &self.processes {
            signal(*pid, Signal::SIGCONT);
        }
    }
}

impl Drop for Vanished {
    fn drop(&mut self) {
        for pid in &self.processes {
            signal(*pid, Signal::SIGCONT);
        }
    }
}

#[tokio::test]
async fn a_session_whose_host_vanished_is_lost_and_what_comes_back_of_it_is_killed() {
    let server = Server::start(IMPATIENT);
    let id = server.api.create(app("stubborn.py")).await;
    server.api.running(&id).await;
    let ids = [id.clone()];
    let host = Vanished::host_of(&server, &id);
    let ended = server.api.ended(&id).await;
    assert_eq!(ended["end_reason"], "lost", "{ended}");
    assert_eq!(ended["error"], "Its host was not heard of for 3 s");
    let events = server.api.get("/platform/usage-details").await.json();
    let moment = |value: &serde_json::Value| -> i64 {
        let moment: jiff::Timestamp = value.as_str().unwrap().parse().unwrap();
        moment.as_millisecond()
    };
    let (closed, known) = (moment(&events[0]["end_time"]), moment(&ended["ended_at"]));
    assert!(
        known - closed >= 3_000,
        "billed for silence: {events} {ended}"
    );
    // Its GPU is given to the next one, since nothing of the host can be proven.
    let next = server.api.create(app("serve.py")).await;
    server.api.running(&next).await;

    assert!(!app_processes(&ids).is_empty());
    host.comes_back();
    let agents = |session: &str| {
        let dir = server
            .dir
            .join("sessions")
            .join(session)
            .display()
            .to_string();
        processes(|words, _| words.contains(&dir))
    };
    let gone = async {
        while !app_processes(&ids).is_empty() || !agents(&id).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(super::harness::PATIENCE, gone)
        .await
        .unwrap();
    // What it says now changes nothing.
    let after = server.api.session(&id).await;
    assert_eq!(after["end_reason"], json!("lost"));
    let again = server.api.get("/platform/usage-details").await.json();
    let event = again
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["session_id"] == json!(id));
    assert_eq!(event, events.get(0));
    server.api.stop(&next).await;
    server.nothing_is_left(&[id, next]).await;
}
