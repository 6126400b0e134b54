//! Who may call.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};

use super::world::World;

fn get(path: &str) -> axum::http::request::Builder {
    Request::builder().uri(path)
}

#[tokio::test]
async fn a_key_is_taken_from_each_of_its_four_places() {
    let world = World::new().await;
    let key = &world.ada;
    for request in [
        get("/sessions").header(header::COOKIE, format!("a=b; __session={key}")),
        get(&format!("/sessions?cd_token={key}")),
        get("/sessions").header(header::AUTHORIZATION, format!("Bearer {key}")),
        get("/sessions").header(header::AUTHORIZATION, format!("bearer  {key}")),
        get("/sessions").header("x-api-key", key),
        get("/api/sessions").header("x-api-key", key),
    ] {
        let reply = world.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    }
}

#[tokio::test]
async fn cookie_goes_before_query_before_bearer_before_api_key() {
    let world = World::new().await;
    let key = &world.ada;
    for request in [
        get(&format!("/sessions?cd_token={key}")).header(header::COOKIE, "__session=wrong"),
        get("/sessions?cd_token=wrong").header(header::AUTHORIZATION, format!("Bearer {key}")),
        get("/sessions")
            .header(header::AUTHORIZATION, "Bearer wrong")
            .header("x-api-key", key),
    ] {
        let reply = world.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.detail(), "Invalid or expired token");
    }
}

#[tokio::test]
async fn a_key_that_is_missing_unknown_or_revoked_is_told_so() {
    let world = World::new().await;
    let missing = world
        .send(get("/sessions").body(Body::empty()).unwrap())
        .await;
    assert_eq!(missing.status, StatusCode::UNAUTHORIZED);
    assert_eq!(missing.detail(), "Invalid or missing token");
    assert_eq!(missing.headers[header::WWW_AUTHENTICATE], "Bearer");

    let made = world.post("/platform/api-keys", r#"{"name": "k"}"#).await;
    let (key, id) = (
        made.body["key"].as_str().unwrap(),
        made.body["id"].as_str().unwrap(),
    );
    assert_eq!(world.get_as(key, "/sessions").await.status, StatusCode::OK);
    let revoked = world.delete(&format!("/platform/api-keys/{id}")).await;
    assert_eq!(revoked.status, StatusCode::OK, "{revoked:?}");
    let refused = world.get_as(key, "/sessions").await;
    assert_eq!(refused.detail(), "Revoked token");
    let again = world.delete(&format!("/platform/api-keys/{id}")).await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn no_route_but_the_public_ones_answers_without_a_key() {
    let world = World::new().await;
    let document = crate::api::openapi();
    for (path, item) in &document.paths.paths {
        let path = path
            .replace("{session_id}", &uuid::Uuid::nil().to_string())
            .replace("{machine_id}", &uuid::Uuid::nil().to_string());
        for (method, there) in [
            (Method::GET, item.get.is_some()),
            (Method::POST, item.post.is_some()),
            (Method::PATCH, item.patch.is_some()),
            (Method::DELETE, item.delete.is_some()),
        ] {
            if there && path != "/healthz" {
                let request = Request::builder().method(&method).uri(&path);
                let reply = world.send(request.body(Body::empty()).unwrap()).await;
                assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{method} {path}");
            }
        }
    }
    let healthy = world
        .send(get("/healthz").body(Body::empty()).unwrap())
        .await;
    assert_eq!(healthy.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_anothers_does_not_exist() {
    let world = World::new().await;
    let session = world.session().await;
    let machine = world.get("/machines").await.body[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for (user, org) in [("bob", None), ("ada", Some("acme"))] {
        let other = world.key_for(user, org, false).await;
        for path in [
            format!("/session/{session}"),
            format!("/v2/stream-logs?session_id={session}"),
            format!("/machine/{machine}"),
            format!("/machine/{machine}/events"),
            format!("/machine/serverless/{machine}/versions"),
        ] {
            let reply = world.get_as(&other, &path).await;
            assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}");
        }
        for path in ["/sessions", "/machines", "/platform/usage-details"] {
            let reply = world.get_as(&other, path).await;
            assert_eq!(reply.body, serde_json::json!([]), "{path}");
        }
        let more = format!("/session/{session}/increase-timeout");
        let reply = world.post_as(&other, &more, r#"{"minutes": 1}"#).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        let body = format!(r#"{{"machine_id": "{machine}"}}"#);
        let reply = world.post_as(&other, "/session", body).await;
        assert_eq!(reply.detail(), "Machine not found");
    }
}

#[tokio::test]
async fn a_web_app_of_another_origin_may_call_with_a_key() {
    let world = World::new().await;
    let preflight = Request::builder()
        .method(Method::OPTIONS)
        .uri("/session")
        .header(header::ORIGIN, "https://app.example.com")
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
        .header(
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            "authorization,content-type",
        );
    let reply = world.send(preflight.body(Body::empty()).unwrap()).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    assert_eq!(
        reply.headers[header::ACCESS_CONTROL_ALLOW_HEADERS],
        "authorization,content-type"
    );
    assert!(
        !reply
            .headers
            .contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS)
    );
}
