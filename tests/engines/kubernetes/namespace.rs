//! A namespace of a test's own, gone with all that is in it when the test ends.

use std::path::PathBuf;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace as Object, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::Client;
use kube::api::{Api, DeleteParams, EvictParams, ListParams, LogParams, PostParams};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cluster::{BUSYBOX, Cluster, PRODUCT, client, until};

pub struct Namespace<'a> {
    pub name: String,
    cluster: &'a Cluster,
    admin: Client,
}

impl<'a> Namespace<'a> {
    pub async fn new(cluster: &'a Cluster) -> Self {
        let admin = cluster.admin().await;
        let name = format!("test-{}", uuid::Uuid::new_v4());
        let object = of(json!({"metadata": {"name": name}}));
        let namespaces: Api<Object> = Api::all(admin.clone());
        namespaces
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
        let namespace = Self {
            name,
            cluster,
            admin,
        };
        // No pod is let in without.
        let accounts: Api<ServiceAccount> = namespace.api();
        until("the default account", async || {
            accounts.get_opt("default").await.unwrap()
        })
        .await;
        namespace
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.admin.clone(), &self.name)
    }

    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// A file by which one is an account that may do what these rules of a Role say.
    pub async fn account(&self, name: &str, rules: Value) -> PathBuf {
        let how = PostParams::default();
        let metadata = json!({"name": name});
        let accounts: Api<ServiceAccount> = self.api();
        let account = of(json!({"metadata": metadata}));
        accounts.create(&how, &account).await.unwrap();
        let roles: Api<Role> = self.api();
        let role = of(json!({"metadata": metadata, "rules": rules}));
        roles.create(&how, &role).await.unwrap();
        let bindings: Api<RoleBinding> = self.api();
        let binding = of(json!({
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.name}],
        }));
        bindings.create(&how, &binding).await.unwrap();
        let request = TokenRequest {
            spec: TokenRequestSpec::default(),
            ..TokenRequest::default()
        };
        let answer = accounts.create_token_request(name, &how, &request).await;
        let token = answer.unwrap().status.unwrap().token;
        let user = format!("{}-{name}", self.name);
        self.cluster.kubeconfig(&user, &token, &self.name)
    }

    /// Let an account do in all namespaces what these rules say.
    pub async fn may_everywhere(&self, account: &str, rules: Value) {
        let how = PostParams::default();
        let name = format!("{}-{account}", self.name);
        let metadata = json!({"name": name});
        let roles: Api<ClusterRole> = Api::all(self.admin.clone());
        let role = of(json!({"metadata": metadata, "rules": rules}));
        roles.create(&how, &role).await.unwrap();
        let bindings: Api<ClusterRoleBinding> = Api::all(self.admin.clone());
        let group = "rbac.authorization.k8s.io";
        let binding = of(json!({
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": self.name}],
        }));
        bindings.create(&how, &binding).await.unwrap();
    }

    /// A class of pods that others give way to; its name.
    pub async fn more_urgent(&self) -> String {
        let classes: Api<PriorityClass> = Api::all(self.admin.clone());
        let name = format!("{}-urgent", self.name);
        let class = of(json!({"metadata": {"name": name}, "value": 1_000}));
        classes
            .create(&PostParams::default(), &class)
            .await
            .unwrap();
        name
    }

    /// Create a pod that is not started again, of which `spec` says the rest.
    pub async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                // It would have to wait for it.
                "automountServiceAccountToken": false,
            },
        });
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        let created = self.pods().create(&PostParams::default(), &of(pod)).await;
        created.unwrap()
    }

    pub async fn delete(&self, pod: &str) {
        let deleted = self.pods().delete(pod, &DeleteParams::default()).await;
        deleted.unwrap();
    }

    /// Without waiting for its containers to end.
    pub async fn delete_at_once(&self, pod: &str) {
        let at_once = DeleteParams::default().grace_period(0);
        self.pods().delete(pod, &at_once).await.unwrap();
    }

    /// What somebody who drains a node does.
    pub async fn evict(&self, pod: &str) {
        let evicted = self.pods().evict(pod, &EvictParams::default()).await;
        evicted.unwrap();
    }

    /// What its only container wrote.
    pub async fn log(&self, pod: &str) -> String {
        let log = self.pods().logs(pod, &LogParams::default()).await;
        log.unwrap()
    }

    /// Look at a pod until it is as wanted.
    pub async fn until(&self, pod: &str, wanted: impl Fn(&Pod) -> bool) -> Pod {
        let pods = self.pods();
        until(pod, async || pods.get(pod).await.ok().filter(&wanted)).await
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let (name, kubeconfig) = (self.name.clone(), self.cluster.admin_kubeconfig());
        // A test has a runtime of its own, which this must not wait in.
        let gone = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let admin = client(&kubeconfig).await;
                let at_once = DeleteParams::default().grace_period(0);
                let pods: Api<Pod> = Api::namespaced(admin.clone(), &name);
                let all = ListParams::default();
                let _ = pods.delete_collection(&at_once, &all).await;
                let namespaces: Api<Object> = Api::all(admin);
                let _ = namespaces.delete(&name, &at_once).await;
            });
        });
        let _ = gone.join();
    }
}

/// A container of busybox that does this.
pub fn app(command: &str) -> Value {
    json!({"name": "app", "image": BUSYBOX, "command": ["sh", "-c", command]})
}

/// The same with a GPU.
pub fn app_with_gpu(command: &str) -> Value {
    let mut app = app(command);
    app["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
    app
}

/// The nodes with GPUs of this type, the way a pod says it.
pub fn on(product: &str) -> Value {
    json!({PRODUCT: product})
}

pub fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// What this JSON says.
pub fn of<K: for<'de> Deserialize<'de>>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}
