//! Sessions in Pods: what users and operators see of them.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::cluster::{GPUS, PATIENCE, cluster};
use super::dwell::{AgentBy, Dwell, Manner, rules_of};
use crate::harness::{Api, app_processes};
use crate::seen::{
    ended_within, event_is_true, extended, job_of, log, queued, sentence, served, with_job, words,
};

/// Serves what `setup` leaves in the session's files.
pub fn web(gpu: &str, setup: &str) -> Value {
    on(gpu, &format!("{setup}; exec httpd -f -p $PORT -h ."))
}

/// One that answers.
pub fn hello(gpu: &str) -> Value {
    web(gpu, "echo hello > index.html")
}

pub fn on(gpu: &str, line: &str) -> Value {
    json!({"command": ["sh", "-c", line], "gpu": gpu, "timeout": 5})
}

/// What its app shows, once it runs.
pub async fn page(api: &Api, id: &str) -> String {
    served(api, &api.running(id).await).await
}

/// How long Kubernetes lets it run.
fn deadline(pod: &Pod) -> i64 {
    pod.spec.as_ref().unwrap().active_deadline_seconds.unwrap()
}

async fn an_app_is_reached_and_ends(agent: AgentBy) {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let manner = Manner {
        agent,
        ..Manner::default()
    };
    let dwell = Dwell::with(cluster, manner).await;
    let api = dwell.api();
    let count = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; \
                 echo \"hello from $COLOUR, ${DWELL_AGENT-nobody}\" > index.html";
    let mut body = web("L4", count);
    body["environment"] = json!({"COLOUR": "blue"});
    let id = api.create_with(body).await;
    assert_eq!(page(api, &id).await, "hello from blue, nobody\n");
    let running = api.session(&id).await;
    assert_eq!(running["job"]["launcher"], "kubernetes");
    let pod = dwell.pod(&id).await.unwrap();
    assert_eq!(running["job"]["id"], json!(pod.metadata.uid));
    let ended = api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    event_is_true(api, &id).await;
    let log = log(api, &id).await;
    let lines = log.iter().filter(|line| line.starts_with("line "));
    let wanted: Vec<_> = (1..=500).map(|number| format!("line {number}")).collect();
    assert!(lines.eq(wanted.iter()), "{log:?}");
    dwell.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn an_app_in_a_pod_is_reached_by_its_url_and_ends_when_it_is_told_to() {
    an_app_is_reached_and_ends(AgentBy::Image).await;
}

#[tokio::test]
async fn the_same_in_an_image_that_fetches_its_agent_from_the_server() {
    an_app_is_reached_and_ends(AgentBy::Server).await;
}

#[tokio::test]
async fn sessions_of_two_types_of_gpu_run_each_where_its_type_is() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    for (gpu, node) in [("L4", "n1"), ("A100", "n2")] {
        let id = dwell.api().create_with(hello(gpu)).await;
        assert_eq!(page(dwell.api(), &id).await, "hello\n");
        let pod = dwell.pod(&id).await.unwrap();
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some(node));
        dwell.api().stop(&id).await;
        dwell.nothing_is_left(&[id]).await;
    }
}

#[tokio::test]
async fn a_session_that_finds_no_gpu_waits_with_the_schedulers_reason_until_one_ends() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let mut ids = Vec::new();
    for _ in 0..GPUS {
        let id = api.create_with(hello("L4")).await;
        api.running(&id).await;
        ids.push(id);
    }
    let waits = api.create_with(hello("L4")).await;
    let is_told = |session: &Value| {
        let said = words(session);
        said.iter()
            .any(|it| it.contains("Unschedulable") && it.contains("Insufficient nvidia.com/gpu"))
    };
    let session = api.until(&waits, is_told).await;
    assert_eq!(session["status"], "queued", "{session}");
    assert_eq!(session["cost"], 0.0);
    // Another that waits as well ends as soon as it is told to, and has cost nothing.
    let unwanted = api.create_with(hello("L4")).await;
    queued(api, &unwanted).await;
    let ended = api.stop(&unwanted).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    assert_eq!(ended["cost"], 0.0);
    dwell.pod_until(&unwanted, |pod| pod.is_none()).await;
    api.stop(&ids[0]).await;
    assert_eq!(page(api, &waits).await, "hello\n");
    ids.push(waits);
    for id in &ids[1..] {
        api.stop(id).await;
    }
    dwell.nothing_is_left(&ids).await;
}

#[tokio::test]
async fn what_is_free_and_what_waits_is_shown_as_far_as_the_server_may_see() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let shows = async |wanted: Value| {
        let began = Instant::now();
        loop {
            let shown = api.get("/platform/gpus").await.json();
            let types = shown.as_array().unwrap();
            let of_l4 = types.iter().find(|it| it["gpu"] == "L4").unwrap();
            let place = &of_l4["launchers"][0];
            let told = ["total", "free", "waiting", "sessions", "error"].map(|key| &place[key]);
            if json!(told) == wanted {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "still {place}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    shows(json!([null, null, 0, 0, null])).await;
    let mut ids = Vec::new();
    for _ in 0..GPUS {
        let id = api.create_with(hello("L4")).await;
        api.running(&id).await;
        ids.push(id);
    }
    let waits = api.create_with(hello("L4")).await;
    shows(json!([null, null, 1, GPUS + 1, null])).await;
    let rules = rules_of("deploy/kubernetes/see-nodes/clusterrole.yaml");
    dwell.namespace.may_everywhere("dwell", rules).await;
    shows(json!([GPUS, 0, 1, GPUS + 1, null])).await;
    for id in &ids {
        api.stop(id).await;
    }
    api.running(&waits).await;
    shows(json!([GPUS, GPUS - 1, 0, 1, null])).await;
    api.stop(&waits).await;
    ids.push(waits);
    dwell.nothing_is_left(&ids).await;
}

/// `activeDeadlineSeconds` cannot be raised: a Pod has the longest from its start.
#[tokio::test]
async fn an_extended_session_goes_on_past_its_first_timeout_and_ends_at_its_second() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let mut body = hello("L4");
    body["timeout"] = json!(1);
    let (id, short) = (
        api.create_with(body.clone()).await,
        api.create_with(body).await,
    );
    for id in [&id, &short] {
        api.running(id).await;
    }
    extended(api, &id, 1).await;
    let ended = ended_within(api, &short, Duration::from_secs(90)).await;
    assert_eq!(ended["end_reason"], "timed_out", "{ended}");
    let session = api.session(&id).await;
    assert_eq!(served(api, &session).await, "hello\n");
    let backstop = deadline(&dwell.pod(&id).await.unwrap());
    assert!(backstop > 24 * 60 * 60, "{backstop}");
    let ended = ended_within(api, &id, Duration::from_secs(90)).await;
    assert_eq!(ended["end_reason"], "timed_out", "{ended}");
    let cost = ended["cost"].as_f64().unwrap();
    assert!((119.0..125.0).contains(&cost), "{ended}");
    dwell.nothing_is_left(&[id, short]).await;
}

#[tokio::test]
async fn an_app_has_no_rights_that_it_does_not_need() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    let look = "{ id -u; grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
                ls /var/run/secrets 2>&1; } > index.html";
    let id = dwell.api().create_with(web("L4", look)).await;
    let seen = page(dwell.api(), &id).await;
    let seen: Vec<_> = seen.lines().collect();
    let none = "0000000000000000";
    assert_eq!(seen[0], "64000");
    assert_eq!(seen[1], format!("CapEff:\t{none}"));
    assert_eq!(seen[2], format!("CapBnd:\t{none}"));
    assert_eq!(seen[3..5], ["NoNewPrivs:\t1", "Seccomp:\t2"]);
    assert!(seen[5].contains("No such file"), "{seen:?}");
    dwell.api().stop(&id).await;
    dwell.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn in_a_read_only_root_an_app_writes_its_files_and_what_is_temporary() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    let write = "touch /tmp/it && mv /tmp/it . && echo fine > index.html; \
                 touch /it 2>> index.html";
    let mut body = web("L4", write);
    body["image"] = json!(super::cluster::BUSYBOX);
    body["read_only"] = json!(true);
    let id = dwell.api().create_with(body).await;
    let seen = page(dwell.api(), &id).await;
    assert_eq!(seen, "fine\ntouch: /it: Read-only file system\n");
    dwell.api().stop(&id).await;
    dwell.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn what_the_configuration_adds_to_pods_is_there_and_does_not_keep_a_session_open() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let launcher = format!(
        "cpus = 0.5\nmemory_mib = 64\nended_pods_minutes = 0.05\n\
         [launcher.pod.metadata.labels]\nteam = \"vision\"\n[launcher.pod.spec]\n\
         tolerations = [{{ key = \"nvidia.com/gpu\", operator = \"Exists\" }}]\n\
         containers = [{{ name = \"beside\", image = \"{}\", command = [\"sleep\", \"1000\"] }}]\n",
        super::cluster::BUSYBOX
    );
    let manner = Manner {
        launcher,
        ..Manner::default()
    };
    let dwell = Dwell::with(cluster, manner).await;
    let app = "exec httpd -p $PORT -h . & echo hello > index.html; \
               until [ -e stop ]; do sleep 0.1; done; echo I stop; exit 3";
    let id = dwell.api().create_with(on("L4", app)).await;
    assert_eq!(page(dwell.api(), &id).await, "hello\n");
    let pod = dwell.pod(&id).await.unwrap();
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["team"], "vision");
    let spec = pod.spec.unwrap();
    let tolerations = spec.tolerations.unwrap();
    assert!(
        tolerations
            .iter()
            .any(|it| it.key.as_deref() == Some("nvidia.com/gpu"))
    );
    let app = spec.containers.iter().find(|it| it.name == "app").unwrap();
    let limits = app.resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert_eq!((&*limits["cpu"].0, &*limits["memory"].0), ("500m", "64Mi"));
    dwell.api().stop(&id).await;
    // The other container goes with the Pod, whose time to be looked at is over soon.
    dwell.pod_until(&id, |pod| pod.is_none()).await;
    assert_eq!(app_processes(&[id]), [0; 0]);
}

#[tokio::test]
async fn an_app_that_exits_ends_its_session_with_its_status_and_last_words() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    let id = dwell
        .api()
        .create_with(on("L4", "echo a complaint >&2; exit 3"))
        .await;
    let ended = dwell.api().ended(&id).await;
    assert_eq!(
        sentence(&ended),
        "The app exited with status 3 before it answered on its port: a complaint"
    );
    event_is_true(dwell.api(), &id).await;
    dwell.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn an_image_that_cannot_be_had_ends_its_session_with_kubernetes_words() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let with_image = |image: &str| {
        let mut body = hello("L4");
        body["image"] = json!(image);
        body
    };
    let waits = api.create_with(with_image("127.0.0.1:1/nobodys:1")).await;
    let unwanted = api.create_with(with_image("127.0.0.1:1/nobodys:1")).await;
    let is_told = |session: &Value| {
        let said = words(session);
        said.iter().any(|it| it.contains("ImagePull"))
    };
    api.until(&unwanted, is_told).await;
    let cancelled = api.stop(&unwanted).await;
    assert_eq!(cancelled["end_reason"], "cancelled", "{cancelled}");
    let ended = ended_within(api, &waits, Duration::from_secs(100)).await;
    assert_eq!(ended["end_reason"], "failed", "{ended}");
    assert!(sentence(&ended).contains("ImagePull"), "{ended}");
    assert_eq!(ended["cost"], 0.0);
    for id in [&waits, &unwanted] {
        dwell.pod_until(id, |pod| pod.is_none()).await;
    }
}

#[tokio::test]
async fn what_kubernetes_refuses_it_refuses_in_its_own_words() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let look = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]);
    let powerless = Manner {
        rights: look,
        ..Manner::default()
    };
    let misled = Manner {
        launcher: "[launcher.pod.spec]\nvolumes = [{ name = \"No Name\" }]\n".to_owned(),
        ..Manner::default()
    };
    for (manner, said) in [(powerless, "forbidden"), (misled, "volumes[0].name")] {
        let dwell = Dwell::with(cluster, manner).await;
        let id = dwell.api().create_with(hello("L4")).await;
        let ended = dwell.api().ended(&id).await;
        assert_eq!(ended["end_reason"], "failed", "{ended}");
        let sentence = sentence(&ended);
        assert!(
            sentence.starts_with("Kubernetes refuses: ") && sentence.contains(said),
            "{sentence}"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_killed_finds_its_pods_again_those_that_wait_and_those_that_run() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let mut dwell = Dwell::new(cluster).await;
    let mut ids = Vec::new();
    for _ in 0..GPUS {
        let id = dwell.api().create_with(hello("A100")).await;
        dwell.api().running(&id).await;
        ids.push(id);
    }
    let waits = dwell.api().create_with(hello("A100")).await;
    let job = job_of(&queued(dwell.api(), &waits).await);
    dwell.server.kill();
    dwell.server.restart();
    let api = dwell.api();
    for id in &ids {
        let session = api.session(id).await;
        assert_eq!(session["status"], "running", "{session}");
        assert_eq!(served(api, &session).await, "hello\n");
    }
    assert_eq!(with_job(api, &waits).await, job);
    api.stop(&ids[0]).await;
    assert_eq!(page(api, &waits).await, "hello\n");
    ids.push(waits);
    for id in &ids[1..] {
        api.stop(id).await;
    }
    dwell.nothing_is_left(&ids).await;
}
