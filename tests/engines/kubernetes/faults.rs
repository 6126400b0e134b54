//! What can go wrong with sessions in Pods: the API server, its memory, its operators, its
//! nodes, each alone.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::cluster::{GPUS, PRODUCTS, cluster};
use super::dwell::Dwell;
use super::namespace::{app_with_gpu, on, phase};
use super::stories::{hello, page};
use crate::harness::app_processes;
use crate::seen::{ended_within, event_is_true, extended, sentence, served, was_told_to_end};

#[tokio::test]
async fn an_api_server_that_is_away_disturbs_no_session_and_new_ones_wait_for_it() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let (stays, goes) = (
        api.create_with(hello("L4")).await,
        api.create_with(hello("A100")).await,
    );
    for id in [&stays, &goes] {
        api.running(id).await;
    }
    cluster.apiserver_dies();
    let new = api.create_with(hello("L4")).await;
    let unwanted = api.create_with(hello("L4")).await;
    let deleted = api.delete(&format!("/session/{unwanted}")).await;
    assert_eq!(deleted.status, 200, "{deleted:?}");
    // An agent needs nobody to end its session.
    let ended = api.stop(&goes).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    assert_eq!(app_processes(std::slice::from_ref(&goes)), [0; 0]);
    extended(api, &stays, 60).await;
    assert_eq!(page(api, &stays).await, "hello\n");
    assert_ne!(api.session(&new).await["status"], "ended");
    cluster.apiserver_comes_back().await;
    assert_eq!(page(api, &new).await, "hello\n");
    let ended = api.ended(&unwanted).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    assert_eq!(page(api, &stays).await, "hello\n");
    for id in [&stays, &new] {
        api.stop(id).await;
    }
    dwell.nothing_is_left(&[stays, goes, new, unwanted]).await;
}

/// Of what was so before it nobody is told afterwards.
#[tokio::test]
async fn a_compaction_keeps_nothing_from_being_noticed() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let before = api.create_with(hello("L4")).await;
    api.running(&before).await;
    cluster.compact().await;
    assert_eq!(page(api, &before).await, "hello\n");
    let after = api.create_with(hello("A100")).await;
    assert_eq!(page(api, &after).await, "hello\n");
    dwell.namespace.delete(&dwell.pod_name(&before).await).await;
    let ended = api.ended(&before).await;
    assert!(!sentence(&ended).is_empty(), "{ended}");
    api.stop(&after).await;
    dwell.nothing_is_left(&[before, after]).await;
}

#[tokio::test]
async fn a_pod_that_somebody_deletes_or_evicts_ends_its_session_with_a_sentence() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let (deleted, evicted) = (
        api.create_with(hello("L4")).await,
        api.create_with(hello("A100")).await,
    );
    for id in [&deleted, &evicted] {
        api.running(id).await;
    }
    let name = dwell.pod_name(&deleted).await;
    dwell.namespace.delete(&name).await;
    let name = dwell.pod_name(&evicted).await;
    dwell.namespace.evict(&name).await;
    for id in [&deleted, &evicted] {
        // A kubelet may miss this of a Pod that has just been started, until it looks at all
        // of them, as it does each minute.
        let ended = ended_within(api, id, Duration::from_secs(90)).await;
        was_told_to_end(&ended);
        event_is_true(api, id).await;
    }
    dwell.nothing_is_left(&[deleted, evicted]).await;
}

#[tokio::test]
async fn a_session_whose_gpu_an_urgent_pod_takes_ends_and_says_so() {
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
    let class = dwell.namespace.more_urgent().await;
    let spec = json!({
        "priorityClassName": class,
        "nodeSelector": on(PRODUCTS[0]),
        "containers": [app_with_gpu("exec sleep 3600")],
    });
    dwell.namespace.create("urgent", spec).await;
    let runs = |pod: &Pod| phase(pod) == "Running";
    dwell.namespace.until("urgent", runs).await;
    let mut ended = Vec::new();
    for id in &ids {
        let session = api.session(id).await;
        if session["status"] != "running" {
            ended.push(ended_within(api, id, Duration::from_secs(90)).await);
            event_is_true(api, id).await;
        }
    }
    // It took one, and not more.
    assert_eq!(ended.len(), 1, "{ended:?}");
    was_told_to_end(&ended[0]);
    dwell.namespace.delete_at_once("urgent").await;
    for id in &ids {
        if ended[0]["id"] != **id {
            assert_eq!(page(api, id).await, "hello\n");
            api.stop(id).await;
        }
    }
    dwell.nothing_is_left(&ids).await;
}

/// With no time to say anything, its agent included.
#[tokio::test]
async fn a_pod_that_is_deleted_at_once_ends_its_session_as_lost() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let dwell = Dwell::new(cluster).await;
    let id = dwell.api().create_with(hello("L4")).await;
    dwell.api().running(&id).await;
    let name = dwell.pod_name(&id).await;
    dwell.namespace.delete_at_once(&name).await;
    let ended = dwell.api().ended(&id).await;
    assert!(!sentence(&ended).is_empty(), "{ended}");
    event_is_true(dwell.api(), &id).await;
    dwell.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn a_session_outlives_its_nodes_kubelet_and_ends_without_it() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let dwell = Dwell::new(cluster).await;
    let api = dwell.api();
    let (stays, goes) = (
        api.create_with(hello("A100")).await,
        api.create_with(hello("A100")).await,
    );
    for id in [&stays, &goes] {
        api.running(id).await;
    }
    let node = &cluster.nodes[1];
    node.kubelet_dies();
    let ended = api.stop(&goes).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    assert_eq!(app_processes(std::slice::from_ref(&goes)), [0; 0]);
    // Kubernetes does not hear of the node any more; its agents are heard of.
    let is_not_ready = |pod: Option<&k8s_openapi::api::core::v1::Pod>| {
        let status = pod.and_then(|pod| pod.status.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it.type_ == "Ready" && it.status == "False")
    };
    dwell.pod_until(&stays, is_not_ready).await;
    let session = api.session(&stays).await;
    assert_eq!(session["status"], "running", "{session}");
    assert_eq!(served(api, &session).await, "hello\n");
    node.kubelet_comes_back();
    let next = api.create_with(hello("A100")).await;
    assert_eq!(page(api, &next).await, "hello\n");
    assert_eq!(page(api, &stays).await, "hello\n");
    for id in [&stays, &next] {
        api.stop(id).await;
    }
    dwell.nothing_is_left(&[stays, goes, next]).await;
}
