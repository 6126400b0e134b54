//! A session's life as a client sees it.

use std::time::Duration;

use axum::http::StatusCode;
use dwell_core::session::{EndReason, Ending};
use serde_json::{Value, json};

use super::world::World;

#[tokio::test]
async fn a_session_is_made_runs_is_extended_and_ends() {
    let world = World::new().await;
    let id = world.session().await;
    let path = format!("/session/{id}");

    let starting = world.get(&path).await.body;
    assert_eq!(starting["status"], "starting");
    assert_eq!(
        (
            &starting["url"],
            &starting["timeout_end"],
            &starting["timeout"]
        ),
        (&Value::Null, &Value::Null, &json!(15))
    );
    let more = format!("{path}/increase-timeout");
    let early = world.post(&more, r#"{"minutes": 5}"#).await;
    assert_eq!(early.status, StatusCode::BAD_REQUEST);
    assert_eq!(early.detail(), "Session has not started yet");

    world.app_answers(&id).await;
    let running = world.get(&path).await.body;
    assert_eq!(running["status"], "running");
    assert_eq!(running["url"], "http://gpu.test:0");
    assert_eq!(running["cost"], 0.011);
    let timeout_end = running["timeout_end"].as_str().unwrap().to_owned();
    assert!(timeout_end.ends_with('Z'), "{timeout_end}");

    let longer = world.post(&more, r#"{"minutes": 5}"#).await;
    assert_eq!(
        longer.body,
        json!({"message": "Timeout increased successfully"})
    );
    let old =
        format!(r#"{{"machine_id": "m", "session_id": "{id}", "timeout": 10, "gpu": "CPU"}}"#);
    let longer = world.post("/session/increase-timeout", old).await;
    assert_eq!(longer.status, StatusCode::OK);
    assert_eq!(world.get(&path).await.body["timeout"], 30);
    let too_long = world.post(&more, r#"{"minutes": 1440}"#).await;
    assert_eq!(too_long.misfit().0, &json!(["body", "minutes"]));
    let none = world.post(&more, r#"{"minutes": 0}"#).await;
    assert_eq!(none.misfit().0, &json!(["body", "minutes"]));

    let listed = world.get("/sessions").await.body;
    assert_eq!(listed[0]["id"], json!(id));
    assert_eq!(listed[0]["tunnel_url"], "http://gpu.test:0");

    assert_eq!(world.delete(&path).await.body, json!({"success": true}));
    assert_eq!(world.get(&path).await.body["status"], "stopping");
    let ending = Ending::plain(EndReason::Cancelled);
    world.app_is_gone(&id, ending).await;
    let ended = world.get(&path).await.body;
    assert_eq!(ended["status"], "ended");
    assert_eq!(ended["end_reason"], "cancelled");
    assert_eq!(ended["url"], Value::Null);
    assert_eq!(world.get("/sessions").await.body, json!([]));
    let all = world.get("/sessions?include_ended=True&limit=1").await.body;
    assert_eq!(all[0]["id"], json!(id));
    assert_eq!(world.delete(&path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn who_waits_for_the_server_is_answered_once_the_app_answers() {
    let world = World::new().await;
    let machine = world.machine().await;
    let body = format!(r#"{{"machine_id": "{machine}", "wait_for_server": true}}"#);
    let (made, id) = tokio::join!(world.post("/session", body), async {
        let id = world.open_session().await;
        world.app_answers(&id).await;
        id
    });
    assert_eq!(
        made.body,
        json!({"session_id": id, "url": "http://gpu.test:0"})
    );
}

#[tokio::test]
async fn who_waits_for_a_session_that_fails_is_told_why() {
    let world = World::new().await;
    let body = r#"{"command": "app", "wait_for_server": true}"#;
    let (made, ()) = tokio::join!(world.post("/session/dynamic", body), async {
        let id = world.open_session().await;
        let ending = Ending::failed("The app exited with 3".into());
        world.app_is_gone(&id, ending).await;
    });
    assert_eq!(made.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        made.detail(),
        "Session creation failed: The app exited with 3"
    );
}

#[tokio::test]
async fn a_session_goes_on_when_its_client_hangs_up() {
    let world = World::new().await;
    let body = r#"{"command": "app", "wait_for_server": true}"#;
    let id = {
        let waiting = world.post("/session/dynamic", body);
        tokio::select! {
            made = waiting => panic!("answered before the app: {made:?}"),
            id = world.open_session() => id,
        }
    };
    world.app_answers(&id).await;
    let session = world.get(&format!("/session/{id}")).await;
    assert_eq!(session.body["status"], "running");
}

#[tokio::test]
async fn who_waits_for_the_end_is_answered_once_the_session_is_gone() {
    let world = World::new().await;
    let id = world.session().await;
    world.app_answers(&id).await;
    let path = format!("/session/{id}?wait_for_shutdown=true");
    let mut ending = Box::pin(world.delete(&path));
    // It does not answer before.
    let early = tokio::time::timeout(Duration::from_millis(50), &mut ending).await;
    assert!(early.is_err(), "{early:?}");
    let cancelled = Ending::plain(EndReason::Cancelled);
    let (ended, ()) = tokio::join!(ending, world.app_is_gone(&id, cancelled));
    assert_eq!(ended.body, json!({"success": true}));
    let session = world.get(&format!("/session/{id}")).await;
    assert_eq!(session.body["status"], "ended");
}

#[tokio::test]
async fn the_log_of_a_session_that_has_ended_is_read_to_its_end() {
    let world = World::new().await;
    let id = world.session().await;
    world.app_answers(&id).await;
    let cancelled = Ending::plain(EndReason::Cancelled);
    world.app_is_gone(&id, cancelled).await;
    let path = format!("/v2/stream-logs?session_id={id}&log_level=debug&client_id=me");
    let log = world.get(&path).await;
    assert_eq!(log.headers["content-type"], "text/event-stream");
    let text = log.body.as_str().unwrap();
    assert!(
        text.ends_with("data: {\"type\":\"stream_complete\",\"source\":\"session\"}\n\n"),
        "{text}"
    );
}

#[tokio::test]
async fn the_sixth_session_of_a_machine_is_refused_in_the_originals_words() {
    let world = World::new().await;
    let machine = world.machine().await;
    let body = format!(r#"{{"machine_id": "{machine}"}}"#);
    for _ in 0..5 {
        let made = world.post("/session", body.clone()).await;
        assert_eq!(made.body["url"], Value::Null);
    }
    let sixth = world.post("/session", body).await;
    assert_eq!(sixth.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        sixth.detail(),
        "You have reached the maximum number of concurrent sessions. Please close some sessions and try again."
    );
    let listed = world.get(&format!("/sessions?machine_id={machine}")).await;
    assert_eq!(listed.body.as_array().unwrap().len(), 5);
    assert_eq!(listed.body[0]["status"], "queued");
    assert!(listed.body[0]["queue_position"].is_u64());
    let none = world.get("/sessions?machine_id=nothing").await;
    assert_eq!(none.body, json!([]));
}

#[tokio::test]
async fn what_a_request_does_not_say_is_the_machines_or_the_servers() {
    let world = World::new().await;
    let made = world
        .post(
            "/machine/serverless",
            r#"{"name": "m", "command": "app", "gpu": "CPU", "timeout": 40}"#,
        )
        .await;
    let machine = &made.body["id"];
    for (path, body, gpu, timeout) in [
        (
            "/session",
            json!({"machine_id": machine, "timeout": 0}),
            "CPU",
            40,
        ),
        (
            "/session",
            json!({"machine_id": machine, "timeout": null, "gpu": null}),
            "CPU",
            40,
        ),
        (
            "/session",
            json!({"machine_id": machine, "timeout": 3, "gpu": "A10G"}),
            "A10G",
            3,
        ),
        (
            "/session/dynamic",
            json!({"machine_id": machine}),
            "CPU",
            40,
        ),
        ("/session/dynamic", json!({"command": ["app"]}), "A10G", 15),
    ] {
        let made = world.post(path, body.to_string()).await;
        let id = made.body["session_id"].as_str().unwrap();
        let session = world.get(&format!("/session/{id}")).await.body;
        assert_eq!(
            (&session["gpu"], &session["timeout"]),
            (&json!(gpu), &json!(timeout)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_gpu_type_or_timeout_that_cannot_be_had_is_a_misfit() {
    let world = World::new().await;
    let gpu = world
        .post("/session/dynamic", r#"{"command": "app", "gpu": "H100"}"#)
        .await;
    assert_eq!(gpu.misfit().0, &json!(["body", "gpu"]));
    assert_eq!(
        gpu.body["detail"][0]["msg"],
        "GPU type H100 is not available here; this server has: A10G, CPU"
    );
    let timeout = world
        .post("/session/dynamic", r#"{"command": "app", "timeout": 1441}"#)
        .await;
    assert_eq!(timeout.misfit().0, &json!(["body", "timeout"]));
}
