//! Machines as a client sees them.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::world::World;

#[tokio::test]
async fn a_machine_says_all_that_was_said_of_it_and_the_defaults() {
    let world = World::new().await;
    let made = world
        .post(
            "/machine/serverless",
            r#"{"name": "lab", "command": "jupyter lab --port {port}", "workdir": "/srv",
                "environment": {"A": "b"}, "port": 8888, "ready_path": "/api", "access": "private"}"#,
        )
        .await;
    let said = &made.body;
    let id = said["id"].as_str().unwrap();
    assert_eq!(
        said,
        &json!({
            "id": id,
            "name": "lab",
            "user_id": "ada",
            "org_id": null,
            "type": "comfy-deploy-serverless",
            "status": "ready",
            "gpu": "A10G",
            "timeout": 15,
            "command": "jupyter lab --port {port}",
            "port": 8888,
            "workdir": "/srv",
            "environment": {"A": "b"},
            "ready_path": "/api",
            "access": "private",
            "image": null,
            "read_only": false,
            "capabilities": [],
            "machine_version_id": said["machine_version_id"],
            "version": 1,
            "created_at": said["created_at"],
            "updated_at": said["created_at"],
        })
    );
    assert_eq!(&world.get(&format!("/machine/{id}")).await.body, said);
    assert_eq!(world.get("/machines").await.body, json!([said]));
}

#[tokio::test]
async fn a_change_of_what_runs_makes_a_version_and_a_new_name_does_not() {
    let world = World::new().await;
    let id = world.machine().await;
    let path = format!("/machine/serverless/{id}");
    let renamed = world.patch(&path, r#"{"name": "other"}"#).await.body;
    assert_eq!(
        (&renamed["name"], &renamed["version"]),
        (&json!("other"), &json!(1))
    );
    let changed = world.patch(&path, r#"{"port": 80}"#).await.body;
    assert_eq!(
        (&changed["port"], &changed["version"]),
        (&json!(80), &json!(2))
    );
    // Null takes the port away; what is not there stays.
    let changed = world.patch(&path, r#"{"port": null}"#).await.body;
    assert_eq!(
        (&changed["port"], &changed["command"]),
        (&Value::Null, &json!(["app", "{port}"]))
    );

    let versions = world.get(&format!("{path}/versions")).await.body;
    let numbers: Vec<_> = versions.as_array().unwrap().iter().collect();
    let numbers: Vec<_> = numbers.iter().map(|it| it["version"].as_u64()).collect();
    assert_eq!(numbers, [Some(3), Some(2), Some(1)]);
    let second = versions[1]["id"].as_str().unwrap();
    let one = world.get(&format!("{path}/versions/{second}")).await;
    assert_eq!(one.body, versions[1]);
    let none = world.get(&format!("{path}/versions/abc")).await;
    assert_eq!(none.detail(), "Machine version not found");

    let body = json!({"machine_id": id, "machine_version_id": second}).to_string();
    let made = world.post("/session/dynamic", body).await;
    let session = made.body["session_id"].as_str().unwrap();
    let session = world.get(&format!("/session/{session}")).await;
    assert_eq!(session.body["machine_version_id"], json!(second));

    let back = json!({"machine_version_id": second}).to_string();
    let back = world.post(&format!("{path}/rollback"), back).await;
    assert_eq!(back.status, StatusCode::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn a_machine_that_is_deleted_is_gone_and_its_sessions_go_on() {
    let world = World::new().await;
    let session = world.session().await;
    let machines = world.get("/machines").await.body;
    let path = format!("/machine/{}", machines[0]["id"].as_str().unwrap());
    let deleted = world.delete(&path).await;
    assert_eq!(
        deleted.body,
        json!({"message": "Machine deleted successfully"})
    );
    assert_eq!(world.get(&path).await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.delete(&path).await.status, StatusCode::NOT_FOUND);
    let session = world.get(&format!("/session/{session}")).await;
    assert_eq!(session.body["status"], "starting");
}
