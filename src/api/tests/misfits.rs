//! Requests that do not fit, in the shapes that the clients parse.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use serde_json::json;

use super::world::World;

#[tokio::test]
async fn a_field_that_is_missing_or_wrong_is_named() {
    let world = World::new().await;
    let (words, letters) = (["w"; 1_001].join(r#"",""#), "x".repeat(201));
    for (path, body, loc, kind) in [
        (
            "/session",
            "{}".to_owned(),
            json!(["body", "machine_id"]),
            "missing",
        ),
        (
            "/session",
            r#"{"machine_id": 5}"#.to_owned(),
            json!(["body", "machine_id"]),
            "type_error",
        ),
        (
            "/session",
            r#"{"machine_id": "x", "timeout": "soon"}"#.to_owned(),
            json!(["body", "timeout"]),
            "type_error",
        ),
        (
            "/session",
            r#"{"machine_id": "x", "timeout": -1}"#.to_owned(),
            json!(["body", "timeout"]),
            "value_error",
        ),
        (
            "/session",
            r#"{"machine_id": "x", "timeout": 1e30}"#.to_owned(),
            json!(["body", "timeout"]),
            "value_error",
        ),
        (
            "/session",
            r#"{"machine_id": "x", "wait_for_server": "maybe"}"#.to_owned(),
            json!(["body", "wait_for_server"]),
            "type_error",
        ),
        (
            "/session/dynamic",
            r#"{"command": []}"#.to_owned(),
            json!(["body", "command"]),
            "value_error",
        ),
        (
            "/session/dynamic",
            r#"{"command": ["app", 7]}"#.to_owned(),
            json!(["body", "command", 1]),
            "type_error",
        ),
        (
            "/session/dynamic",
            "{\"command\": \"a\\u0000b\"}".to_owned(),
            json!(["body", "command"]),
            "value_error",
        ),
        (
            "/session/dynamic",
            format!(r#"{{"command": ["{words}"]}}"#),
            json!(["body", "command"]),
            "value_error",
        ),
        (
            "/session/dynamic",
            r#"{"command": "app", "environment": {"A=B": "c"}}"#.to_owned(),
            json!(["body", "environment", "A=B"]),
            "value_error",
        ),
        (
            "/session/dynamic",
            r#"{"command": "app", "port": 65536}"#.to_owned(),
            json!(["body", "port"]),
            "value_error",
        ),
        (
            "/session/dynamic",
            r#"{"command": "app", "machine_id": "x"}"#.to_owned(),
            json!(["body", "command"]),
            "value_error",
        ),
        (
            "/session/dynamic",
            r#"{"machine_id": "x", "access": "link"}"#.to_owned(),
            json!(["body", "access"]),
            "value_error",
        ),
        (
            "/machine/serverless",
            format!(r#"{{"name": "{letters}", "command": "app"}}"#),
            json!(["body", "name"]),
            "value_error",
        ),
        ("/session", "[1]".to_owned(), json!(["body"]), "type_error"),
        ("/session", String::new(), json!(["body"]), "missing"),
        (
            "/session",
            "{\n \"a\": }".to_owned(),
            json!(["body", 8]),
            "json_invalid",
        ),
    ] {
        let reply = world.post(path, body.clone()).await;
        assert_eq!(reply.misfit(), (&loc, kind), "{path} {body}");
    }
}

#[tokio::test]
async fn what_is_not_built_yet_is_never_silently_accepted() {
    let world = World::new().await;
    for (field, value) in [
        ("idle_timeout", "5"),
        ("files", r#"{"a": 1}"#),
        ("save", r#""on_end""#),
        ("secrets", r#"["token"]"#),
    ] {
        let body = format!(r#"{{"name": "m", "command": "app", "{field}": {value}}}"#);
        let reply = world.post("/machine/serverless", body).await;
        assert_eq!(reply.misfit().0, &json!(["body", field]));
        assert_eq!(
            reply.body["detail"][0]["msg"],
            "not supported by this server yet"
        );
    }
    let reply = world
        .post(
            "/machine/serverless",
            r#"{"name": "m", "command": "app", "image": "cuda"}"#,
        )
        .await;
    assert_eq!(reply.misfit().0, &json!(["body", "image"]));
    let sentence = reply.body["detail"][0]["msg"].as_str().unwrap();
    assert!(sentence.contains("[[launcher]]"), "{sentence}");
    let body =
        r#"{"name": "m", "command": "app", "idle_timeout": null, "save": "never", "secrets": []}"#;
    let made = world.post("/machine/serverless", body).await;
    assert_eq!(made.status, StatusCode::OK, "{made:?}");

    for body in [
        r#"{"dependencies": {"custom_nodes": {}}, "command": "app"}"#,
        r#"{"comfyui_hash": "abc"}"#,
        r#"{"base_docker_image": "cuda"}"#,
        r#"{"python_version": "3.11"}"#,
        r#"{"gpu": "A10G"}"#,
    ] {
        let reply = world.post("/session/dynamic", body).await;
        assert_eq!(reply.status, StatusCode::NOT_IMPLEMENTED, "{body}");
        assert!(reply.detail().contains("yet"), "{reply:?}");
    }
    let session = world.session().await;
    let reply = world
        .post(&format!("/session/{session}/snapshot"), "")
        .await;
    assert_eq!(reply.status, StatusCode::NOT_IMPLEMENTED);
    let reply = world.post("/session/abc/snapshot", "").await;
    assert_eq!(reply.detail(), "GPUEvent not found session_id: abc");
}

#[tokio::test]
async fn a_query_that_does_not_fit_is_named() {
    let world = World::new().await;
    for (path, loc) in [
        ("/v2/stream-logs", json!(["query", "session_id"])),
        (
            "/v2/stream-logs?session_id=a&log_level=loud",
            json!(["query", "log_level"]),
        ),
        ("/sessions?limit=0", json!(["query", "limit"])),
        ("/sessions?limit=1001", json!(["query", "limit"])),
        ("/sessions?limit=many", json!(["query", "limit"])),
        (
            "/sessions?include_ended=perhaps",
            json!(["query", "include_ended"]),
        ),
        (
            "/platform/usage?start_time=then",
            json!(["query", "start_time"]),
        ),
        (
            "/platform/usage?start_time=-1",
            json!(["query", "start_time"]),
        ),
        (
            "/platform/usage?end_time=1e300",
            json!(["query", "end_time"]),
        ),
    ] {
        assert_eq!(world.get(path).await.misfit().0, &loc, "{path}");
    }
}

#[tokio::test]
async fn an_id_that_is_none_is_unknown_in_the_routes_own_words() {
    let world = World::new().await;
    for (path, detail) in [
        ("/session/abc", "GPUEvent not found"),
        ("/session/%FF", "GPUEvent not found"),
        ("/machine/abc", "Machine not found"),
        ("/machine/serverless/abc/versions", "Machine not found"),
        ("/v2/stream-logs?session_id=abc", "Session not found"),
        ("/nothing", "Not Found"),
        ("/api/nothing", "Not Found"),
    ] {
        let reply = world.get(path).await;
        assert_eq!(
            (reply.status, reply.detail()),
            (StatusCode::NOT_FOUND, detail)
        );
    }
    let id = uuid::Uuid::nil();
    let gone = world.delete(&format!("/session/{id}")).await;
    assert_eq!(
        gone.detail(),
        format!("GPUEvent not found session_id: {id}, the event might be already closed")
    );
    let more = world.post("/session/abc/increase-timeout", r#"{"minutes": 5}"#);
    assert_eq!(more.await.detail(), "GPU event not found");
}

#[tokio::test]
async fn a_method_that_a_route_does_not_have_is_told_which_it_has() {
    let world = World::new().await;
    let request = Request::builder().method(Method::PUT).uri("/sessions");
    let reply = world.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(reply.detail(), "Method Not Allowed");
    assert_eq!(reply.headers[header::ALLOW], "GET,HEAD");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_one_of_any_type_is_read() {
    let world = World::new().await;
    let reply = world.post("/session", " ".repeat(1024 * 1024 + 1)).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(reply.detail(), "The body is larger than 1 MiB");

    let machine = world.machine().await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/session")
        .header("x-api-key", &world.ada)
        .header(header::CONTENT_TYPE, "text/plain")
        .body(format!(r#"{{"machine_id": "{machine}", "unknown": 1, "timeout": 15.0}}"#).into());
    let reply = world.send(request.unwrap()).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
}
