//! Prices, usage and keys as a client sees them.

use axum::http::StatusCode;
use serde_json::json;

use super::world::World;

#[tokio::test]
async fn prices_are_dollars_a_second_by_gpu_type() {
    let world = World::new().await;
    let prices = world.get("/platform/gpu-pricing").await.body;
    assert_eq!(prices, json!({"A10G": 1.10 / 3_600.0, "CPU": 0.0}));
}

#[tokio::test]
async fn what_was_held_is_what_is_billed() {
    let world = World::new().await;
    let id = world.session().await;
    assert_eq!(world.get("/platform/usage-details").await.body, json!([]));
    world.app_answers(&id).await;

    let events = world.get("/platform/usage-details").await.body;
    let event = &events[0];
    assert_eq!(
        (&event["session_id"], &event["gpu"], &event["cost"]),
        (&json!(id), &json!("A10G"), &json!(0.011))
    );
    assert_eq!(event["gpu_provider"], "modal");
    let machine = event["machine_id"].as_str().unwrap();
    let of_machine = world.get(&format!("/machine/{machine}/events")).await;
    assert_eq!(of_machine.body, events);

    let usage = world.get("/platform/usage").await.body;
    assert_eq!(
        usage["usage"],
        json!([{"gpu": "A10G", "usage_in_sec": 36.0, "cost": 0.011}])
    );
    assert_eq!(usage["total_cost"], 0.011);
    // Nothing was used in the year 2000, however it is written.
    for end in ["946684800", "2000-01-01T00:00:00Z", "2000-01-01T00:00:00"] {
        let before = world.get(&format!("/platform/usage?end_time={end}")).await;
        assert_eq!(before.body["usage"], json!([]), "{end}");
        assert_eq!(before.body["period"]["end"], "2000-01-01T00:00:00.000Z");
    }
}

#[tokio::test]
async fn a_key_is_shown_once_and_speaks_for_its_maker() {
    let world = World::new().await;
    let made = world.post("/platform/api-keys", r#"{"name": "ci"}"#).await;
    assert_eq!(made.body["user_id"], "ada");
    let key = made.body["key"].as_str().unwrap().to_owned();
    let listed = world.get_as(&key, "/platform/api-keys").await;
    assert_eq!(listed.body.as_array().unwrap().len(), 2);
    assert!(!listed.body.to_string().contains(&key));
}

#[tokio::test]
async fn only_an_admins_key_makes_keys_for_others() {
    let world = World::new().await;
    for body in [
        r#"{"name": "k", "user": "bob"}"#,
        r#"{"name": "k", "org": "acme"}"#,
        r#"{"name": "k", "admin": true}"#,
    ] {
        let refused = world.post("/platform/api-keys", body).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{body}");
    }
    let admin = world.key_for("root", Some("ops"), true).await;
    let body = r#"{"name": "k", "user": "bob"}"#;
    let made = world.post_as(&admin, "/platform/api-keys", body).await.body;
    assert_eq!(
        (&made["user_id"], &made["org_id"], &made["admin"]),
        (&json!("bob"), &json!(null), &json!(false))
    );
    let body = r#"{"name": "k"}"#;
    let made = world.post_as(&admin, "/platform/api-keys", body).await.body;
    assert_eq!(
        (&made["user_id"], &made["org_id"], &made["admin"]),
        (&json!("root"), &json!("ops"), &json!(false))
    );
}
