//! What `deploy/kubernetes` installs, by the commands that its README names.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::{BUSYBOX, Cluster, HOST, cluster, until};
use super::dwell::{agent, copy_without_symbols};
use super::namespace::Namespace;
use super::stories::{on, web};
use crate::harness::{Api, DWELL, here};
use crate::image;

/// The port of the Service, which is the server's too.
const PORT: u16 = 8080;

/// Where the config says what Pods have besides.
const POD: &str = "[launcher.pod.spec]";

/// The base in a namespace of a test's own.
struct Installed<'a> {
    namespace: Namespace<'a>,
    kubeconfig: PathBuf,
    /// The copy that was installed, and whatever kubectl keeps.
    files: TempDir,
    _volume: TempDir,
}

impl<'a> Installed<'a> {
    async fn new(cluster: &'a Cluster) -> Self {
        let namespace = Namespace::new(cluster).await;
        let kubeconfig = cluster.kubeconfig(&namespace.name, "admin", &namespace.name);
        let installed = Self {
            kubeconfig,
            files: tempfile::tempdir().unwrap(),
            _volume: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            namespace,
        };
        installed.copy();
        let base = installed.files.path().display().to_string();
        installed.kubectl(&["apply", "-k", &base], "");
        installed
    }

    /// The files, in another namespace, and with what this cluster has not: names of
    /// Services, for which nodes' files are in the place of DNS, and a way to the address of
    /// the API's own Service.
    fn copy(&self) {
        for file in std::fs::read_dir(here("deploy/kubernetes/base")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), self.file(file.file_name())).unwrap();
        }
        self.edit("kustomization.yaml", |kustomization| {
            kustomization["namespace"] = json!(self.namespace.name);
        });
        self.edit("statefulset.yaml", |set| {
            let env = &mut set["spec"]["template"]["spec"]["containers"][0]["env"];
            for (part, value) in [("HOST", HOST), ("PORT", "6443")] {
                let name = format!("KUBERNETES_SERVICE_{part}");
                let variables = env.as_array_mut().unwrap();
                variables.push(json!({"name": name, "value": value}));
            }
        });
        let config = std::fs::read_to_string(self.file("dwell.toml")).unwrap();
        let names = format!("hostAliases = [{{ ip = \"{HOST}\", hostnames = [\"dwell\"] }}]");
        let config = config.replace(POD, &format!("{POD}\n{names}"));
        std::fs::write(self.file("dwell.toml"), config).unwrap();
    }

    fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.files.path().join(name)
    }

    fn read(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.file(name)).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.read(name);
        change(&mut object);
        std::fs::write(self.file(name), object.to_string()).unwrap();
    }

    /// There is neither a registry nor a provisioner of volumes.
    fn has_what_it_needs(&self, cluster: &Cluster) {
        self.has_images(cluster);
        let volume = self.volume(&cluster.nodes[0].name).to_string();
        self.kubectl(&["create", "-f", "-"], &volume);
    }

    /// Each node has those that the files name.
    fn has_images(&self, cluster: &Cluster) {
        let tree = tempfile::tempdir().unwrap();
        copy_without_symbols(&agent(), &tree.path().join("dwell-agent"));
        let config = std::fs::read_to_string(self.file("dwell.toml")).unwrap();
        let config: Value = toml::from_str(&config).unwrap();
        let name = config["launcher"][0]["agent_image"].as_str().unwrap();
        cluster.import(tree.path(), name);

        let image = &self.read("kustomization.yaml")["images"][0];
        let part = |key: &str| image[key].as_str().unwrap().to_owned();
        let name = format!("{}:{}", part("newName"), part("newTag"));
        let archive = tree.path().join("server.tar");
        save_server(&name, &archive);
        for node in &cluster.nodes {
            node.import(&archive);
        }
    }

    /// What a provisioner would have made for the server's claim.
    fn volume(&self, node: &str) -> Value {
        let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": self.namespace.name},
            "spec": {
                "capacity": {"storage": "10Gi"},
                "accessModes": ["ReadWriteOnce"],
                "claimRef": {"namespace": self.namespace.name, "name": "data-dwell-0"},
                "local": {"path": self._volume.path()},
                "nodeAffinity": {
                    "required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]},
                },
            },
        })
    }

    /// Until the server is ready, as of its latest files.
    fn serves(&self) {
        let words = ["rollout", "status", "statefulset/dwell", "--timeout=120s"];
        self.kubectl(&words, "");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(words)
            .env("HOME", self.files.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// What it prints, with this as its input.
    fn kubectl(&self, words: &[&str], input: &str) -> String {
        let mut child = self.command(words).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "kubectl {words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The id of a session's Pod.
    fn pod(&self, session: &str) -> String {
        let label = format!("dwell/session={session}");
        let id = "jsonpath={.items[*].metadata.uid}";
        let pod = self.kubectl(&["get", "pods", "-l", &label, "-o", id], "");
        assert!(!pod.is_empty(), "it has none");
        pod
    }

    /// What the server's account may do with objects in a namespace.
    fn rules(&self, namespace: &str) -> Vec<Value> {
        let question = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        });
        let account = format!("system:serviceaccount:{}:dwell", self.namespace.name);
        let words = ["create", "-f", "-", "-o", "json", "--as", &account];
        let answer = self.kubectl(&words, &question.to_string());
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let rules = answer["status"]["resourceRules"].as_array().unwrap();
        // Everybody may ask what they may.
        let is_of_interest = |rule: &&Value| rule["apiGroups"] != json!(["authorization.k8s.io"]);
        rules.iter().filter(is_of_interest).cloned().collect()
    }
}

/// The server's image as `deploy/Containerfile` says, with the libraries of this machine.
fn save_server(name: &str, archive: &Path) {
    let containerfile = std::fs::read_to_string(here("deploy/Containerfile")).unwrap();
    let (_, stage) = containerfile.rsplit_once("\nFROM ").unwrap();
    let said = |word: &str| {
        let mut lines = stage.lines();
        lines.find_map(|line| line.strip_prefix(word)).unwrap()
    };
    let words = |word: &str| serde_json::from_str::<Vec<String>>(said(word)).unwrap();
    let [program] = &words("ENTRYPOINT ")[..] else {
        panic!("{stage}")
    };

    let tree = tempfile::tempdir().unwrap();
    let at = |path: &str| {
        let place = tree.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    };
    copy_without_symbols(Path::new(DWELL), &at(program));
    let agent_beside = Path::new(program).with_file_name("dwell-agent");
    copy_without_symbols(&agent(), &at(agent_beside.to_str().unwrap()));
    let libraries = Command::new("ldd").arg(DWELL).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    for library in libraries
        .split_whitespace()
        .filter(|it| it.starts_with('/'))
    {
        std::fs::copy(library, at(library)).unwrap();
    }
    let process = json!({
        "Entrypoint": [program], "Cmd": words("CMD "), "User": said("USER "),
    });
    let architecture = image::architecture();
    image::save(tree.path(), name, architecture, &process, archive);
}

/// The Service, led to this host, where Pods reach it too.
struct Forwarded(Child);

impl Forwarded {
    fn by(installed: &Installed<'_>) -> Self {
        let port = PORT.to_string();
        let words = ["port-forward", "--address", HOST, "service/dwell", &port];
        let mut child = installed.command(&words).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it is led there").unwrap();
        assert!(first.starts_with("Forwarding from"), "{first}");
        // It says something of each connection.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    fn api(&self, key: &str) -> Api {
        Api::new(&format!("http://{HOST}:{PORT}"), key)
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a session's URL answers to who is led to this host by its name.
async fn visit(url: &str) -> Option<String> {
    let name = url.strip_prefix("http://").unwrap();
    let request = Request::get(format!("http://{HOST}:{PORT}/"))
        .header("host", name.trim_end_matches('/'))
        .body(Empty::<Bytes>::new());
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request.unwrap()).await.ok()?;
    let is_ok = answer.status() == 200;
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    is_ok.then(|| String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn what_is_installed_serves_sessions_in_pods_and_they_go_on_while_it_is_started_anew() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let installed = Installed::new(cluster).await;
    installed.has_what_it_needs(cluster);
    installed.serves();
    let words = [
        "exec", "dwell-0", "--", "dwell", "keys", "create", "--user", "ada",
    ];
    let key = installed.kubectl(&words, "").trim().to_owned();

    let forwarded = Forwarded::by(&installed);
    let api = forwarded.api(&key);
    let mut body = on("L4", web("echo hello > index.html"));
    body["image"] = json!(BUSYBOX);
    let id = api.create_with(body).await;
    let session = api.running(&id).await;
    let url = session["url"].as_str().unwrap();
    assert!(url.contains(".dwell.localhost:8080"), "{url}");
    assert_eq!(visit(url).await.as_deref(), Some("hello\n"));
    let pod = installed.pod(&id);

    drop(forwarded);
    installed.kubectl(&["rollout", "restart", "statefulset/dwell"], "");
    installed.serves();
    let forwarded = Forwarded::by(&installed);
    let page = until("the app", async || visit(url).await).await;
    assert_eq!(page, "hello\n");
    assert_eq!(installed.pod(&id), pod);
    let ended = forwarded.api(&key).stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
}

#[tokio::test]
async fn what_is_installed_has_rights_on_pods_of_its_own_namespace_alone() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let installed = Installed::new(cluster).await;
    let [rule] = &installed.rules(&installed.namespace.name)[..] else {
        panic!("one rule")
    };
    assert_eq!(rule["apiGroups"], json!([""]));
    assert_eq!(rule["resources"], json!(["pods"]));
    let verbs = rule["verbs"].as_array().unwrap().iter();
    let verbs: BTreeSet<_> = verbs.map(|verb| verb.as_str().unwrap()).collect();
    let wanted = BTreeSet::from(["create", "delete", "get", "list", "watch"]);
    assert_eq!(verbs, wanted);
    assert_eq!(installed.rules("default"), Vec::<Value>::new());
}
