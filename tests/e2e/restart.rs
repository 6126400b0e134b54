//! Restarting the server is a non-event; an agent that dies is found out.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use super::harness::{ROOMY, Server, app, app_processes, signal};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

#[tokio::test]
async fn sessions_go_on_while_their_server_is_dead_and_are_there_when_it_is_back() {
    let mut server = Server::start(ROOMY);
    let ids = join_all((0..5).map(|_| server.api.create(app("serve.py")))).await;
    let before = join_all(ids.iter().map(|id| server.api.running(id))).await;
    let processes = app_processes(&ids);
    server.kill();
    assert_eq!(app_processes(&ids), processes);
    server.restart();
    for (id, before) in ids.iter().zip(&before) {
        let after = server.api.session(id).await;
        assert_eq!(
            (&after["status"], &after["url"]),
            (&json!("running"), &before["url"])
        );
        let page = server.api.get(before["url"].as_str().unwrap()).await;
        assert_eq!(page.text, "hello");
    }
    assert_eq!(app_processes(&ids), processes, "something was started anew");
    // And they still obey.
    let path = format!("/session/{}/increase-timeout", ids[0]);
    assert_eq!(
        server.api.post(&path, json!({"minutes": 1})).await.status,
        200
    );
    join_all(ids.iter().map(|id| server.api.stop(id))).await;
    server.nothing_is_left(&ids).await;
}

#[tokio::test]
async fn a_cancel_that_was_acknowledged_holds_though_the_server_dies_at_once() {
    let mut server = Server::start(ROOMY);
    let ids = join_all((0..5).map(|_| server.api.create(app("stubborn.py")))).await;
    join_all(ids.iter().map(|id| server.api.running(id))).await;
    for id in &ids {
        assert_eq!(
            server.api.delete(&format!("/session/{id}")).await.status,
            200
        );
    }
    server.kill();
    server.restart();
    for id in &ids {
        assert_eq!(server.api.ended(id).await["end_reason"], "cancelled");
    }
    server.nothing_is_left(&ids).await;
}

#[tokio::test]
async fn a_server_killed_at_any_moment_forgets_nothing_it_acknowledged() {
    let mut server = Server::start(ROOMY);
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let api = server.api.clone();
        let creating: Vec<_> = (0..8)
            .map(|_| {
                let api = api.clone();
                tokio::spawn(async move { api.create(app("serve.py")).await })
            })
            .collect();
        // A different moment each time, between the first request and the last.
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        server.kill();
        for created in creating {
            // Those that were not acknowledged were cut off.
            acknowledged.extend(created.await.ok());
        }
        server.restart();
    }
    for id in &acknowledged {
        server.api.running(id).await;
    }
    let open = server.api.get("/sessions").await.json();
    let open: Vec<String> = open
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["id"].as_str().unwrap().to_owned())
        .collect();
    join_all(open.iter().map(|id| server.api.stop(id))).await;
    server.nothing_is_left(&open).await;
}

#[tokio::test]
async fn an_agent_that_is_killed_ends_its_session_with_a_sentence_and_a_closed_event() {
    let server = Server::start(ROOMY);
    let id = server.api.create(app("stubborn.py")).await;
    server.api.running(&id).await;
    let ids = [id.clone()];
    for agent in server.agents() {
        signal(agent, Signal::SIGKILL);
    }
    let killed = Instant::now();
    while !app_processes(&ids).is_empty() {
        assert!(
            killed.elapsed() < Duration::from_secs(2),
            "the app outlives its agent"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ended = server.api.ended(&id).await;
    assert_eq!(ended["end_reason"], "failed");
    assert_eq!(ended["error"], "Its agent was killed, and the app with it");
    let events = server.api.get("/platform/usage-details").await.json();
    assert!(events[0]["end_time"].is_string(), "{events}");
    server.nothing_is_left(&ids).await;
}

#[tokio::test]
async fn a_server_that_is_told_to_go_goes_and_its_sessions_stay() {
    let mut server = Server::start(ROOMY);
    let id = server.api.create(app("serve.py")).await;
    server.api.running(&id).await;
    let began = Instant::now();
    assert!(server.terminate().success());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(!app_processes(std::slice::from_ref(&id)).is_empty());
    server.restart();
    server.api.running(&id).await;
    server.api.stop(&id).await;
}

#[tokio::test]
async fn a_server_that_is_told_to_go_answers_whoever_waits() {
    let mut server = Server::start(ROOMY);
    let api = server.api.clone();
    let waiting = tokio::spawn(async move {
        let body = json!({"command": ["sleep", "600"], "wait_for_server": true});
        api.post("/session/dynamic", body).await
    });
    // Once it is on record, its creation waits for an app that never answers.
    let id = loop {
        let open = server.api.get("/sessions").await.json();
        if let Some(id) = open[0]["id"].as_str() {
            break id.to_owned();
        }
    };
    let mut log = stream_log(&server, &id).await;
    let began = Instant::now();
    assert!(server.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(10));
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json(), json!({"session_id": id, "url": null}));
    // A log that is broken off is not said to be complete.
    let mut rest = String::new();
    log.read_to_string(&mut rest).await.unwrap();
    assert!(!rest.contains("stream_complete"), "{rest}");
    server.restart();
    server.api.stop(&id).await;
    server.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn a_server_that_is_to_stop_its_sessions_ends_them_all_and_takes_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[gpus]\nCPU = 2\n[limits]\ngrace_seconds = 3\n";
    let mut server = Server::spawn(dir.path(), config, "127.0.0.1:0", &["--stop-sessions"]);
    let mut ids = Vec::new();
    // The third has to wait for its turn.
    for name in ["stubborn.py", "serve.py", "serve.py"] {
        ids.push(server.api.create(app(name)).await);
    }
    server.api.running(&ids[0]).await;
    server.api.running(&ids[1]).await;
    signal(server.pid(), Signal::SIGTERM);
    // While the stubborn one has its grace.
    server
        .api
        .until(&ids[0], |session| session["status"] != "running")
        .await;
    let body = json!({"command": app("serve.py")});
    let refused = server.api.post("/session/dynamic", body).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.detail().contains("shutting down"), "{refused:?}");
    assert!(server.exits().success());
    server.nothing_is_left(&ids).await;
    server.restart();
    for id in &ids {
        let session = server.api.session(id).await;
        assert_eq!(
            (&session["status"], &session["end_reason"]),
            (&json!("ended"), &json!("cancelled"))
        );
    }
}

/// The stream of a session's log, once it has begun.
async fn stream_log(server: &Server, id: &str) -> BufReader<TcpStream> {
    let address = server.api.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /v2/stream-logs?session_id={id} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\r\n",
        server.api.key
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.contains("200 OK"), "{line}");
    stream
}
