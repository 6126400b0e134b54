//! The leader dies, is paused, goes: another leads, and nobody who has a session notices.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::group::{Group, can_create, host_of, is_known, visit, visit_path, web_socket};
use crate::harness::{Api, PATIENCE, app, app_processes, signal};

/// A leader that was killed is replaced within this.
const REPLACED_WITHIN: Duration = Duration::from_secs(5);

/// A session that runs, made through this server.
async fn session(api: &Api) -> (String, String) {
    let id = api.create(app("streams.py")).await;
    let host = host_of(&api.running(&id).await);
    (id, host)
}

/// A minute more is granted.
async fn extend(api: &Api, id: &str) {
    let path = format!("/session/{id}/increase-timeout");
    assert_eq!(api.post(&path, json!({"minutes": 1})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_is_asked_all_of_them_know() {
    let group = Group::start(3);
    let apis: Vec<&Api> = group.servers.iter().map(|server| &server.api).collect();
    let mut known_after = Vec::new();
    for (asked, api) in apis.iter().enumerate() {
        let (id, host) = session(api).await;
        for server in &group.servers {
            assert_eq!(server.api.session(&id).await["status"], "running");
            known_after.push(is_known(server, &host).await);
        }
        let next = apis[(asked + 1) % apis.len()];
        extend(next, &id).await;
        assert_eq!(api.session(&id).await["timeout"], 6);
        let stopped = next
            .delete(&format!("/session/{id}?wait_for_shutdown=true"))
            .await;
        assert_eq!(stopped.status, 200, "{stopped:?}");
        assert_eq!(api.session(&id).await["status"], "ended");
        group.nothing_is_left(&[id]).await;
    }
    // Counted from when it is on record. The machine may be busy with something else once.
    known_after.sort();
    let usual = known_after[known_after.len() / 2];
    assert!(usual < Duration::from_millis(100), "{known_after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_is_killed_another_leads_within_five_seconds_and_sessions_go_on() {
    let mut group = Group::start(2);
    let (id, host) = session(&group.servers[1].api).await;
    let processes = app_processes(std::slice::from_ref(&id));
    is_known(&group.servers[1], &host).await;
    let mut socket = web_socket(&group.servers[1], &host).await;
    group.servers[0].kill();
    let killed_at = Instant::now();
    let survivor = group.servers[1].api.clone();
    let asking = tokio::spawn(async move { can_create(&survivor).await });
    // What passes through the survivor goes on all the time.
    let mut echoes = 0;
    while !asking.is_finished() {
        let word = Message::text(format!("{echoes}"));
        socket.send(word.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), word);
        assert_eq!(visit(&group.servers[1], &host).await.unwrap().text, "hello");
        echoes += 1;
    }
    let (next, _) = asking.await.unwrap();
    let replaced = killed_at.elapsed();
    assert!(replaced < REPLACED_WITHIN, "it took {replaced:?}");
    assert!(echoes > 100, "{echoes}");
    let survivor = &group.servers[1].api;
    survivor.running(&next).await;
    survivor.running(&id).await;
    assert_eq!(app_processes(std::slice::from_ref(&id)), processes);
    extend(survivor, &id).await;
    // The first comes back, and follows.
    let key = group.servers[0].api.key.clone();
    group.servers[0].restart();
    group.servers[0].api = Api::new(&group.servers[0].api.url, &key);
    let first = &group.servers[0].api;
    assert_eq!(first.session(&id).await["status"], "running");
    assert_eq!(visit(&group.servers[0], &host).await.unwrap().text, "hello");
    first.stop(&id).await;
    first.stop(&next).await;
    assert_eq!(group.leader(), group.servers[1].api.url);
    group.nothing_is_left(&[id, next]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_goes_on_after_a_pause_decides_nothing() {
    let group = Group::start(2);
    let (old, new) = (&group.servers[0], &group.servers[1]);
    let (id, host) = session(&old.api).await;
    signal(old.pid(), Signal::SIGSTOP);
    // Asked while it stands still; it answers when it goes on.
    let asked = tokio::spawn({
        let (api, path) = (
            Api::new(&old.api.url, &old.api.key),
            format!("/session/{id}"),
        );
        async move { api.delete(&path).await }
    });
    group.leads_one_of(&[1]).await;
    let (next, _) = can_create(&new.api).await;
    new.api.running(&next).await;
    signal(old.pid(), Signal::SIGCONT);
    // Of what it did not see it does not say that it is not there.
    let path = format!("/session/{next}/increase-timeout");
    let began = Instant::now();
    loop {
        let answer = old.api.post(&path, json!({"minutes": 1})).await;
        if answer.status == 200 {
            break;
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(began.elapsed() < PATIENCE);
    }
    assert_eq!(new.api.session(&next).await["timeout"], 6);
    // Whatever it said, it is so.
    let answer = asked.await.unwrap();
    match answer.status {
        200 => {
            new.api.ended(&id).await;
        }
        503 => {
            new.api.running(&id).await;
            assert_eq!(visit(old, &host).await.unwrap().text, "hello");
            new.api.stop(&id).await;
        }
        _ => panic!("{answer:?}"),
    }
    assert_eq!(group.leader(), new.api.url);
    old.api.stop(&next).await;
    group.nothing_is_left(&[id, next]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_go_lets_another_lead_at_once() {
    let mut group = Group::start(2);
    let (id, _) = session(&group.servers[0].api).await;
    let began = Instant::now();
    assert!(group.servers[0].terminate().success());
    let (next, _) = can_create(&group.servers[1].api).await;
    let replaced = began.elapsed();
    assert!(replaced < Duration::from_secs(2), "it took {replaced:?}");
    group.servers[1].api.running(&id).await;
    group.servers[1].api.stop(&id).await;
    group.servers[1].api.stop(&next).await;
    group.nothing_is_left(&[id, next]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_lets_in_once_at_whichever_server_it_is_shown() {
    let group = Group::start(2);
    for first in [0, 1] {
        let api = &group.servers[1].api;
        let body = json!({"command": app("streams.py"), "timeout": 5, "access": "private"});
        let id = api.create_with(body).await;
        let host = host_of(&api.running(&id).await);
        let entry = api.post(&format!("/session/{id}/entry"), json!({})).await;
        assert_eq!(entry.status, 200, "{entry:?}");
        let url = entry.json()["url"].as_str().unwrap().to_owned();
        let (_, path) = url.split_once(&host).unwrap();
        let show = async |number: usize, path: &str| {
            let at = &group.servers[number].listen;
            visit_path(at, &host, path).await.unwrap().status
        };
        // Once the route is known, it is said that a key is missing.
        for number in 0..2 {
            while show(number, "/").await != 401 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        assert_eq!(show(first, path).await, 200);
        assert_eq!(show(1 - first, path).await, 401);
        assert_eq!(show(first, path).await, 401);
        api.stop(&id).await;
    }
}
