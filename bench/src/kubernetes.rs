//! From asking for an app in a Pod to its answering: as a session, and by creating a Pod.

#[expect(
    clippy::unwrap_used,
    dead_code,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/engines/kubernetes/cluster.rs"]
mod cluster;
#[expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/engines/kubernetes/daemon.rs"]
mod daemon;
#[expect(
    clippy::unwrap_used,
    dead_code,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/engines/kubernetes/namespace.rs"]
mod namespace;
#[expect(
    clippy::unwrap_used,
    dead_code,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/engines/kubernetes/node.rs"]
mod node;

use std::path::Path;
use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde_json::json;

use crate::http::until_it_answers;
use crate::server::{Server, Session, beside};
use crate::statistics::{Sample, millis};
use crate::{Figure, Result};
use cluster::{BUSYBOX, Cluster, HOST, PRODUCT, PRODUCTS, cluster, until};
use namespace::{Namespace, app_with_gpu, on, phase};

const ROUNDS: usize = 20;
/// An image with the agent and nothing else.
const AGENT: &str = "docker.io/dwell-bench/agent:1";
/// The first process of a container is deaf to TERM, unless it says what to do then.
const APP: &str = "trap exit TERM; echo hello > index.html; httpd -f -p ${PORT:-8080} -h . & wait";

/// One at a time, in turn, on the same cluster: the same image, the same app.
pub fn kubernetes(dwell: &Path) -> Result<Vec<Figure>> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().build()?.block_on(measure(dwell))
}

async fn measure(dwell: &Path) -> Result<Vec<Figure>> {
    let cluster = cluster().await;
    import_agent(cluster)?;
    let namespace = Namespace::new(cluster).await;
    let kubeconfig = cluster.kubeconfig("bench", "admin", &namespace.name);
    let product = PRODUCTS[0];
    let launcher = format!(
        "kind = \"kubernetes\"\nkubeconfig = {kubeconfig:?}\nimage = \"{BUSYBOX}\"\n\
         agent_image = \"{AGENT}\"\n\
         gpus = {{ CPU = \"nvidia.com/gpu, {PRODUCT}={product}\" }}\n",
    );
    let server = Server::start_for(&launcher, &format!("{HOST}:0"), dwell, [])?;
    let mut api = server.connect()?;
    let command = ["sh", "-c", APP].map(str::to_owned);
    let spec = json!({"containers": [app_with_gpu(APP)], "nodeSelector": on(product)});
    let (mut sessions, mut runs, mut answers) =
        (Sample::default(), Sample::default(), Sample::default());
    for round in 0..ROUNDS {
        let began = Instant::now();
        let session = Session::create(&mut api, &command)?;
        until_it_answers(&session.address)?;
        sessions.push(began.elapsed());
        session.end(&mut api)?;
        nothing_runs(&namespace).await;

        let name = format!("pod-{round}");
        let began = Instant::now();
        let created = namespace.create(&name, spec.clone()).await;
        let pod = until_it_runs(&namespace, created).await?;
        runs.push(began.elapsed());
        let address = pod.status.and_then(|status| status.pod_ip);
        until_it_answers(&format!("{}:8080", address.ok_or("no address")?))?;
        answers.push(began.elapsed());
        namespace.delete(&name).await;
        nothing_runs(&namespace).await;
    }
    let beside = |what: &str, sample: &Sample| {
        let more = millis(sessions.quantile(0.5)) - millis(sample.quantile(0.5));
        Figure {
            what: what.to_owned(),
            measured: format!("{}; {more:+.1} ms", sample.summary()),
        }
    };
    Ok(vec![
        Figure {
            what: "create → URL answers, busybox httpd by Kubernetes".to_owned(),
            measured: sessions.summary(),
        },
        beside("Pod created → a watch says Running", &runs),
        beside("Pod created → its app answers", &answers),
    ])
}

fn import_agent(cluster: &Cluster) -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::copy(beside("dwell-agent")?, dir.path().join("dwell-agent"))?;
    cluster.import(dir.path(), AGENT);
    Ok(())
}

/// As it was when that was first heard.
async fn until_it_runs(namespace: &Namespace<'_>, created: Pod) -> Result<Pod> {
    let (name, version) = (created.metadata.name, created.metadata.resource_version);
    let only = format!("metadata.name={}", name.unwrap_or_default());
    let (how, version) = (
        WatchParams::default().fields(&only),
        version.unwrap_or_default(),
    );
    let pods = namespace.pods();
    let mut watched = pods.watch(&how, &version).await?.boxed();
    while let Some(event) = watched.try_next().await? {
        if let WatchEvent::Modified(pod) = event
            && phase(&pod) == "Running"
        {
            return Ok(pod);
        }
    }
    Err("the watch ended before the Pod ran".into())
}

/// Until what is measured next has the cluster for itself.
async fn nothing_runs(namespace: &Namespace<'_>) {
    let pods = namespace.pods();
    until("the end of all Pods", async || {
        let all = pods.list(&ListParams::default()).await.ok()?.items;
        let is_over = |pod: &Pod| matches!(phase(pod), "Succeeded" | "Failed");
        all.iter().all(is_over).then_some(())
    })
    .await;
}
