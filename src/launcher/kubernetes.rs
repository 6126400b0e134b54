//! Kubernetes: a Pod a session, in one namespace, by rights on Pods alone. Who may see nodes
//! besides is told what they have.
//!
//! A Pod's name is its session's, so that there is never a second one.

mod capacity;
mod pod;
mod status;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use dwell_core::gpu::GpuType;
use dwell_core::id::SessionId;
use dwell_core::job::{JobId, JobStatus, Jobs};
use dwell_core::time::Millis;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::cluster::{Capacity, Cluster, ClusterSettings, Order, SubmitError, job_name};
use pod::{INSTALLATION, pod};
use watch::Pods;

/// What the API server says of a Pod that is there, or not.
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;

/// What it may say otherwise later: a token that has run out, a namespace that is not there
/// yet, a Pod of the name that is about to go, too many requests.
const PASSING: [u16; 4] = [401, NOT_FOUND, CONFLICT, 429];

/// What the configuration says of a Kubernetes cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct KubernetesSettings {
    /// The file that says where the API server is and who asks. If none, `KUBECONFIG`, the
    /// user's own, or the Pod's that the server runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Which of its contexts.
    pub context: Option<String>,
    /// Where the Pods are; the context's if none.
    pub namespace: Option<String>,
    /// The image of sessions whose machine names none.
    pub image: Option<String>,
    /// An image with the agent as `/dwell-agent`, put into each Pod by an init container.
    /// If none, the app's image must have a shell to fetch it from the server with …
    pub agent_image: Option<String>,
    /// … or have it there.
    pub agent: Option<String>,
    /// The user and the group that the app runs as.
    pub run_as_user: u32,
    /// Thousandths of a CPU for each Pod.
    pub cpu_millis: Option<u64>,
    /// Memory for each Pod, in MiB; what the app may use, if that is limited, if none.
    pub memory_mib: Option<u64>,
    /// How long a Pod that is over is left to be looked at.
    pub kept_for: Millis,
    /// What Pods have besides, as in a manifest.
    pub pod: Value,
}

/// A Kubernetes cluster.
pub struct Kubernetes {
    settings: KubernetesSettings,
    gpus: BTreeMap<GpuType, String>,
    installation: String,
    /// Made when it is first needed: by then the API server may be there.
    connection: OnceCell<Connection>,
}

struct Connection {
    api: Api<Pod>,
    pods: Pods,
}

impl Kubernetes {
    /// The cluster that these settings name.
    #[must_use]
    pub fn new(
        settings: KubernetesSettings,
        cluster: &ClusterSettings,
        installation: &str,
    ) -> Self {
        Self {
            settings,
            gpus: cluster.gpus.clone(),
            installation: installation.to_owned(),
            connection: OnceCell::new(),
        }
    }

    async fn connection(&self) -> Result<&Connection, String> {
        self.connection.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Connection, String> {
        let settings = &self.settings;
        let options = KubeConfigOptions {
            context: settings.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &settings.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| with_causes(&error))?;
                let config = kube::Config::from_custom_kubeconfig(file, &options).await;
                config.map_err(|error| with_causes(&error))?
            }
            None if settings.context.is_some() => {
                let config = kube::Config::from_kubeconfig(&options).await;
                config.map_err(|error| with_causes(&error))?
            }
            None => kube::Config::infer()
                .await
                .map_err(|error| with_causes(&error))?,
        };
        let namespace = settings.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| with_causes(&error))?;
        let api: Api<Pod> = Api::namespaced(client, &namespace);
        let labels = format!("{INSTALLATION}={}", self.installation);
        let pods = Pods::watch(api.clone(), &labels);
        Ok(Connection { api, pods })
    }

    /// Remove those that are over and that everybody has had time to look at.
    fn tidy_up(&self, connection: &Connection) {
        for ended in connection.pods.ended_for(self.settings.kept_for.into()) {
            let api = connection.api.clone();
            tokio::spawn(async move {
                if let Err(why) = delete(&api, &ended.name, &ended.id).await {
                    tracing::warn!("the Pod {} could not be removed: {why}", ended.name);
                }
            });
        }
    }
}

#[async_trait]
impl Cluster for Kubernetes {
    async fn submit(&self, order: &Order) -> Result<JobStatus, SubmitError> {
        let word = self
            .gpus
            .get(&order.gpu_type)
            .map_or("none", String::as_str);
        let pod = pod(&self.settings, &self.installation, order, word);
        let pod = pod.map_err(SubmitError::Refused)?;
        let pod: Pod = serde_json::from_value(pod).map_err(|error| {
            SubmitError::Refused(format!(
                "What the [[launcher]] adds to Pods is not understood: {error}"
            ))
        })?;
        let connection = self.connection().await.map_err(SubmitError::Unclear)?;
        let created = match connection.api.create(&PostParams::default(), &pod).await {
            Err(kube::Error::Api(status)) if status.code == CONFLICT => {
                connection.api.get(&order.name).await
            }
            created => created,
        };
        let created = created.map_err(|error| {
            // It would say so again.
            if let kube::Error::Api(status) = &error
                && (400..500).contains(&status.code)
                && !PASSING.contains(&status.code)
            {
                return SubmitError::Refused(format!("Kubernetes refuses: {}", status.message));
            }
            SubmitError::Unclear(with_causes(&error))
        })?;
        let status = status::status(&created);
        connection
            .pods
            .created(order.session, &order.name, status.clone());
        Ok(status)
    }

    async fn jobs(&self) -> Result<Jobs, String> {
        let connection = self.connection().await?;
        self.tidy_up(connection);
        connection.pods.jobs()
    }

    async fn changed(&self) {
        match self.connection.get() {
            Some(connection) => connection.pods.changed().await,
            None => std::future::pending().await,
        }
    }

    async fn cancel(&self, session: SessionId, job: &JobId) -> Result<(), String> {
        let connection = self.connection().await?;
        let name = job_name(&self.installation, session);
        delete(&connection.api, &name, job).await
    }

    async fn limit(&self, _: SessionId, _: &JobId, _: Millis) -> Result<(), String> {
        // `activeDeadlineSeconds` can be lowered, and never raised.
        Err("Kubernetes moves no time limits".to_owned())
    }

    async fn capacity(&self) -> Result<BTreeMap<GpuType, Capacity>, String> {
        let connection = self.connection().await?;
        capacity::capacity(&connection.api, &self.gpus).await
    }
}

/// Delete this Pod and no other of the name.
async fn delete(api: &Api<Pod>, name: &str, id: &JobId) -> Result<(), String> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(id.0.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if [NOT_FOUND, CONFLICT].contains(&status.code) => Ok(()),
        Err(error) => Err(with_causes(&error)),
    }
}

/// An error, and what it comes from where it does not say so itself.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !sentence.contains(&more) {
            sentence = format!("{sentence}: {more}");
        }
        cause = error.source();
    }
    sentence
}
