//! A Kubernetes of two nodes with GPUs of a type each, started by the tests and for them
//! alone. Its ports are the usual ones, for the network is its own (`tests/setup/alone.sh`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::daemon::Daemon;
use super::node::{self, Node};
use crate::{image, scratch};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where pods reach what listens on this host.
pub const HOST: &str = "198.51.100.2";

/// An image that every node has: busybox and nothing else.
pub const BUSYBOX: &str = "docker.io/dwell-test/busybox:1";

/// The label of a node that says what its GPUs are, and what they are.
pub const PRODUCT: &str = "nvidia.com/gpu.product";
pub const PRODUCTS: [&str; 2] = ["NVIDIA-L4", "NVIDIA-A100-SXM4-80GB"];

/// What a node has of them.
pub const GPUS: usize = 4;

pub struct Cluster {
    dir: PathBuf,
    pub nodes: [Node; 2],
    _etcd: Daemon,
    apiserver: Daemon,
    scheduler: Daemon,
    controller_manager: Daemon,
    /// Who kills something or wants all GPUs is alone with it.
    users: RwLock<()>,
}

pub async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER.get_or_init(Cluster::start).await
}

/// Who may use the API, by a token that is the name.
const USERS: [(&str, &str, &str); 5] = [
    ("admin", "admin", "system:masters"),
    ("scheduler", "system:kube-scheduler", ""),
    (
        "controller-manager",
        "system:kube-controller-manager",
        "system:masters",
    ),
    ("n1", "system:node:n1", "system:nodes"),
    ("n2", "system:node:n2", "system:nodes"),
];

impl Cluster {
    async fn start() -> Self {
        for name in ["DWELL_TEST_OUTSIDE", "DWELL_TEST_KUBERNETES"] {
            assert!(
                std::env::var_os(name).is_some(),
                "a Kubernetes is for `make test-kubernetes`, which keeps the host out of it"
            );
        }
        let dir = dir();
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        make_secrets(&dir);
        for (user, ..) in USERS {
            write_kubeconfig(&dir, user, user, "default");
        }
        no_cloud();
        let kubeconfig = |user: &str| dir.join(format!("{user}.kubeconfig"));

        let etcd = Daemon::start(&dir, "etcd", etcd(&dir));
        let apiserver = Daemon::start(&dir, "kube-apiserver", apiserver(&dir));
        let images = [dir.join("pause.tar"), dir.join("busybox.tar")];
        let busybox = image::busybox(&dir);
        node::save_pause(&busybox, &images[0]);
        save(&busybox, BUSYBOX, &images[1]);
        let node = async |number: u8| {
            let labels = format!("{PRODUCT}={}", PRODUCTS[usize::from(number) - 1]);
            let kubeconfig = kubeconfig(&format!("n{number}"));
            Node::start(&dir, number, &labels, &kubeconfig, &images).await
        };
        let admin = client(&kubeconfig("admin")).await;
        let (first, second, ()) = tokio::join!(node(1), node(2), ready(&admin));
        let scheduler = Daemon::start(&dir, "kube-scheduler", scheduler(&dir));
        let controller_manager =
            Daemon::start(&dir, "kube-controller-manager", controller_manager(&dir));
        let cluster = Self {
            dir,
            nodes: [first, second],
            _etcd: etcd,
            apiserver,
            scheduler,
            controller_manager,
            users: RwLock::new(()),
        };
        for node in &cluster.nodes {
            cluster.has_gpus(node).await;
        }
        cluster
    }

    /// One user among others.
    pub async fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.users.read().await
    }

    /// The only user.
    pub async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.users.write().await
    }

    /// A client that may do anything.
    pub async fn admin(&self) -> Client {
        client(&self.admin_kubeconfig()).await
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A file by which one is who has this token.
    pub fn kubeconfig(&self, user: &str, token: &str, namespace: &str) -> PathBuf {
        write_kubeconfig(&self.dir, user, token, namespace)
    }

    /// Have all nodes know an image of this tree.
    pub fn import(&self, tree: &Path, name: &str) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        save(tree, name, &archive);
        for node in &self.nodes {
            node.import(&archive);
        }
    }

    pub fn apiserver_dies(&self) {
        self.apiserver.dies();
    }

    pub async fn apiserver_comes_back(&self) {
        self.apiserver.comes_back();
        ready(&self.admin().await).await;
        // They would come to it by themselves, but they ask ever less often.
        for client in [&self.scheduler, &self.controller_manager] {
            client.dies();
            client.comes_back();
        }
    }

    /// Forget all that is not so any more, as is done every five minutes; nobody is told
    /// afterwards what they missed.
    pub async fn compact(&self) {
        let now = etcdctl(&["get", "nothing", "--write-out=json"]);
        let now: Value = serde_json::from_str(&now).unwrap();
        etcdctl(&["compact", &now["header"]["revision"].to_string()]);
        // It knows the latest by heart.
        self.apiserver_dies();
        self.apiserver_comes_back().await;
    }

    /// Until it is ready and has its GPUs. A device plugin would say so; there is none.
    async fn has_gpus(&self, node: &Node) {
        let nodes: Api<NodeObject> = Api::all(self.admin().await);
        let capacity = json!({"status": {"capacity": {"nvidia.com/gpu": GPUS.to_string()}}});
        until("a node with GPUs", async || {
            let found = nodes.get_opt(&node.name).await.ok()??.status?;
            let mut conditions = found.conditions.iter().flatten();
            let ready = conditions
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            let gpus = found.allocatable?.get("nvidia.com/gpu").cloned();
            if ready && gpus.is_some_and(|gpus| gpus.0 == GPUS.to_string()) {
                return Some(());
            }
            let patch = Patch::Strategic(&capacity);
            let _ = nodes
                .patch_status(&node.name, &PatchParams::default(), &patch)
                .await;
            None
        })
        .await;
    }
}

fn dir() -> PathBuf {
    scratch().join("kubernetes")
}

/// One of what `tests/setup/kubernetes.sh` built.
pub fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("DWELL_TEST_KUBERNETES").unwrap();
    Path::new(&dir).join("bin").join(name)
}

fn save(tree: &Path, name: &str, archive: &Path) {
    image::save(tree, name, image::architecture(), &json!({}), archive);
}

/// Ask again until there is an answer.
pub async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        let logs = dir();
        assert!(
            began.elapsed() < PATIENCE,
            "waited in vain for {what}; there are logs in {}",
            logs.display()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.unwrap()).unwrap()
}

/// Have a kubelet that asks whether this is a rented machine know at once that it is not.
fn no_cloud() {
    let route = ["route", "replace", "unreachable", "169.254.169.254"];
    let routed = Command::new("ip").args(route).status();
    assert!(routed.unwrap().success());
}

async fn ready(admin: &Client) {
    let ask = || hyper::Request::get("/readyz").body(Vec::new()).unwrap();
    until("the API", async || admin.request_text(ask()).await.ok()).await;
}

fn write_kubeconfig(dir: &Path, user: &str, token: &str, namespace: &str) -> PathBuf {
    let path = dir.join(format!("{user}.kubeconfig"));
    let cluster = json!({
        "server": "https://127.0.0.1:6443",
        "certificate-authority": dir.join("certificate.pem"),
    });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{
            "name": "it",
            "context": {"cluster": "it", "user": user, "namespace": namespace},
        }],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// The API's certificate, the keys of accounts, and who may come by which token.
fn make_secrets(dir: &Path) {
    let names = ["127.0.0.1", HOST].map(String::from);
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    let accounts = KeyPair::generate().unwrap();
    let tokens = USERS.map(|(token, name, group)| format!("{token},{name},{name},{group}\n"));
    for (name, content) in [
        ("certificate.pem", cert.pem()),
        ("key.pem", signing_key.serialize_pem()),
        ("accounts.pem", accounts.public_key_pem()),
        ("accounts-key.pem", accounts.serialize_pem()),
        ("tokens.csv", tokens.concat()),
    ] {
        std::fs::write(dir.join(name), content).unwrap();
    }
}

fn etcd(dir: &Path) -> Command {
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir.join("etcd"));
    command
}

fn etcdctl(words: &[&str]) -> String {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn apiserver(dir: &Path) -> Command {
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(program("kube-apiserver"));
    command.args([
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        format!("--advertise-address={HOST}"),
        // The Service of it needs a proxy on each node, which nobody here needs.
        "--endpoint-reconciler-type=none".to_owned(),
        // Nodes have no names that anybody knows.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--token-auth-file={}", at("tokens.csv")),
        format!("--tls-cert-file={}", at("certificate.pem")),
        format!("--tls-private-key-file={}", at("key.pem")),
        format!("--service-account-key-file={}", at("accounts.pem")),
        format!(
            "--service-account-signing-key-file={}",
            at("accounts-key.pem")
        ),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
    ]);
    command
}

fn scheduler(dir: &Path) -> Command {
    let kubeconfig = dir.join("scheduler.kubeconfig");
    let mut command = Command::new(program("kube-scheduler"));
    command
        .args(["--leader-elect=false", "--port=0", "--secure-port=0"])
        .arg(format!("--kubeconfig={}", kubeconfig.display()));
    command
}

fn controller_manager(dir: &Path) -> Command {
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(program("kube-controller-manager"));
    command.args([
        "--leader-elect=false".to_owned(),
        "--port=0".to_owned(),
        "--secure-port=0".to_owned(),
        format!("--kubeconfig={}", at("controller-manager.kubeconfig")),
        format!("--root-ca-file={}", at("certificate.pem")),
        format!(
            "--service-account-private-key-file={}",
            at("accounts-key.pem")
        ),
        format!("--flex-volume-plugin-dir={}", at("volume-plugins")),
        // A node that is not heard of is soon not ready.
        "--node-monitor-period=500ms".to_owned(),
        "--node-monitor-grace-period=10s".to_owned(),
    ]);
    command
}
