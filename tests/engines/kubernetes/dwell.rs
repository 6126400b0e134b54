//! Servers whose sessions are Pods, with the rights that `deploy/` gives them and no others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::cluster::{BUSYBOX, Cluster, HOST, PATIENCE, PRODUCT, PRODUCTS};
use super::namespace::Namespace;
use crate::harness::{Api, DWELL, Server, app_processes, here};

/// An image with the agent and nothing else.
pub const AGENT: &str = "docker.io/dwell-test/agent:1";

/// How soon things are noticed.
pub const LIMITS: &str = "[limits]\nsessions_per_machine = 100\ngrace_seconds = 0.3\n\
     heartbeat_seconds = 0.5\nrelaunch_after_seconds = 2\nlost_after_seconds = 6\n";

/// How a Pod comes by its agent.
pub enum AgentBy {
    /// An image of ours.
    Image,
    /// The server, asked by a script.
    Server,
}

/// A server in a namespace that only it uses, as far as tests do not.
pub struct Dwell<'a> {
    pub server: Server,
    pub namespace: Namespace<'a>,
}

impl<'a> Dwell<'a> {
    pub async fn new(cluster: &'a Cluster) -> Self {
        Self::with(cluster, AgentBy::Image, "").await
    }

    /// One whose launcher has these lines as well.
    pub async fn with(cluster: &'a Cluster, agent: AgentBy, more: &str) -> Self {
        let namespace = Namespace::new(cluster).await;
        let kubeconfig = namespace.account("dwell", rights()).await;
        let launcher = launcher(cluster, &kubeconfig, agent).await;
        let server = serve(&format!("{LIMITS}{launcher}{more}"));
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

    /// Until no process of a session's is left, nor a Pod that runs.
    pub async fn nothing_runs(&self, session: &str) {
        self.pod_until(session, |pod| pod.is_none_or(is_over)).await;
        processes_are_gone(session).await;
    }
}

pub fn is_over(pod: &Pod) -> bool {
    matches!(super::namespace::phase(pod), "Succeeded" | "Failed")
}

/// Until a session's app and all it started are gone.
pub async fn processes_are_gone(session: &str) {
    let began = Instant::now();
    loop {
        let left = app_processes(&[session.to_owned()]);
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "left: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What Pods' addresses can reach.
pub fn serve(config: &str) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("{HOST}:0");
    let server = Server::try_start_in(dir.path(), config, &listen, &[], &[]);
    let mut server = server.unwrap();
    server.owns(dir);
    server
}

/// The table of a launcher that comes by this file, and has both types of GPU.
pub async fn launcher(cluster: &Cluster, kubeconfig: &Path, agent: AgentBy) -> String {
    let agent = match agent {
        AgentBy::Image => {
            let image = agent_image(cluster).await;
            format!("agent_image = \"{image}\"\n")
        }
        AgentBy::Server => String::new(),
    };
    let [l4, a100] = PRODUCTS.map(|product| format!("nvidia.com/gpu, {PRODUCT}={product}"));
    format!(
        "[[launcher]]\nkind = \"kubernetes\"\nkubeconfig = \"{}\"\nimage = \"{BUSYBOX}\"\n\
         look_seconds = 0.5\ngpus = {{ L4 = \"{l4}\", A100 = \"{a100}\", CPU = \"none\" }}\n{agent}",
        kubeconfig.display()
    )
}

/// The rules of the Role that is installed with the server.
pub fn rights() -> Value {
    let file = here("deploy/kubernetes/base/role.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let role: Role = serde_saphyr::from_str(&text).unwrap();
    json!(role.rules)
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
