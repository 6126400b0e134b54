//! Sessions in Pods: what users and operators see of them.

use serde_json::{Value, json};

use super::cluster::cluster;
use super::dwell::{AgentBy, Dwell};
use crate::harness::Api;

/// Serves what `setup` leaves in the session's files.
pub fn web(setup: &str) -> Value {
    let line = format!("{setup}; exec httpd -f -p $PORT -h .");
    json!(["sh", "-c", line])
}

pub fn on(gpu: &str, command: Value) -> Value {
    json!({"command": command, "gpu": gpu, "timeout": 5})
}

/// What the app serves at `path`.
pub async fn served(api: &Api, session: &str, path: &str) -> String {
    let session = api.running(session).await;
    let url = session["url"].as_str().unwrap();
    let answer = api.get(&format!("{url}/{path}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text
}

pub async fn log(api: &Api, session: &str) -> Vec<String> {
    let path = format!("/v2/stream-logs?session_id={session}");
    let answer = api.get(&path).await;
    let lines = answer.text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
        Some(line["message"].as_str()?.to_owned())
    });
    lines.collect()
}

/// What Kubernetes said of it, in order.
pub fn words(session: &Value) -> Vec<String> {
    let timeline = session["job"]["timeline"].as_array();
    let said = timeline.into_iter().flatten();
    said.map(|said| said["words"].as_str().unwrap().to_owned())
        .collect()
}

async fn an_app_is_reached_and_ends(agent: AgentBy) {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::with(cluster, agent, "").await;
    let api = dwell.api();
    let count = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; \
                 echo \"hello from $COLOUR, ${DWELL_AGENT-nobody}\" > index.html";
    let mut body = on("L4", web(count));
    body["environment"] = json!({"COLOUR": "blue"});
    let id = api.create_with(body).await;
    let page = served(api, &id, "").await;
    assert_eq!(page, "hello from blue, nobody\n");
    let running = api.session(&id).await;
    assert_eq!(running["job"]["launcher"], "kubernetes");
    let pod = dwell.pod(&id).await.unwrap();
    assert_eq!(running["job"]["id"], json!(pod.metadata.uid));
    assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("n1"));
    let ended = api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    dwell.nothing_runs(&id).await;
    let log = log(api, &id).await;
    let lines: Vec<_> = log
        .iter()
        .filter(|line| line.starts_with("line "))
        .collect();
    let wanted: Vec<_> = (1..=500).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, wanted.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn an_app_in_a_pod_is_reached_by_its_url_and_ends_when_it_is_told_to() {
    an_app_is_reached_and_ends(AgentBy::Image).await;
}

#[tokio::test]
async fn the_same_in_an_image_that_fetches_its_agent_from_the_server() {
    an_app_is_reached_and_ends(AgentBy::Server).await;
}
