//! Clients at work while Pods are deleted and the API server, kubelets and the server are
//! killed at random. `DWELL_KUBERNETES_SECONDS` is for how long, `DWELL_KUBERNETES_SEED`
//! which storm.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use tokio::runtime::Handle;

use super::cluster::{Cluster, GPUS, cluster};
use super::dwell::{Dwell, Manner};
use crate::client::number;
use crate::harness::Server;
use crate::storm::{audit, weathered};

/// What the clients ask for.
const TYPES: [&str; 2] = ["A10G", "CPU"];

/// What the clients know by these names, in a shell.
const APPS: [(&str, &str); 3] = [
    ("serve.py", ""),
    ("leaves_daemon.py", "sleep 1000 &"),
    ("stubborn.py", "trap '' TERM;"),
];

struct Rage<'a> {
    cluster: &'a Cluster,
    pods: kube::Api<k8s_openapi::api::core::v1::Pod>,
    runtime: Handle,
}

impl Rage<'_> {
    fn goes_on(&self, mut server: Server, mut rng: Rng, until: Instant) -> Server {
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(rng.u64(500..3_000)));
            let span = Duration::from_millis(rng.u64(100..3_000));
            match rng.u8(..4) {
                0 => {
                    server.kill();
                    std::thread::sleep(span / 2);
                    server.restart();
                }
                1 => {
                    self.cluster.apiserver_dies();
                    std::thread::sleep(span);
                    self.runtime.block_on(self.cluster.apiserver_comes_back());
                }
                2 => {
                    let node = &self.cluster.nodes[rng.usize(..2)];
                    node.kubelet_dies();
                    std::thread::sleep(span);
                    node.kubelet_comes_back();
                }
                _ => self.runtime.block_on(self.a_pod_is_deleted(&mut rng)),
            }
        }
        server
    }

    async fn a_pod_is_deleted(&self, rng: &mut Rng) {
        let listed = self.pods.list(&kube::api::ListParams::default()).await;
        let names = listed.unwrap().items.into_iter();
        let names: Vec<_> = names.filter_map(|pod| pod.metadata.name).collect();
        if let Some(name) = rng.choice(&names) {
            // It may be gone by now.
            let _ = self
                .pods
                .delete(name, &kube::api::DeleteParams::default())
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_in_a_storm_holds_and_nothing_is_left() {
    let seed = number("DWELL_KUBERNETES_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = number("DWELL_KUBERNETES_SECONDS").unwrap_or(45);
    eprintln!("storm {seed} for {seconds} s; again with DWELL_KUBERNETES_SEED={seed}");
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    // Pods write there, as a user that is nobody here.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let launcher = format!(
        "[launcher.pod.spec]\n\
         volumes = [{{ name = \"starts\", hostPath = {{ path = \"{}\" }} }}]\n\
         containers = [{{ name = \"app\", \
         volumeMounts = [{{ name = \"starts\", mountPath = \"/starts\" }}] }}]\n",
        dir.path().display()
    );
    let manner = Manner {
        types: TYPES,
        launcher,
        ..Manner::default()
    };
    let app = |name: &str| {
        let (_, first) = APPS.iter().find(|(app, _)| *app == name).unwrap();
        let line = format!(
            "echo $DWELL_SESSION_ID >> /starts/all; {first} echo hello > index.html; \
             exec httpd -f -p $PORT -h ."
        );
        json!(["sh", "-c", line])
    };
    let Dwell { server, namespace } = Dwell::with(cluster, manner).await;
    let rage = Rage {
        cluster,
        pods: namespace.pods(),
        runtime: Handle::current(),
    };
    let rage = move |server, rng, until| rage.goes_on(server, rng, until);
    let (server, ledger) = weathered(server, seconds, Rng::with_seed(seed), app, rage).await;

    let ids = audit(&server, &ledger, TYPES.map(|name| (name, GPUS))).await;
    let dwell = Dwell { server, namespace };
    dwell.nothing_is_left(&ids).await;
    let started = std::fs::read_to_string(dir.path().join("all")).unwrap();
    let mut seen = BTreeSet::new();
    for id in started.lines() {
        assert!(seen.insert(id), "{id} was started twice");
    }
}
