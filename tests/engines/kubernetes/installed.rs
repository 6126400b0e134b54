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
use super::stories::web;
use crate::harness::{Api, DWELL, here};
use crate::image;
use crate::postgres::Cluster as Postgres;
use crate::seen::log;

/// The port of the Service, which is the server's too.
const PORT: u16 = 8080;

const BASE: &str = "base";
const SEVERAL: &str = "several-servers";

/// Where the config says what Pods have besides.
const POD: &str = "[launcher.pod.spec]";

/// One of the kustomizations in a namespace of a test's own.
struct Installed<'a> {
    namespace: Namespace<'a>,
    kubeconfig: PathBuf,
    kustomization: &'static str,
    /// The copy that is installed, and whatever kubectl keeps.
    files: TempDir,
    volumes: TempDir,
}

impl<'a> Installed<'a> {
    async fn new(cluster: &'a Cluster, kustomization: &'static str) -> Self {
        let namespace = Namespace::new(cluster).await;
        let kubeconfig = cluster.kubeconfig(&namespace.name, "admin", &namespace.name);
        let installed = Self {
            kubeconfig,
            kustomization,
            files: tempfile::tempdir().unwrap(),
            volumes: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            namespace,
        };
        installed.copy();
        installed
    }

    /// The files, in another namespace, and with what this cluster has not: names of
    /// Services, for which nodes' files are in the place of DNS, and a way to the address of
    /// the API's own Service.
    fn copy(&self) {
        for name in ["base", self.kustomization] {
            std::fs::create_dir_all(self.files.path().join(name)).unwrap();
            for file in std::fs::read_dir(here("deploy/kubernetes").join(name)).unwrap() {
                let file = file.unwrap();
                let copy = self.files.path().join(name).join(file.file_name());
                std::fs::copy(file.path(), copy).unwrap();
            }
        }
        self.edit(self.own("kustomization.yaml"), |kustomization| {
            kustomization["namespace"] = json!(self.namespace.name);
            // What Debian's kubectl calls them.
            if self.kustomization != BASE {
                let base = kustomization["resources"].as_array_mut().unwrap().remove(0);
                kustomization["bases"] = json!([base]);
                let patches = kustomization.as_object_mut().unwrap().remove("patches");
                kustomization["patchesStrategicMerge"] = json!([patches.unwrap()[0]["path"]]);
            }
        });
        self.edit("base/statefulset.yaml", |set| {
            let env = &mut set["spec"]["template"]["spec"]["containers"][0]["env"];
            for (part, value) in [("HOST", HOST), ("PORT", "6443")] {
                let name = format!("KUBERNETES_SERVICE_{part}");
                let variables = env.as_array_mut().unwrap();
                variables.push(json!({"name": name, "value": value}));
            }
        });
        let config = self.own("dwell.toml");
        let names = format!("hostAliases = [{{ ip = \"{HOST}\", hostnames = [\"dwell\"] }}]");
        let text = self.text(&config).replace(POD, &format!("{POD}\n{names}"));
        std::fs::write(self.files.path().join(config), text).unwrap();
    }

    fn apply(&self) {
        let files = self.own("").display().to_string();
        self.kubectl(&["apply", "-k", &files], "");
    }

    /// A file of the kustomization's own.
    fn own(&self, name: &str) -> PathBuf {
        self.files.path().join(self.kustomization).join(name)
    }

    fn text(&self, file: impl AsRef<Path>) -> String {
        std::fs::read_to_string(self.files.path().join(file)).unwrap()
    }

    fn read(&self, file: impl AsRef<Path>) -> Value {
        serde_saphyr::from_str(&self.text(file)).unwrap()
    }

    fn edit(&self, file: impl AsRef<Path>, change: impl FnOnce(&mut Value)) {
        let mut object = self.read(&file);
        change(&mut object);
        std::fs::write(self.files.path().join(file), object.to_string()).unwrap();
    }

    /// Each node has those that the files name, for there is no registry.
    fn has_images(&self, cluster: &Cluster) {
        let tree = tempfile::tempdir().unwrap();
        copy_without_symbols(&agent(), &tree.path().join("dwell-agent"));
        let config: Value = toml::from_str(&self.text(self.own("dwell.toml"))).unwrap();
        let name = config["launcher"][0]["agent_image"].as_str().unwrap();
        cluster.import(tree.path(), name);

        let image = &self.read("base/kustomization.yaml")["images"][0];
        let part = |key: &str| image[key].as_str().unwrap().to_owned();
        let name = format!("{}:{}", part("newName"), part("newTag"));
        let archive = tree.path().join("server.tar");
        save_server(&name, &archive);
        for node in &cluster.nodes {
            node.import(&archive);
        }
    }

    /// What a provisioner would make for these claims; `access` is how they are used.
    fn has_volumes(&self, cluster: &Cluster, access: &str, claims: &[&str]) {
        for (number, claim) in claims.iter().enumerate() {
            let path = self.volumes.path().join(claim);
            std::fs::create_dir(&path).unwrap();
            let node = &cluster.nodes[number % cluster.nodes.len()].name;
            let there = json!({
                "key": "kubernetes.io/hostname", "operator": "In", "values": [node],
            });
            let place = if access == "ReadWriteMany" {
                // All nodes are this host.
                let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
                std::fs::set_permissions(&path, everybody).unwrap();
                json!({"hostPath": {"path": path}})
            } else {
                json!({
                    "local": {"path": path},
                    "nodeAffinity": {
                        "required": {"nodeSelectorTerms": [{"matchExpressions": [there]}]},
                    },
                })
            };
            let mut volume = json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": format!("{}-{claim}", self.namespace.name)},
                "spec": {
                    "capacity": {"storage": "100Gi"},
                    "accessModes": [access],
                    "claimRef": {"namespace": self.namespace.name, "name": claim},
                },
            });
            let spec = volume["spec"].as_object_mut().unwrap();
            spec.extend(place.as_object().unwrap().clone());
            self.kubectl(&["create", "-f", "-"], &volume.to_string());
        }
    }

    /// Until each server is ready, as of its latest files.
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

    /// A key, by the first server.
    fn key(&self) -> String {
        let words = [
            "exec", "dwell-0", "--", "dwell", "keys", "create", "--user", "ada",
        ];
        self.kubectl(&words, "").trim().to_owned()
    }

    fn address(&self, pod: &str) -> String {
        let address = "jsonpath={.status.podIP}";
        self.kubectl(&["get", "pod", pod, "-o", address], "")
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

/// The Service, or one of its servers, led to this host, where Pods reach it too.
struct Forwarded(Child);

impl Forwarded {
    fn from(what: &str, installed: &Installed<'_>) -> Self {
        let port = PORT.to_string();
        let words = ["port-forward", "--address", HOST, what, &port];
        let mut child = installed.command(&words).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it is led there").unwrap();
        assert!(first.starts_with("Forwarding from"), "{first}");
        // It says something of each connection.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

/// Who has this key, at the server with this address.
fn api(address: &str, key: &str) -> Api {
    Api::new(&format!("http://{address}:{PORT}"), key)
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a session's URL answers to who is led to this address by its name.
async fn visit(address: &str, url: &str) -> Option<String> {
    let name = url.strip_prefix("http://").unwrap();
    let request = Request::get(format!("http://{address}:{PORT}/"))
        .header("host", name.trim_end_matches('/'))
        .body(Empty::<Bytes>::new());
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request.unwrap()).await.ok()?;
    let is_ok = answer.status() == 200;
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    is_ok.then(|| String::from_utf8_lossy(&body).into_owned())
}

/// Serves a page, and has said something.
fn hello() -> Value {
    let mut body = web("L4", "echo said; echo hello > index.html");
    body["image"] = json!(BUSYBOX);
    body
}

#[tokio::test]
async fn what_is_installed_serves_sessions_in_pods_and_they_go_on_while_it_is_started_anew() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let installed = Installed::new(cluster, BASE).await;
    installed.has_images(cluster);
    installed.has_volumes(cluster, "ReadWriteOnce", &["data-dwell-0"]);
    installed.apply();
    installed.serves();
    let key = installed.key();

    let forwarded = Forwarded::from("service/dwell", &installed);
    let ada = api(HOST, &key);
    let id = ada.create_with(hello()).await;
    let session = ada.running(&id).await;
    let url = session["url"].as_str().unwrap();
    assert!(url.contains(".dwell.localhost:8080"), "{url}");
    assert_eq!(visit(HOST, url).await.as_deref(), Some("hello\n"));
    let pod = installed.pod(&id);

    drop(forwarded);
    installed.kubectl(&["rollout", "restart", "statefulset/dwell"], "");
    installed.serves();
    let _forwarded = Forwarded::from("service/dwell", &installed);
    let page = until("the app", async || visit(HOST, url).await).await;
    assert_eq!(page, "hello\n");
    assert_eq!(installed.pod(&id), pod);
    let ended = api(HOST, &key).stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
}

#[tokio::test]
async fn of_several_servers_that_are_installed_any_serves_and_one_may_go() {
    let cluster = cluster().await;
    let _guard = cluster.alone().await;
    let installed = Installed::new(cluster, SEVERAL).await;
    installed.has_images(cluster);
    let data = ["data-dwell-0", "data-dwell-1", "data-dwell-2"];
    installed.has_volumes(cluster, "ReadWriteOnce", &data);
    installed.has_volumes(cluster, "ReadWriteMany", &["dwell-sessions"]);
    let database = reached_from_pods();
    let store = format!("postgres://dwell@{HOST}/{}", database.database());
    let store = format!("--from-literal=DWELL_STORE={store}");
    installed.kubectl(&["create", "secret", "generic", "dwell-store", &store], "");
    installed.apply();
    installed.serves();
    let key = installed.key();
    let addresses = ["dwell-0", "dwell-1", "dwell-2"].map(|pod| installed.address(pod));

    // Another than the one that leads.
    let _forwarded = Forwarded::from("pod/dwell-1", &installed);
    let ada = api(&addresses[2], &key);
    let id = ada.create_with(hello()).await;
    let session = ada.running(&id).await;
    let url = session["url"].as_str().unwrap();
    for address in &addresses {
        let page = until("the app", async || visit(address, url).await).await;
        assert_eq!(page, "hello\n");
    }

    let now = ["delete", "pod", "dwell-0", "--now", "--wait=false"];
    installed.kubectl(&now, "");
    assert_eq!(visit(&addresses[2], url).await.as_deref(), Some("hello\n"));
    let another = until("another leader", async || {
        let answer = ada.post("/session/dynamic", hello()).await;
        (answer.status == 200).then(|| answer.json()["session_id"].as_str().unwrap().to_owned())
    });
    let another = another.await;
    ada.running(&another).await;
    for id in [&id, &another] {
        let ended = ada.stop(id).await;
        assert_eq!(ended["end_reason"], "cancelled", "{ended}");
        let log = log(&ada, id).await;
        assert!(log.contains(&"said".to_owned()), "{log:?}");
    }
}

/// A Postgres that is reached from Pods, without a password.
fn reached_from_pods() -> Postgres {
    let listens = format!("fsync = off\nlisten_addresses = '{HOST}'\n");
    let postgres = Postgres::start_in(&std::env::temp_dir(), &listens);
    let anyone = "local all all trust\nhost all all 10.88.0.0/16 trust\n";
    std::fs::write(postgres.data().join("pg_hba.conf"), anyone).unwrap();
    postgres.program("pg_ctl", &["reload"]);
    postgres
}

#[tokio::test]
async fn what_is_installed_has_rights_on_pods_of_its_own_namespace_alone() {
    let cluster = cluster().await;
    let _guard = cluster.shared().await;
    let installed = Installed::new(cluster, BASE).await;
    installed.apply();
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
