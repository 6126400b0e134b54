//! Bad input gets a clear error in the right shape, and nothing is lost by it.

use std::process::{Command, Output};

use hyper::Method;
use serde_json::{Value, json};

use super::harness::{DWELL, ROOMY, Server, app};

const NO_SUCH: &str = "6f1c1a52-5f3a-4a70-9f55-1f8f2d5f0a11";

#[tokio::test]
async fn what_is_not_there_is_not_found_in_the_words_that_clients_know() {
    let server = Server::start(ROOMY);
    let api = &server.api;
    for id in [NO_SUCH, "not-a-uuid"] {
        let got = api.get(&format!("/session/{id}")).await;
        assert_eq!(
            (got.status, got.detail().as_str()),
            (404, "GPUEvent not found")
        );
        let deleted = api.delete(&format!("/session/{id}")).await;
        assert_eq!(
            (deleted.status, deleted.detail()),
            (
                404,
                format!("GPUEvent not found session_id: {id}, the event might be already closed")
            )
        );
        let extended = api
            .post(
                &format!("/session/{id}/increase-timeout"),
                json!({"minutes": 1}),
            )
            .await;
        assert_eq!(
            (extended.status, extended.detail().as_str()),
            (404, "GPU event not found")
        );
        let log = api.get(&format!("/v2/stream-logs?session_id={id}")).await;
        assert_eq!(
            (log.status, log.detail().as_str()),
            (404, "Session not found")
        );
    }
    let created = api.post("/session", json!({"machine_id": NO_SUCH})).await;
    assert_eq!(
        (created.status, created.detail().as_str()),
        (404, "Machine not found")
    );
    assert_eq!(api.get("/no/such/route").await.status, 404);
    assert_eq!(api.send(Method::PUT, "/sessions", "").await.status, 405);
}

#[tokio::test]
async fn a_body_that_does_not_fit_is_refused_as_fastapi_does_and_changes_nothing() {
    let server = Server::start(ROOMY);
    let api = &server.api;
    let loc = |answer: &super::harness::Answer| answer.json()["detail"][0]["loc"].clone();
    let sent = api
        .send(Method::POST, "/session", "{\"machine_id\": ")
        .await;
    assert_eq!((sent.status, loc(&sent)[0].clone()), (422, json!("body")));
    for (path, body, field) in [
        ("/session", json!({"machine_id": 7}), "machine_id"),
        ("/session", json!({}), "machine_id"),
        (
            "/session/dynamic",
            json!({"command": "x", "timeout": "soon"}),
            "timeout",
        ),
        (
            "/session/dynamic",
            json!({"command": "x", "timeout": -1}),
            "timeout",
        ),
        ("/session/dynamic", json!({"command": "x", "gpu": 5}), "gpu"),
        ("/machine/serverless", json!({"name": "x"}), "command"),
    ] {
        let answer = api.post(path, body.clone()).await;
        assert_eq!(answer.status, 422, "{path} {body}: {answer:?}");
        assert_eq!(loc(&answer), json!(["body", field]), "{path} {body}");
    }
    let unknown = api
        .post("/session/dynamic", json!({"command": "x", "gpu": "H100"}))
        .await;
    assert_eq!(unknown.status, 422);
    assert!(unknown.text.contains("this server has: CPU"), "{unknown:?}");
    let long = api
        .post(
            "/session/dynamic",
            json!({"command": "x", "timeout": 1_000_000}),
        )
        .await;
    assert_eq!(long.status, 422, "{long:?}");
    let huge = api
        .post("/session/dynamic", json!({"command": "x".repeat(3 << 20)}))
        .await;
    assert_eq!(huge.status, 413, "{}", huge.detail());
    assert_eq!(
        api.get("/sessions?include_ended=true").await.json(),
        json!([])
    );
    assert_eq!(api.get("/machines").await.json(), json!([]));
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::start(ROOMY);
    let address = server.api.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /sessions HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 4"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn what_is_not_built_yet_says_so_and_nothing_else() {
    let server = Server::start(ROOMY);
    let api = &server.api;
    let id = api.create(app("serve.py")).await;
    api.running(&id).await;
    let machine = api
        .machine(json!({"name": "m", "command": app("serve.py")}))
        .await;
    let version =
        api.get(&format!("/machine/{machine}")).await.json()["machine_version_id"].clone();
    for (path, body) in [
        (
            format!("/session/{id}/snapshot"),
            json!({"machine_name": "x"}),
        ),
        (
            format!("/machine/serverless/{machine}/rollback"),
            json!({"machine_version_id": version}),
        ),
        (
            "/session/dynamic".to_owned(),
            json!({"gpu": "CPU", "dependencies": ["x"]}),
        ),
    ] {
        let answer = api.post(&path, body).await;
        assert_eq!(answer.status, 501, "{path}: {answer:?}");
        assert!(!answer.detail().is_empty());
    }
    let unsupported = json!({"name": "m", "command": "x", "image": "busybox"});
    assert_eq!(
        api.post("/machine/serverless", unsupported).await.status,
        422
    );
    api.stop(&id).await;
}

fn serve(arguments: &[&str]) -> Output {
    Command::new(DWELL)
        .arg("serve")
        .args(arguments)
        .output()
        .unwrap()
}

/// One sentence on standard error that has all of these, and exit code 1.
fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let sentence = said.lines().last().unwrap_or_default();
    for word in words {
        assert!(sentence.contains(word), "{word:?} is not in: {said}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_in_one_sentence() {
    let server = Server::start(ROOMY);
    let dir = tempfile::tempdir().unwrap();
    let fresh = dir.path().join("data").display().to_string();

    let in_use = server.api.url.trim_start_matches("http://");
    assert_refused(
        &serve(&["--listen", in_use, "--data-dir", &fresh]),
        &[in_use, "in use"],
    );

    let taken = server.dir.display().to_string();
    let locked = serve(&["--listen", "127.0.0.1:0", "--data-dir", &taken]);
    assert_refused(
        &locked,
        &[
            &taken,
            "in use by another server",
            &server.pid().to_string(),
        ],
    );

    // A file where a directory would have to be made: not even root can.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let under = file.join("data").display().to_string();
    assert_refused(
        &serve(&["--listen", "127.0.0.1:0", "--data-dir", &under]),
        &[&under],
    );
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(dir.path(), ROOMY);
    server.terminate();
    let store = dir.path().join("store.db");
    let connection = rusqlite::Connection::open(&store).unwrap();
    connection
        .pragma_update(None, "user_version", 9_999)
        .unwrap();
    drop(connection);
    let before = std::fs::read(&store).unwrap();
    let data_dir = dir.path().display().to_string();
    let refused = serve(&["--listen", "127.0.0.1:0", "--data-dir", &data_dir]);
    assert_refused(&refused, &["store.db", "newer version"]);
    assert_eq!(std::fs::read(&store).unwrap(), before);
}

#[tokio::test]
async fn a_mistake_in_the_config_is_named_by_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dwell.toml");
    for (text, line, key) in [
        ("listen = \"127.0.0.1:0\"\nlissten = 1\n", 2, "lissten"),
        ("[limits]\n\nstart_minutes = \"ten\"\n", 3, "start_minutes"),
        ("[prices]\nCPU = -1.0\n", 2, "CPU"),
        (
            "[limits]\ntimeout_max_minutes = 0\n",
            2,
            "timeout_max_minutes",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = serve(&[
            "--config",
            file.to_str().unwrap(),
            "--data-dir",
            dir.path().to_str().unwrap(),
        ]);
        assert_refused(&refused, &[&format!("dwell.toml:{line}:"), key]);
    }
}

#[tokio::test]
async fn unknown_fields_are_ignored_as_the_original_does() {
    let server = Server::start(ROOMY);
    let body = json!({"command": app("serve.py"), "comfyui_version": "x", "nodes": [1, 2]});
    let id = server.api.create_with(body).await;
    let _: Value = server.api.stop(&id).await;
}
