//! What sessions in pods rely on, held by Kubernetes itself.

use axum::Router;
use axum::routing::get;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio::net::TcpListener;

use super::cluster::{GPUS, HOST, PRODUCTS, client, cluster, until};
use super::namespace::{Namespace, app, app_with_gpu, of, on, phase};
use crate::image;

#[tokio::test]
async fn a_pod_with_a_gpu_runs_and_what_it_wrote_can_be_read() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let namespace = Namespace::new(cluster).await;
    let spec = json!({"containers": [app_with_gpu("echo hello")]});
    namespace.create("pod", spec).await;
    namespace
        .until("pod", |pod| phase(pod) == "Succeeded")
        .await;
    assert_eq!(namespace.log("pod").await, "hello\n");
}

#[tokio::test]
async fn one_more_than_there_are_gpus_waits_with_a_reason_and_runs_once_one_is_free() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let namespace = Namespace::new(cluster).await;
    let spec = json!({
        "containers": [app_with_gpu("sleep 1000")],
        "nodeSelector": on(PRODUCTS[0]),
    });
    for number in 0..GPUS {
        let name = format!("pod-{number}");
        namespace.create(&name, spec.clone()).await;
        let pod = namespace.until(&name, |pod| phase(pod) == "Running").await;
        assert_eq!(
            pod.spec.unwrap().node_name,
            Some(cluster.nodes[0].name.clone())
        );
    }
    namespace.create("waits", spec).await;
    let is_told = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| &status.conditions);
        conditions.flatten().any(|condition| {
            let message = condition.message.as_deref().unwrap_or_default();
            condition.type_ == "PodScheduled"
                && condition.reason.as_deref() == Some("Unschedulable")
                && message.contains("1 Insufficient nvidia.com/gpu")
        })
    };
    namespace.until("waits", is_told).await;
    namespace.delete("pod-0").await;
    namespace
        .until("waits", |pod| phase(pod) == "Running")
        .await;
}

#[tokio::test]
async fn a_pod_is_over_when_its_time_is_up() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let namespace = Namespace::new(cluster).await;
    let spec = json!({"containers": [app("sleep 1000")], "activeDeadlineSeconds": 3});
    namespace.create("pod", spec).await;
    let pod = namespace.until("pod", |pod| phase(pod) == "Failed").await;
    let status = pod.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[tokio::test]
async fn pods_live_on_while_the_api_is_gone_and_others_run_once_it_is_back() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let namespace = Namespace::new(cluster).await;
    let spec = json!({"containers": [app("sleep 1000")]});
    let before = namespace.create("before", spec.clone()).await;
    namespace
        .until("before", |pod| phase(pod) == "Running")
        .await;
    cluster.apiserver_dies();
    assert!(namespace.pods().get("before").await.is_err());
    cluster.apiserver_comes_back().await;
    let after = namespace
        .until("before", |pod| phase(pod) == "Running")
        .await;
    assert_eq!(after.metadata.uid, before.metadata.uid);
    namespace.create("after", spec).await;
    namespace
        .until("after", |pod| phase(pod) == "Running")
        .await;
}

#[tokio::test]
async fn who_watches_on_from_what_is_forgotten_is_told_so() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let namespace = Namespace::new(cluster).await;
    let listed = namespace.pods().list(&ListParams::default()).await.unwrap();
    let then = listed.metadata.resource_version.unwrap();
    let spec = json!({"containers": [app("true")]});
    namespace.create("pod", spec).await;
    namespace
        .until("pod", |pod| phase(pod) == "Succeeded")
        .await;
    cluster.compact().await;
    let pods = namespace.pods();
    let watched = pods.watch(&WatchParams::default(), &then).await.unwrap();
    let first = watched.boxed().try_next().await.unwrap().unwrap();
    let WatchEvent::Error(status) = first else {
        panic!("{first:?}")
    };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
}

#[tokio::test]
async fn a_node_that_is_silent_is_not_ready_and_its_pods_are_still_there_when_it_is_back() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let namespace = Namespace::new(cluster).await;
    let node = &cluster.nodes[1];
    let spec = json!({
        "containers": [app_with_gpu("sleep 1000")],
        "nodeSelector": on(PRODUCTS[1]),
    });
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| &status.conditions);
        let mut conditions = conditions.flatten();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let before = namespace.create("pod", spec).await;
    namespace.until("pod", is_ready).await;
    node.kubelet_dies();
    let pod = namespace.until("pod", |pod| !is_ready(pod)).await;
    assert_eq!(phase(&pod), "Running");
    node.kubelet_comes_back();
    let after = namespace.until("pod", is_ready).await;
    assert_eq!(after.metadata.uid, before.metadata.uid);
}

#[tokio::test]
async fn an_evicted_pod_is_gone() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let namespace = Namespace::new(cluster).await;
    namespace
        .create("pod", json!({"containers": [app("sleep 1000")]}))
        .await;
    namespace.until("pod", |pod| phase(pod) == "Running").await;
    namespace.evict("pod").await;
    until("its end", async || {
        let found = namespace.pods().get_opt("pod").await.unwrap();
        found.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_account_may_do_what_its_role_says_and_nothing_else() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let (namespace, other) = tokio::join!(Namespace::new(cluster), Namespace::new(cluster));
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "list"]}]);
    let account = client(&namespace.account("dwell", rules).await).await;
    let pods: Api<Pod> = Api::default_namespaced(account.clone());
    let pod: Pod = of(json!({
        "metadata": {"name": "pod"},
        "spec": {"containers": [app("true")], "automountServiceAccountToken": false},
    }));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let found = pods.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(found.len(), 1);
    let is_forbidden = |error: kube::Error| {
        let kube::Error::Api(status) = error else {
            panic!("{error:?}")
        };
        assert_eq!(status.code, 403, "{status:?}");
    };
    is_forbidden(pods.get("pod").await.unwrap_err());
    let events: Api<Event> = Api::default_namespaced(account.clone());
    is_forbidden(events.list(&ListParams::default()).await.unwrap_err());
    let others: Api<Pod> = Api::namespaced(account, &other.name);
    is_forbidden(others.list(&ListParams::default()).await.unwrap_err());
}

#[tokio::test]
async fn a_pod_reaches_what_listens_on_this_host() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let namespace = Namespace::new(cluster).await;
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().route("/", get(async || "it is me"));
    tokio::spawn(async { axum::serve(listener, router).await });
    let visit = format!("wget -q -O - http://{HOST}:{port}/");
    namespace
        .create("pod", json!({"containers": [app(&visit)]}))
        .await;
    namespace
        .until("pod", |pod| phase(pod) == "Succeeded")
        .await;
    assert_eq!(namespace.log("pod").await, "it is me");
}

#[tokio::test]
async fn a_pod_of_an_image_of_ours_runs_and_one_of_an_image_that_nobody_has_waits_with_a_reason() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let namespace = Namespace::new(cluster).await;
    let dir = tempfile::tempdir().unwrap();
    let tree = image::busybox(dir.path());
    std::fs::write(tree.join("word"), "from the image").unwrap();
    let name = "docker.io/dwell-test/word:1";
    cluster.import(&tree, name);
    let mut ours = app("cat /word");
    ours["image"] = json!(name);
    namespace
        .create("ours", json!({"containers": [ours]}))
        .await;
    namespace
        .until("ours", |pod| phase(pod) == "Succeeded")
        .await;
    assert_eq!(namespace.log("ours").await, "from the image");

    let mut nobodys = app("true");
    nobodys["image"] = json!("127.0.0.1:1/nobodys:1");
    namespace
        .create("nobodys", json!({"containers": [nobodys]}))
        .await;
    let waits = |pod: &Pod| {
        let containers = pod
            .status
            .iter()
            .flat_map(|status| &status.container_statuses);
        containers.flatten().any(|container| {
            let waiting = container
                .state
                .as_ref()
                .and_then(|state| state.waiting.as_ref());
            let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
            matches!(reason, Some("ErrImagePull" | "ImagePullBackOff"))
        })
    };
    namespace.until("nobodys", waits).await;
}
