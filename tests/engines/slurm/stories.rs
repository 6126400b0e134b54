//! Sessions in batch jobs: what users and operators see of them.

use serde_json::{Value, json};

use super::cluster::{Cluster, slurm};
use crate::harness::{Api, DWELL, Server, app_processes};

/// A server whose sessions are jobs of this cluster.
pub fn server_of(cluster: &Cluster, more: &str) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "[limits]\nsessions_per_machine = 100\ngrace_seconds = 0.3\nheartbeat_seconds = 0.5\n\
         relaunch_after_seconds = 2\nlost_after_seconds = 6\n\
         [[launcher]]\nkind = \"slurm\"\npartition = \"gpu\"\nmoves_time_limits = true\n\
         look_seconds = 0.5\nagent = \"{DWELL}\"\n\
         gpus = {{ A10G = \"gpu:a10g\", L4 = \"gpu:l4\" }}\n{more}"
    );
    let environment = cluster.environment();
    let server = Server::try_start_in(dir.path(), &config, "127.0.0.1:0", &[], &environment);
    let mut server = server.unwrap();
    server.owns(dir);
    server
}

fn on(gpu: &str, command: Value) -> Value {
    json!({"command": command, "gpu": gpu, "timeout": 5})
}

async fn served(api: &Api, session: &Value) -> String {
    let url = session["url"].as_str().unwrap();
    let answer = api.get(url).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text
}

fn words(session: &Value) -> Vec<String> {
    let timeline = session["job"]["timeline"].as_array();
    let said = timeline.into_iter().flatten();
    said.map(|said| said["words"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn an_app_in_a_job_is_reached_by_its_url_sees_its_gpu_and_ends_when_it_is_told_to() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, "");
    let script = "echo on $CUDA_VISIBLE_DEVICES; exec python3 -S -m http.server $PORT";
    let id = server
        .api
        .create_with(on("L4", json!(["sh", "-c", script])))
        .await;
    let running = server.api.running(&id).await;
    assert!(!served(&server.api, &running).await.is_empty());
    assert_eq!(running["job"]["launcher"], "slurm");
    let job = running["job"]["id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.job(&job).unwrap()["comment"], json!(id));
    let ended = server.api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    cluster
        .until(&job, |job| job["job_state"] == "COMPLETED")
        .await;
    let log = server
        .api
        .get(&format!("/v2/stream-logs?session_id={id}"))
        .await;
    assert!(
        log.text.contains("on 0") || log.text.contains("on 1"),
        "{}",
        log.text
    );
    let said = words(&server.api.session(&id).await);
    assert_eq!(
        said.first().map(String::as_str),
        Some("PENDING"),
        "{said:?}"
    );
    assert_eq!(app_processes(&[id]), [0; 0]);
}
