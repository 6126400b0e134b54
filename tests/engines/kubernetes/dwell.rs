//! Servers whose sessions are Pods, with the rights that `deploy/` gives them and no others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::cluster::{BUSYBOX, Cluster, HOST, PATIENCE, PRODUCT, PRODUCTS};
use super::namespace::Namespace;
use crate::harness::{Api, DWELL, Server, app_processes, here};

/// An image with the agent and nothing else.
pub const AGENT: &str = "docker.io/dwell-test/agent:1";

/// How soon things are noticed, and that each second is seen in the bill.
const LIMITS: &str = "[limits]\nsessions_per_machine = 300\ngrace_seconds = 0.3\n\
     heartbeat_seconds = 0.5\nrelaunch_after_seconds = 2\nlost_after_seconds = 6\n\
     [prices]\nL4 = 3600.0\nA100 = 3600.0\n";

/// How a Pod comes by its agent.
#[derive(Clone, Copy)]
pub enum AgentBy {
    /// An image of ours.
    Image,
    /// The server, asked by a script.
    Server,
}

/// What is said of a cluster.
pub struct Manner {
    pub agent: AgentBy,
    /// What Dwell calls the GPUs of each node.
    pub types: [&'static str; 2],
    /// What its account may do.
    pub rights: Value,
    /// More of `[[launcher]]`.
    pub launcher: String,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            agent: AgentBy::Image,
            types: ["L4", "A100"],
            rights: rights(),
            launcher: String::new(),
        }
    }
}

/// A server in a namespace that only it uses, as far as tests do not.
pub struct Dwell<'a> {
    pub server: Server,
    pub namespace: Namespace<'a>,
}

impl<'a> Dwell<'a> {
    pub async fn new(cluster: &'a Cluster) -> Self {
        Self::with(cluster, Manner::default()).await
    }

    pub async fn with(cluster: &'a Cluster, manner: Manner) -> Self {
        let namespace = Namespace::new(cluster).await;
        let kubeconfig = namespace.account("dwell", manner.rights.clone()).await;
        let launcher = launcher(cluster, &kubeconfig, &manner).await;
        let server = serve(&format!("{LIMITS}{launcher}"));
        Self { server, namespace }
    }

    pub fn api(&self) -> &Api {
        &self.server.api
    }

    /// The Pod of a session, if there is one.
    pub async fn pod(&self, session: &str) -> Option<Pod> {
        let label = format!("dwell/session={session}");
        let list = ListParams::default().labels(&label);
        let mut found = self.namespace.pods().list(&list).await.unwrap().items;
        assert!(found.len() <= 1, "{found:?}");
        found.pop()
    }

    /// Until the Pod of a session is so.
    pub async fn pod_until(&self, session: &str, is_so: impl Fn(Option<&Pod>) -> bool) {
        let began = Instant::now();
        loop {
            let pod = self.pod(session).await;
            if is_so(pod.as_ref()) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "still {pod:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn pod_name(&self, session: &str) -> String {
        let pod = self.pod(session).await.expect("a Pod");
        pod.metadata.name.unwrap()
    }

    /// Until no process of these sessions is left, nor a Pod that runs.
    pub async fn nothing_is_left(&self, sessions: &[String]) {
        for session in sessions {
            self.pod_until(session, |pod| pod.is_none_or(is_over)).await;
        }
        let began = Instant::now();
        loop {
            let left = app_processes(sessions);
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "left: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn is_over(pod: &Pod) -> bool {
    matches!(super::namespace::phase(pod), "Succeeded" | "Failed")
}

/// What Pods' addresses can reach.
fn serve(config: &str) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("{HOST}:0");
    let server = Server::try_start_in(dir.path(), config, &listen, &[], &[]);
    let mut server = server.unwrap();
    server.owns(dir);
    server
}

/// The table of a launcher that comes by this file.
async fn launcher(cluster: &Cluster, kubeconfig: &Path, manner: &Manner) -> String {
    let agent = match manner.agent {
        AgentBy::Image => {
            let image = agent_image(cluster).await;
            format!("agent_image = \"{image}\"\n")
        }
        AgentBy::Server => String::new(),
    };
    let [first, second] = manner.types;
    let [these, those] = PRODUCTS.map(|product| format!("nvidia.com/gpu, {PRODUCT}={product}"));
    format!(
        "[[launcher]]\nkind = \"kubernetes\"\nkubeconfig = \"{}\"\nimage = \"{BUSYBOX}\"\n\
         look_seconds = 0.5\ngpus = {{ {first} = \"{these}\", {second} = \"{those}\" }}\n{agent}{}",
        kubeconfig.display(),
        manner.launcher,
    )
}

/// The rules of the Role that is installed with the server.
fn rights() -> Value {
    rules_of("deploy/kubernetes/base/role.yaml")
}

/// The rules of a Role, or a ClusterRole, in this file.
pub fn rules_of(file: &str) -> Value {
    let text = std::fs::read_to_string(here(file)).unwrap();
    let mut role: Value = serde_saphyr::from_str(&text).unwrap();
    role["rules"].take()
}

async fn agent_image(cluster: &Cluster) -> &'static str {
    static IMPORTED: OnceCell<()> = OnceCell::const_new();
    IMPORTED
        .get_or_init(async || {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("tree");
            std::fs::create_dir(&tree).unwrap();
            copy_without_symbols(&agent(), &tree.join("dwell-agent"));
            cluster.import(&tree, AGENT);
        })
        .await;
    AGENT
}

/// The one that runs in any image, for it is linked with nothing.
pub fn agent() -> PathBuf {
    let agent = Path::new(DWELL).with_file_name("dwell-agent");
    assert!(agent.exists(), "`make test-kubernetes` builds the agent");
    let named = Command::new("ldd").arg(&agent).output().unwrap();
    assert!(!String::from_utf8_lossy(&named.stdout).contains("=>"));
    agent
}

/// Each Pod has a copy of its own, and most of it is for debuggers.
pub fn copy_without_symbols(program: &Path, copy: &Path) {
    let stripped = Command::new("strip")
        .arg("-o")
        .arg(copy)
        .arg(program)
        .status();
    assert!(stripped.unwrap().success());
}
