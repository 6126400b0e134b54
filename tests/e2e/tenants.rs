//! Keys, and what they open.

use serde_json::{Value, json};

use super::harness::{Api, PATIENCE, ROOMY, Server, app};

async fn key(server: &Server, body: Value) -> Api {
    let answer = server.api.post("/platform/api-keys", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    Api::new(&server.api.url, answer.json()["key"].as_str().unwrap())
}

#[tokio::test]
async fn other_owners_things_do_not_exist() {
    let server = Server::start(ROOMY);
    let ada = key(&server, json!({"name": "a", "user": "ada"})).await;
    let others = [
        key(&server, json!({"name": "b", "user": "bob"})).await,
        // The same name, in an organisation; and an organisation of the same name.
        key(&server, json!({"name": "c", "user": "ada", "org": "lab"})).await,
        key(&server, json!({"name": "d", "user": "bob", "org": "ada"})).await,
    ];
    let machine = ada
        .machine(json!({"name": "m", "command": app("serve.py")}))
        .await;
    let id = ada.create(app("serve.py")).await;
    ada.running(&id).await;
    for other in &others {
        for path in [
            format!("/session/{id}"),
            format!("/session/{id}/traffic"),
            format!("/machine/{machine}"),
            format!("/v2/stream-logs?session_id={id}"),
        ] {
            assert_eq!(other.get(&path).await.status, 404, "{path}");
        }
        assert_eq!(other.delete(&format!("/session/{id}")).await.status, 404);
        assert_eq!(
            other.delete(&format!("/machine/{machine}")).await.status,
            404
        );
        assert_eq!(
            other
                .post(
                    &format!("/session/{id}/increase-timeout"),
                    json!({"minutes": 1})
                )
                .await
                .status,
            404
        );
        assert_eq!(
            other
                .post("/session", json!({"machine_id": machine}))
                .await
                .status,
            404
        );
        for list in ["/sessions", "/machines", "/platform/usage-details"] {
            assert_eq!(other.get(list).await.json(), json!([]), "{list}");
        }
    }
    // A colleague in the same organisation sees what the organisation has.
    let org = key(&server, json!({"name": "e", "user": "eve", "org": "lab"})).await;
    let shared = others[1].create(app("serve.py")).await;
    assert_eq!(org.session(&shared).await["user_id"], "ada");
    ada.stop(&id).await;
    org.stop(&shared).await;
}

#[tokio::test]
async fn what_passes_through_a_url_is_seen_by_its_owner_and_by_admins() {
    let server = Server::start(ROOMY);
    let ada = key(&server, json!({"name": "a", "user": "ada"})).await;
    let id = ada.create(app("serve.py")).await;
    let unused = ada.get(&format!("/session/{id}/traffic")).await.json();
    assert_eq!(
        (&unused["requests"], &unused["last_activity"]),
        (&json!(0), &Value::Null)
    );
    let session = ada.running(&id).await;
    for _ in 0..3 {
        let answer = ada.get(session["url"].as_str().unwrap()).await;
        assert_eq!(answer.status, 200);
    }
    let traffic = ada.get(&format!("/session/{id}/traffic")).await.json();
    assert_eq!(traffic["requests"], 3);
    assert!(traffic["bytes_from_app"].as_u64().unwrap() > 0, "{traffic}");
    assert!(traffic["last_activity"].as_str().unwrap().ends_with('Z'));
    let metrics = server.api.get("/metrics").await.text;
    let line = format!("dwell_session_requests_total{{session=\"{id}\"}} 3\n");
    assert!(metrics.contains(&line), "{metrics}");
    assert_eq!(ada.get("/metrics").await.status, 403);
    ada.stop(&id).await;
}

#[tokio::test]
async fn on_request_each_visit_is_logged_and_no_key_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::spawn(dir.path(), ROOMY, "127.0.0.1:0", &["--access-log"]);
    let api = &server.api;
    let id = api.create(app("serve.py")).await;
    let session = api.running(&id).await;
    let url = session["url"].as_str().unwrap();
    let target = format!("{url}/some/path?q=1&cd_token={}", api.key);
    let answer = api.get(&target).await;
    let logged = || {
        let text = std::fs::read_to_string(dir.path().join("stdout")).unwrap();
        let line = text.lines().find(|line| line.contains("/some/path"));
        line.map(str::to_owned)
    };
    // It is written once the answer has gone out.
    let began = std::time::Instant::now();
    let line = loop {
        if let Some(line) = logged() {
            break line;
        }
        assert!(began.elapsed().as_secs() < 30, "nothing is logged");
        tokio::task::yield_now().await;
    };
    assert!(!line.contains(&api.key) && !line.contains("q=1"), "{line}");
    let entry: Value = serde_json::from_str(&line).unwrap();
    for (name, value) in [
        ("session", json!(id)),
        ("from", json!("127.0.0.1")),
        ("method", json!("GET")),
        ("path", json!("/some/path")),
        ("status", json!(answer.status)),
        ("bytes", json!(answer.text.len())),
    ] {
        assert_eq!(entry[name], value, "{name} in {line}");
    }
    assert!(
        entry["duration_ms"].is_u64() && entry["timestamp"].is_string(),
        "{line}"
    );
    api.stop(&id).await;
}

#[tokio::test]
async fn a_key_is_good_until_it_is_revoked_and_each_failure_has_its_sentence() {
    let server = Server::start(ROOMY);
    let url = &server.api.url;
    let missing = Api::new(url, "").get("/sessions").await;
    assert_eq!(missing.status, 401);
    let wrong = Api::new(url, "dwell_wrong").get("/sessions").await;
    assert_eq!(
        (wrong.status, wrong.detail().as_str()),
        (401, "Invalid or expired token")
    );

    let ada = key(&server, json!({"name": "a", "user": "ada"})).await;
    let listed = ada.get("/platform/api-keys").await;
    assert!(!listed.text.contains(&ada.key), "a key is shown again");
    let id = listed.json()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        ada.delete(&format!("/platform/api-keys/{id}")).await.status,
        200
    );
    let revoked = ada.get("/sessions").await;
    assert_eq!(
        (revoked.status, revoked.detail().as_str()),
        (401, "Revoked token")
    );
}

#[tokio::test]
async fn only_an_admin_makes_keys_for_others() {
    let server = Server::start(ROOMY);
    let ada = key(&server, json!({"name": "a", "user": "ada"})).await;
    for body in [
        json!({"name": "x", "user": "bob"}),
        json!({"name": "x", "admin": true}),
        json!({"name": "x", "org": "lab"}),
    ] {
        let refused = ada.post("/platform/api-keys", body.clone()).await;
        assert_eq!(refused.status, 403, "{body}: {refused:?}");
    }
    assert_eq!(
        ada.post("/platform/api-keys", json!({"name": "mine"}))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_private_session_opens_to_its_owners_keys_alone() {
    let server = Server::start(ROOMY);
    let ada = key(&server, json!({"name": "a", "user": "ada"})).await;
    let bob = key(&server, json!({"name": "b", "user": "bob"})).await;
    let id = ada
        .create_with(json!({"command": app("serve.py"), "access": "private"}))
        .await;
    let url = ada.running(&id).await["url"].as_str().unwrap().to_owned();
    assert_eq!(ada.get(&url).await.text, "hello");
    assert_eq!(bob.get(&url).await.status, 401);
    ada.stop(&id).await;
}

#[tokio::test]
async fn a_share_link_is_good_through_a_crash_and_who_came_by_it_is_on_record() {
    let mut server = Server::start(ROOMY);
    let id = server
        .api
        .create_with(json!({"command": app("serve.py"), "access": "private"}))
        .await;
    server.api.running(&id).await;
    let shares = format!("/session/{id}/shares");
    let made = server.api.post(&shares, json!({"name": "for bob"})).await;
    let link = made.json()["url"].as_str().unwrap().to_owned();
    let nobody = Api::new(&server.api.url, "");
    assert_eq!(nobody.get(&link).await.text, "hello");
    let visits = async |server: &Server| {
        let listed = server.api.get(&shares).await.json();
        listed[0]["visits"].as_u64().unwrap()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while visits(&server).await == 0 {
        assert!(tokio::time::Instant::now() < deadline, "nobody came");
    }

    server.kill();
    server.restart();
    server.api.running(&id).await;
    assert_eq!(visits(&server).await, 1);
    assert_eq!(nobody.get(&link).await.text, "hello");
    let listed = server.api.get(&shares).await.json();
    assert_eq!(listed[0]["recent_visits"][0]["from"], "127.0.0.1");
    let share = listed[0]["id"].as_str().unwrap();
    let revoked = server.api.delete(&format!("{shares}/{share}")).await;
    assert_eq!(revoked.status, 200);
    assert_eq!(nobody.get(&link).await.status, 401);
    server.kill();
    server.restart();
    server.api.running(&id).await;
    assert_eq!(nobody.get(&link).await.status, 401);
    server.api.stop(&id).await;
    assert_eq!(server.api.get(&shares).await.json()[0]["good"], false);
}
