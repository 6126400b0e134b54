//! The Pod that a session runs in.

use dwell_core::job::PREPARED_WITHIN;
use serde_json::{Map, Value, json};

use super::KubernetesSettings;
use crate::agent::job::{ASSIGNMENT, PARENT};
use crate::launcher::cluster::Order;
use crate::launcher::handout::script;

/// The label that says which session a Pod is of.
pub(super) const SESSION: &str = "dwell/session";
/// The label that says whose it is, among several servers that share a namespace.
pub(super) const INSTALLATION: &str = "dwell/installation";
/// The container of the app.
pub(super) const APP: &str = "app";

/// Where the session's files and its agent are in the container.
const PLACE: &str = "/dwell";
/// What Kubernetes gives the agent beyond what it needs itself to end all.
const SPARE_SECONDS: u64 = 10;

/// The Pod for `order` with the GPU that the engine calls `word`.
///
/// # Errors
/// A sentence, when there is no image to run.
pub(super) fn pod(
    settings: &KubernetesSettings,
    installation: &str,
    order: &Order,
    word: &str,
) -> Result<Value, String> {
    let container = order.container.as_ref();
    let image = container.map(|it| &it.image).or(settings.image.as_ref());
    let Some(image) = image else {
        return Err(
            "This machine names no image, and Kubernetes runs nothing else; name one, or set \
             image in the [[launcher]]"
                .to_owned(),
        );
    };
    let GpuWord { resource, selector } = GpuWord::of(word);
    let mut limits = Map::new();
    if let Some(resource) = resource {
        limits.insert(resource.to_owned(), json!("1"));
    }
    if let Some(mib) = settings.memory_mib.or(order.limits.memory_mib) {
        limits.insert("memory".to_owned(), json!(format!("{mib}Mi")));
    }
    if let Some(millis) = settings.cpu_millis {
        limits.insert("cpu".to_owned(), json!(format!("{millis}m")));
    }
    let user = settings.run_as_user;
    let capabilities = container
        .map(|it| it.capabilities.clone())
        .unwrap_or_default();
    let read_only = container.is_some_and(|it| it.read_only);
    let restricted = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"], "add": capabilities},
        "readOnlyRootFilesystem": read_only,
    });
    let mount = json!([{"name": "dwell", "mountPath": PLACE}]);
    let (mut mounts, mut volumes) = (mount.clone(), json!([{"name": "dwell", "emptyDir": {}}]));
    if read_only {
        put_over(&mut mounts, json!([{"name": "tmp", "mountPath": "/tmp"}]));
        put_over(&mut volumes, json!([{"name": "tmp", "emptyDir": {}}]));
    }
    // It is counted from the moment that the Pod has a node: pulls are part of it.
    let seconds = order.time_limit.plus(PREPARED_WITHIN).0.div_ceil(1_000);
    let (command, init) = match &settings.agent_image {
        // The image need not have anything but the app then.
        Some(agent_image) => (
            json!([format!("{PLACE}/dwell-agent"), "agent", "job"]),
            json!([{
                "name": "agent",
                "image": agent_image,
                "command": ["/dwell-agent", "agent", "install", PLACE],
                "securityContext": restricted,
                "volumeMounts": mount,
            }]),
        ),
        None => (
            json!(["sh", "-c", script(order, settings.agent.as_deref(), None)]),
            json!([]),
        ),
    };
    let ours = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": order.name,
            "labels": {
                "app.kubernetes.io/managed-by": "dwell",
                INSTALLATION: installation,
                SESSION: order.session.to_string(),
            },
        },
        "spec": {
            // A second run would have the whole of the session's time again.
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds,
            "terminationGracePeriodSeconds": order.grace.0.div_ceil(1_000) + SPARE_SECONDS,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "nodeSelector": selector,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": user,
                "runAsGroup": user,
                "fsGroup": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": init,
            "containers": [{
                "name": APP,
                "image": image,
                "command": command,
                "env": [
                    {"name": ASSIGNMENT, "value": order.assignment},
                    {"name": PARENT, "value": PLACE},
                    {"name": "HOME", "value": PLACE},
                    {"name": "TMPDIR", "value": PLACE},
                ],
                "resources": {"limits": limits},
                "securityContext": restricted,
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    });
    let mut pod = settings.pod.clone();
    put_over(&mut pod, ours);
    Ok(pod)
}

/// The engine's word for a GPU type: a resource, and labels that its nodes have.
pub(super) struct GpuWord<'a> {
    pub resource: Option<&'a str>,
    pub selector: Map<String, Value>,
}

impl<'a> GpuWord<'a> {
    /// `nvidia.com/gpu, nvidia.com/gpu.product=NVIDIA-L4`; `none` asks for no resource.
    pub(super) fn of(word: &'a str) -> Self {
        let mut parts = word.split(',').map(str::trim);
        let resource = parts.next().filter(|resource| *resource != "none");
        let selector = parts
            .filter_map(|part| part.split_once('='))
            .map(|(label, value)| (label.trim().to_owned(), Value::from(value.trim())));
        Self {
            resource,
            selector: selector.collect(),
        }
    }
}

/// Put what we say of a Pod over what the configuration says: its fields stay where we say
/// nothing, and so do its items of lists; of items with a name, ours go over those of the
/// same.
fn put_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                put_over(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(below), Value::Array(above)) => {
            for value in above {
                let name = value.get("name").cloned();
                let same = below
                    .iter_mut()
                    .find(|it| name.is_some() && it.get("name").cloned() == name);
                match same {
                    Some(same) => put_over(same, value),
                    None => below.push(value),
                }
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_adds_to_a_pod_stays_and_what_we_need_is_ours() {
        let mut pod = json!({
            "metadata": {"labels": {"team": "vision"}},
            "spec": {
                "restartPolicy": "Always",
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "containers": [{"name": "app", "env": [{"name": "A", "value": "1"}]},
                               {"name": "sidecar", "image": "s"}],
            },
        });
        put_over(
            &mut pod,
            json!({
                "metadata": {"name": "n", "labels": {"dwell/session": "s"}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "app", "image": "i",
                                    "env": [{"name": "B", "value": "2"}]}],
                },
            }),
        );
        let expected = json!({
            "metadata": {"name": "n", "labels": {"team": "vision", "dwell/session": "s"}},
            "spec": {
                "restartPolicy": "Never",
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "containers": [
                    {"name": "app", "image": "i",
                     "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                    {"name": "sidecar", "image": "s"},
                ],
            },
        });
        assert_eq!(pod, expected);
    }

    #[test]
    fn a_gpus_word_is_a_resource_and_the_labels_of_its_nodes() {
        let word = GpuWord::of("nvidia.com/gpu, nvidia.com/gpu.product=NVIDIA-L4");
        assert_eq!(word.resource, Some("nvidia.com/gpu"));
        let selector = json!({"nvidia.com/gpu.product": "NVIDIA-L4"});
        assert_eq!(Value::Object(word.selector), selector);
        assert_eq!(GpuWord::of("none, disk=ssd").resource, None);
    }
}
