//! A session's life, by the API.

use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::{Api, ROOMY, Server, app};

#[tokio::test]
async fn a_command_becomes_a_session_with_a_url_a_deadline_and_a_bill() {
    let server = Server::start("[gpus]\nCPU = 2\n[prices]\nCPU = 3600.0\n");
    let api = &server.api;
    let id = api.create(app("serve.py")).await;
    let session = api.running(&id).await;
    assert_eq!(session["timeout"], 5);
    assert!(session["timeout_end"].as_str().unwrap().ends_with('Z'));
    let page = api.get(session["url"].as_str().unwrap()).await;
    assert_eq!((page.status, page.text.as_str()), (200, "hello"));

    let ended = api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled");
    assert_eq!(ended["url"], json!(null));
    assert!(ended["cost"].as_f64().unwrap() > 0.0);

    // A dollar a second: the bill is the time between the event's ends.
    let usage = api.get("/platform/usage-details").await.json();
    let event = &usage.as_array().unwrap_or_else(|| panic!("{usage}"))[0];
    assert_eq!(event["session_id"], id.as_str());
    assert!(
        event["start_time"].is_string() && event["end_time"].is_string(),
        "{event}"
    );
    let seconds = seconds(&event["end_time"]) - seconds(&event["start_time"]);
    assert!(
        (event["cost"].as_f64().unwrap() - seconds).abs() < 1e-6,
        "{event}"
    );
    server.nothing_is_left(&[id]).await;
}

fn seconds(moment: &serde_json::Value) -> f64 {
    let moment: jiff::Timestamp = moment.as_str().unwrap().parse().unwrap();
    let millis = u32::try_from(moment.as_millisecond() % 1_000_000_000).unwrap();
    f64::from(millis) / 1_000.0
}

#[tokio::test]
async fn sessions_wait_their_turn_and_see_their_position() {
    let server = Server::start("[gpus]\nCPU = 1\n");
    let api = &server.api;
    let first = api.create(app("serve.py")).await;
    api.running(&first).await;
    let second = api.create(app("serve.py")).await;
    let third = api.create(app("serve.py")).await;
    assert_eq!(api.session(&second).await["queue_position"], 1);
    assert_eq!(api.session(&third).await["queue_position"], 2);
    assert_eq!(api.session(&third).await["status"], "queued");
    // One that waits can be cancelled, and those behind it move up.
    assert_eq!(api.stop(&second).await["end_reason"], "cancelled");
    assert_eq!(api.session(&third).await["queue_position"], 1);
    api.stop(&first).await;
    api.running(&third).await;
    api.stop(&third).await;
    server.nothing_is_left(&[first, second, third]).await;
}

#[tokio::test]
async fn an_extension_moves_the_deadline_and_nothing_else_does() {
    let server = Server::start("[gpus]\nCPU = 2\n[limits]\ntimeout_max_minutes = 10\n");
    let api = &server.api;
    let id = api.create(app("serve.py")).await;
    let path = format!("/session/{id}/increase-timeout");
    let before = api.running(&id).await;
    let more = api.post(&path, json!({"minutes": 3})).await;
    assert_eq!(
        (more.status, more.json()),
        (200, json!({"message": "Timeout increased successfully"}))
    );
    let after = api.session(&id).await;
    assert_eq!(after["timeout"], 8);
    assert!((seconds(&after["timeout_end"]) - seconds(&before["timeout_end"]) - 180.0).abs() < 1.1);
    assert_eq!(api.post(&path, json!({"minutes": 3})).await.status, 422);
    assert_eq!(api.post(&path, json!({"minutes": 0})).await.status, 422);
    assert_eq!(api.session(&id).await["timeout"], 8);
    api.stop(&id).await;
    let late = api.post(&path, json!({"minutes": 1})).await;
    assert_eq!(
        (late.status, late.detail()),
        (404, "GPU event not found".to_owned())
    );
}

#[tokio::test]
async fn a_session_that_waits_for_a_gpu_cannot_be_extended_yet() {
    let server = Server::start("[gpus]\nCPU = 1\n");
    let first = server.api.create(app("serve.py")).await;
    let second = server.api.create(app("serve.py")).await;
    let path = format!("/session/{second}/increase-timeout");
    let early = server.api.post(&path, json!({"minutes": 1})).await;
    assert_eq!(
        (early.status, early.detail()),
        (400, "Session has not started yet".to_owned())
    );
    server.api.stop(&second).await;
    server.api.stop(&first).await;
}

#[tokio::test]
async fn the_log_is_whole_and_readable_after_the_end() {
    let server = Server::start(ROOMY);
    let command = "for i in 1 2 3; do echo line $i; done; echo last >&2; exit 0";
    let id = server.api.create_with(json!({"command": command})).await;
    server.api.ended(&id).await;
    let log = server
        .api
        .get(&format!("/v2/stream-logs?session_id={id}"))
        .await
        .text;
    let at = |what: &str| {
        log.find(what)
            .unwrap_or_else(|| panic!("{what} is not in {log}"))
    };
    assert!(at("line 1") < at("line 2") && at("line 2") < at("line 3"));
    assert!(at("last") < at(r#"{"type":"stream_complete","source":"session"}"#));
}

#[tokio::test]
async fn a_machine_may_have_so_many_open_sessions_and_no_more() {
    let server = Server::start("[gpus]\nCPU = 9\n");
    let api = &server.api;
    let machine = api
        .machine(json!({"name": "m", "command": app("serve.py")}))
        .await;
    let create = async || api.post("/session", json!({"machine_id": machine})).await;
    // At once: the limit is checked with the insert, not before it.
    let answers = futures_util::future::join_all((0..12).map(|_| create())).await;
    let granted = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(granted, 5);
    let refused = answers.iter().find(|answer| answer.status == 400).unwrap();
    assert_eq!(
        refused.detail(),
        "You have reached the maximum number of concurrent sessions. Please close some sessions and try again."
    );
    for session in api.get("/sessions").await.json().as_array().unwrap() {
        api.stop(session["id"].as_str().unwrap()).await;
    }
    assert_eq!(create().await.status, 200);
}

#[tokio::test]
async fn who_waits_for_the_server_gets_a_url_that_answers() {
    let server = Server::start(ROOMY);
    let api: &Api = &server.api;
    let body = json!({"command": app("serve.py"), "wait_for_server": true});
    let answer = api.post("/session/dynamic", body).await.json();
    let page = api.get(answer["url"].as_str().unwrap()).await;
    assert_eq!(page.text, "hello");

    let began = Instant::now();
    let id = answer["session_id"].as_str().unwrap();
    let gone = api
        .delete(&format!("/session/{id}?wait_for_shutdown=true"))
        .await;
    assert_eq!(gone.json(), json!({"success": true}));
    assert_eq!(api.session(id).await["status"], "ended");
    assert!(began.elapsed() < Duration::from_secs(20));

    let body = json!({"command": "exit 1", "wait_for_server": true});
    let failed = api.post("/session/dynamic", body).await;
    assert_eq!(failed.status, 500);
    assert!(
        failed.detail().starts_with("Session creation failed"),
        "{failed:?}"
    );
}
