//! A server whose records are in Postgres is like any other.

use std::process::Command;

use hyper::Method;
use serde_json::json;

use super::harness::{DWELL, ROOMY, Server, app, app_processes};
use crate::cluster::Cluster;

fn with_store(url: &str) -> String {
    format!("store = \"{url}\"\n{ROOMY}")
}

#[tokio::test]
async fn sessions_go_on_while_a_server_with_postgres_is_dead_and_are_there_when_it_is_back() {
    let database = Cluster::shared().database();
    let mut server = Server::start(&with_store(&Cluster::shared().url(&database)));
    let id = server.api.create(app("serve.py")).await;
    let before = server.api.running(&id).await;
    let processes = app_processes(std::slice::from_ref(&id));
    server.kill();
    assert_eq!(app_processes(std::slice::from_ref(&id)), processes);
    server.restart();
    let after = server.api.session(&id).await;
    assert_eq!(
        (&after["status"], &after["url"]),
        (&json!("running"), &before["url"])
    );
    let page = server.api.get(before["url"].as_str().unwrap()).await;
    assert_eq!(page.text, "hello");
    server.api.stop(&id).await;
    let ended = "SELECT count(*) FROM sessions WHERE ended_at IS NOT NULL";
    assert_eq!(Cluster::shared().sql(&database, ended), "1");
    assert!(!server.dir.join("store.db").exists());
    server.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn with_postgres_gone_what_is_new_is_refused_and_what_runs_goes_on() {
    let cluster = Cluster::start();
    let url = cluster.url(&cluster.database());
    let server = Server::start(&with_store(&url));
    let id = server.api.create(app("serve.py")).await;
    let running = server.api.running(&id).await;
    cluster.down();
    let body = json!({"command": app("serve.py"), "timeout": 5}).to_string();
    let refused = server.api.send(Method::POST, "/session/dynamic", body);
    let refused = refused.await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(
        refused.detail().contains("cannot be reached"),
        "{refused:?}"
    );
    let page = server.api.get(running["url"].as_str().unwrap()).await;
    assert_eq!(page.text, "hello");
    cluster.up();
    let another = server.api.create(app("serve.py")).await;
    server.api.running(&another).await;
    server.api.running(&id).await;
    for id in [&id, &another] {
        server.api.stop(id).await;
    }
}

#[tokio::test]
async fn a_server_moves_to_postgres_and_back_with_its_sessions() {
    let mut server = Server::start(ROOMY);
    let id = server.api.create(app("serve.py")).await;
    let before = server.api.running(&id).await;
    let data_dir = server.dir.display().to_string();
    let url = Cluster::shared().url(&Cluster::shared().database());
    let copy = |from: &str, to: &str| {
        let said = Command::new(DWELL)
            .args(["store", "copy", from, to])
            .output()
            .unwrap();
        (
            said.status.success(),
            String::from_utf8_lossy(&said.stderr).into_owned(),
        )
    };
    let (copied, why) = copy(&data_dir, &url);
    assert!(!copied && why.contains("in use by another server"), "{why}");
    server.kill();
    let (copied, why) = copy(&data_dir, &url);
    assert!(copied, "{why}");
    server.restart_with(&with_store(&url));
    assert_eq!(server.api.running(&id).await["url"], before["url"]);

    let elsewhere = server.dir.join("elsewhere.db").display().to_string();
    let (copied, why) = copy(&url, &elsewhere);
    assert!(!copied && why.contains("is in use by a server"), "{why}");
    server.kill();
    std::fs::rename(server.dir.join("store.db"), server.dir.join("before.db")).unwrap();
    let (copied, why) = copy(&url, &data_dir);
    assert!(copied, "{why}");
    server.restart_with(ROOMY);
    assert_eq!(server.api.running(&id).await["url"], before["url"]);
    let page = server.api.get(before["url"].as_str().unwrap()).await;
    assert_eq!(page.text, "hello");
    server.api.stop(&id).await;
}
