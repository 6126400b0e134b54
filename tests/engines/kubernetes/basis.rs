//! What sessions in pods rely on, held by Kubernetes itself.

use kube::api::{WatchEvent, WatchParams};

use super::cluster::{PRODUCTS, cluster, until};
use super::namespace::{Namespace, app, app_with_gpu, on, phase};

#[tokio::test]
async fn a_pod_with_a_gpu_runs_and_what_it_wrote_can_be_read() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let namespace = Namespace::new(cluster).await;
    let spec = serde_json::json!({"containers": [app_with_gpu("echo hello")]});
    namespace.create("pod", spec).await;
    namespace
        .until("pod", |pod| phase(pod) == "Succeeded")
        .await;
    assert_eq!(namespace.log("pod").await, "hello\n");
}

#[tokio::test]
async fn hold() {
    let cluster = cluster().await;
    println!("READY");
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
}
