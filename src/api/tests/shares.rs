//! Letting others into a private session.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::Value;

use super::world::{Reply, World};

impl World {
    /// A private session of ada's that runs; its id.
    async fn private_session(&self) -> String {
        let machine = r#"{"name": "lab", "command": "app", "gpu": "A10G", "access": "private"}"#;
        let made = self.post("/machine/serverless", machine).await;
        let machine = made.body["id"].as_str().unwrap();
        let body = format!(r#"{{"machine_id": "{machine}"}}"#);
        let made = self.post("/session", body).await;
        let id = made.body["session_id"].as_str().unwrap().to_owned();
        self.app_answers(&id).await;
        id
    }

    async fn sign_in(&self, session: &str, path: &str, key: &str, origin: &str) -> Reply {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("session", session)
            .append_pair("path", path)
            .append_pair("key", key)
            .finish();
        let request = Request::post("/signin")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::HOST, "gpu.test:8080")
            .header(header::ORIGIN, origin)
            .body(Body::from(form));
        self.send(request.unwrap()).await
    }
}

const HERE: &str = "http://gpu.test:8080";

#[tokio::test]
async fn a_share_link_is_shown_once_listed_and_revoked_by_name() {
    let world = World::new().await;
    let session = world.private_session().await;
    let path = format!("/session/{session}/shares");
    let body = r#"{"name": "for bob", "scope": "view", "minutes": 60}"#;
    let made = world.post(&path, body).await;
    assert_eq!(made.status, StatusCode::OK, "{made:?}");
    let token = made.body["token"].as_str().unwrap();
    let url = made.body["url"].as_str().unwrap();
    assert!(url.ends_with(&format!("/?cd_token={token}")), "{url}");
    let listed = world.get(&path).await;
    assert!(!listed.body.to_string().contains(token), "{listed:?}");
    let row = &listed.body[0];
    for (field, value) in [
        ("id", made.body["id"].clone()),
        ("session_id", session.as_str().into()),
        ("name", "for bob".into()),
        ("scope", "view".into()),
        ("created_by", "ada".into()),
        ("revoked_at", Value::Null),
        ("good", true.into()),
        ("visits", 0.into()),
    ] {
        assert_eq!(row[field], value, "{field}");
    }
    let one = format!("{path}/{}", row["id"].as_str().unwrap());
    assert_eq!(world.delete(&one).await.status, StatusCode::OK);
    let row = world.get(&path).await.body[0].clone();
    assert_eq!(
        (&row["good"], &row["revoked_by"]),
        (&false.into(), &"ada".into())
    );
    let again = world.delete(&one).await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    assert_eq!(again.detail(), "Share link not found");
}

#[tokio::test]
async fn only_an_owner_lets_others_in() {
    let world = World::new().await;
    let session = world.private_session().await;
    let made = world.post(&format!("/session/{session}/shares"), "").await;
    let share = made.body["id"].as_str().unwrap();
    let bob = world.key_for("bob", None, true).await;
    for (method, what) in [
        ("GET", "shares".to_owned()),
        ("POST", "shares".to_owned()),
        ("DELETE", format!("shares/{share}")),
        ("GET", "token".to_owned()),
        ("POST", "entry".to_owned()),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(format!("/session/{session}/{what}"))
            .header("x-api-key", &bob)
            .body(Body::empty());
        let reply = world.send(request.unwrap()).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{method} {what}");
        assert_eq!(reply.detail(), "GPU event not found");
    }
    // What opens a session opens nothing of the API.
    let token = world.get(&format!("/session/{session}/token")).await;
    for secret in [&made.body["token"], &token.body["token"]] {
        let reply = world.get_as(secret.as_str().unwrap(), "/sessions").await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn what_everybody_may_use_needs_no_link() {
    let world = World::new().await;
    let session = world.session().await;
    let refused = world.post(&format!("/session/{session}/shares"), "").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.detail().contains("private"), "{refused:?}");
    for minutes in ["0", "600000"] {
        let session = world.private_session().await;
        let body = format!(r#"{{"minutes": {minutes}}}"#);
        let misfit = world
            .post(&format!("/session/{session}/shares"), body)
            .await;
        assert_eq!(misfit.status, StatusCode::UNPROCESSABLE_ENTITY);
        world.delete(&format!("/session/{session}")).await;
    }
}

#[tokio::test]
async fn a_way_in_leads_to_the_session_itself() {
    let world = World::new().await;
    let session = world.private_session().await;
    let url = world.get(&format!("/session/{session}")).await.body["url"].clone();
    let path = format!("/session/{session}/entry");
    for (body, begins) in [
        ("", "/?cd_token=dwell_ticket_"),
        (r#"{"path": "/lab?a=1"}"#, "/lab?a=1&cd_token=dwell_ticket_"),
        (r#"{"path": "//evil.test"}"#, "/?cd_token=dwell_ticket_"),
    ] {
        let made = world.post(&path, body).await;
        let begins = format!("{}{begins}", url.as_str().unwrap());
        let way = made.body["url"].as_str().unwrap();
        assert!(way.starts_with(&begins), "{way}");
    }
}

#[tokio::test]
async fn who_signs_in_is_led_on_and_needs_no_key_the_next_time() {
    let world = World::new().await;
    let session = world.private_session().await;
    let there = format!("/signin?session={session}&path=%2Flab");
    let asked = world
        .send(Request::get(&there).body(Body::empty()).unwrap())
        .await;
    assert_eq!(asked.status, StatusCode::OK);
    let form = asked.body.as_str().unwrap();
    assert!(form.contains(&format!("value=\"{session}\"")), "{form}");

    let signed_in = world.sign_in(&session, "/lab", &world.ada, HERE).await;
    assert_eq!(signed_in.status, StatusCode::SEE_OTHER, "{signed_in:?}");
    let location = signed_in.headers[header::LOCATION].to_str().unwrap();
    assert!(
        location.contains("/lab?cd_token=dwell_ticket_"),
        "{location}"
    );
    let cookie = signed_in.headers[header::SET_COOKIE].to_str().unwrap();
    assert!(cookie.ends_with("; HttpOnly; SameSite=Lax"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let again = Request::get(&there).header(header::COOKIE, cookie);
    let again = world.send(again.body(Body::empty()).unwrap()).await;
    assert_eq!(again.status, StatusCode::SEE_OTHER, "{again:?}");
}

#[tokio::test]
async fn nobody_signs_in_with_what_opens_nothing_nor_from_elsewhere() {
    let world = World::new().await;
    let session = world.private_session().await;
    let bob = world.key_for("bob", None, false).await;
    let never = uuid::Uuid::nil().to_string();
    for (session, key, origin, status) in [
        (session.as_str(), "dwell_0", HERE, StatusCode::UNAUTHORIZED),
        (&session, &bob, HERE, StatusCode::UNAUTHORIZED),
        (&never, &bob, HERE, StatusCode::UNAUTHORIZED),
        ("\"><script>", &world.ada, HERE, StatusCode::UNAUTHORIZED),
        (
            &session,
            &world.ada,
            "http://gpu.test:20001",
            StatusCode::FORBIDDEN,
        ),
        (&session, &world.ada, "null", StatusCode::FORBIDDEN),
    ] {
        let refused = world.sign_in(session, "/", key, origin).await;
        assert_eq!(refused.status, status, "{session} {origin}: {refused:?}");
        assert!(!refused.headers.contains_key(header::SET_COOKIE));
        assert!(!refused.body.as_str().unwrap().contains("<script>"));
    }
}

#[tokio::test]
async fn a_page_of_another_origin_cannot_have_a_browsers_cookie_count() {
    let world = World::new().await;
    let machine = r#"{"name": "evil", "command": "true", "gpu": "CPU"}"#;
    for (origin, status) in [
        (HERE, StatusCode::OK),
        // Another session of this host, and a page in a sandbox.
        ("http://gpu.test:20001", StatusCode::UNAUTHORIZED),
        ("null", StatusCode::UNAUTHORIZED),
    ] {
        let request = Request::post("/machine/serverless")
            .header(header::HOST, "gpu.test:8080")
            .header(header::ORIGIN, origin)
            .header(header::COOKIE, format!("__session={}", world.ada))
            .body(Body::from(machine));
        let reply = world.send(request.unwrap()).await;
        assert_eq!(reply.status, status, "{origin}");
    }
}
