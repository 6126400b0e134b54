//! What is on the host of sessions that are none (any more) does not stay.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::harness::{PATIENCE, ROOMY, Server, app, app_processes, signal};
use nix::sys::signal::Signal;

/// A process that a session left behind, or that looks so.
struct Stray(Child);

impl Stray {
    fn of(session: &str) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").env("DWELL_SESSION_ID", session);
        Self(command.spawn().unwrap())
    }

    fn is_gone(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn comes_about(mut what: impl FnMut() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where this host lets a session have a cgroup that tracks it.
fn cgroup(session: &str) -> Option<PathBuf> {
    let places = ["/sys/fs/cgroup/unified/dwell", "/sys/fs/cgroup/dwell"];
    let place = places.iter().find(|place| Path::new(place).is_dir())?;
    Some(Path::new(place).join(session))
}

#[tokio::test]
async fn what_is_left_of_ended_sessions_is_cleared_away_and_other_servers_things_are_not() {
    let mut server = Server::start(ROOMY);
    let ended = server.api.create(app("serve.py")).await;
    let open = server.api.create(app("serve.py")).await;
    server.api.running(&ended).await;
    server.api.running(&open).await;
    server.api.stop(&ended).await;
    comes_about(|| server.agent_of(&ended).is_empty()).await;
    let apps = app_processes(std::slice::from_ref(&open));
    server.kill();

    let mut left = Stray::of(&ended);
    let mut elsewhere = Stray::of("00000000-0000-4000-8000-000000000000");
    let empty = cgroup(&ended);
    if let Some(empty) = &empty {
        // Not every user may; whoever may not has none to be left.
        let _ = std::fs::create_dir(empty);
    }
    server.restart();
    comes_about(|| left.is_gone()).await;
    comes_about(|| empty.as_ref().is_none_or(|empty| !empty.exists())).await;
    assert!(!elsewhere.is_gone());
    // What is open goes on.
    server.api.running(&open).await;
    assert_eq!(app_processes(std::slice::from_ref(&open)), apps);
    server.api.stop(&open).await;
    server.nothing_is_left(&[ended, open]).await;
}

#[tokio::test]
async fn a_session_that_the_record_has_lost_is_ended_though_its_agent_cannot_be_told() {
    let mut server = Server::start(ROOMY);
    let heard = server.api.create(app("serve.py")).await;
    let paused = server.api.create(app("stubborn.py")).await;
    server.api.running(&heard).await;
    server.api.running(&paused).await;
    server.kill();
    for agent in server.agent_of(&paused) {
        signal(agent, Signal::SIGSTOP);
    }
    // A new store knows neither the sessions nor their agents' secrets.
    for name in ["store.db", "store.db-wal", "store.db-shm", "admin.key"] {
        let _ = std::fs::remove_file(server.dir.join(name));
    }
    server.restart();
    server.nothing_is_left(&[heard, paused]).await;
}
