//! What there is of each GPU type, as far as we may see: who has rights on Pods of one
//! namespace alone sees who waits there, and who may list nodes and all Pods sees the rest.

use std::collections::BTreeMap;

use dwell_core::gpu::GpuType;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceRequirements};
use kube::api::{Api, ListParams, ObjectList};
use serde::de::DeserializeOwned;

use super::pod::GpuWord;
use super::with_causes;
use crate::launcher::cluster::Capacity;

const FORBIDDEN: u16 = 403;

/// What there is of each type, by the engine's words for them; `ours` are the Pods that we
/// have rights on.
pub(super) async fn capacity(
    ours: &Api<Pod>,
    words: &BTreeMap<GpuType, String>,
) -> Result<BTreeMap<GpuType, Capacity>, String> {
    let client = ours.clone().into_client();
    let open = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::all(client));
    let all = ListParams::default();
    let (nodes, pods) = tokio::join!(listed(&nodes, &all), listed(&pods, &open));
    let (nodes, pods) = match (nodes?, pods?) {
        (Some(nodes), Some(pods)) => (Some(nodes.items), pods.items),
        _ => {
            let pods = ours.list(&open).await;
            (None, pods.map_err(|error| with_causes(&error))?.items)
        }
    };
    let of = |word: &str| of(&GpuWord::of(word), nodes.as_deref(), &pods);
    let capacities = words.iter().map(|(gpu, word)| (gpu.clone(), of(word)));
    Ok(capacities.collect())
}

/// All of them, if we may see them.
async fn listed<K>(api: &Api<K>, which: &ListParams) -> Result<Option<ObjectList<K>>, String>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.list(which).await {
        Ok(list) => Ok(Some(list)),
        Err(kube::Error::Api(status)) if status.code == FORBIDDEN => Ok(None),
        Err(error) => Err(with_causes(&error)),
    }
}

/// Of GPUs that have this word, on these nodes, if they are known.
fn of(word: &GpuWord<'_>, nodes: Option<&[Node]>, pods: &[Pod]) -> Capacity {
    let Some(resource) = word.resource else {
        return Capacity::default();
    };
    let waits = |pod: &&Pod| has_no_node(pod) && asks_for(pod, word) && wanted(pod, resource) > 0;
    let waiting = u32::try_from(pods.iter().filter(waits).count()).ok();
    let Some(nodes) = nodes else {
        return Capacity {
            waiting,
            ..Capacity::default()
        };
    };
    let (mut total, mut free) = (0, 0_u32);
    for node in nodes
        .iter()
        .filter(|node| is_up(node) && is_meant(node, word))
    {
        let name = node.metadata.name.as_deref();
        let is_there = |pod: &&Pod| name.is_some() && node_of(pod) == name;
        let used: u32 = pods
            .iter()
            .filter(is_there)
            .map(|pod| wanted(pod, resource))
            .sum();
        let status = node.status.as_ref();
        let there = status.and_then(|it| it.allocatable.as_ref()?.get(resource));
        let there: u32 = there.and_then(|it| it.0.parse().ok()).unwrap_or(0);
        total += there;
        free += there.saturating_sub(used);
    }
    Capacity {
        total: Some(total),
        free: Some(free),
        waiting,
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn has_no_node(pod: &Pod) -> bool {
    node_of(pod).is_none()
}

/// Does it say that it wants such a node?
fn asks_for(pod: &Pod, word: &GpuWord<'_>) -> bool {
    let selector = pod.spec.as_ref().and_then(|it| it.node_selector.as_ref());
    has_all(selector, word)
}

fn is_meant(node: &Node, word: &GpuWord<'_>) -> bool {
    has_all(node.metadata.labels.as_ref(), word)
}

fn has_all(labels: Option<&BTreeMap<String, String>>, word: &GpuWord<'_>) -> bool {
    word.selector.iter().all(|(label, value)| {
        labels.and_then(|it| it.get(label)).map(String::as_str) == value.as_str()
    })
}

/// May Pods be put there?
fn is_up(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|it| it.conditions.as_ref());
    let is_ready =
        |it: &k8s_openapi::api::core::v1::NodeCondition| it.type_ == "Ready" && it.status == "True";
    let is_closed = node.spec.as_ref().and_then(|it| it.unschedulable);
    conditions.is_some_and(|all| all.iter().any(is_ready)) && is_closed != Some(true)
}

/// So many of them a Pod has while it is open.
fn wanted(pod: &Pod, resource: &str) -> u32 {
    let Some(spec) = &pod.spec else { return 0 };
    let of = |resources: &Option<ResourceRequirements>| -> u32 {
        let limits = resources.as_ref().and_then(|it| it.limits.as_ref());
        let quantity = limits.and_then(|it| it.get(resource));
        quantity.and_then(|it| it.0.parse().ok()).unwrap_or(0)
    };
    let together: u32 = spec.containers.iter().map(|it| of(&it.resources)).sum();
    // They run one after the other, before.
    let first = spec.init_containers.iter().flatten();
    let first = first.map(|it| of(&it.resources)).max();
    together.max(first.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const WORD: &str = "nvidia.com/gpu, product=L4";

    fn node(name: &str, product: &str, ready: &str, closed: bool) -> Node {
        let node = json!({
            "metadata": {"name": name, "labels": {"product": product}},
            "spec": {"unschedulable": closed},
            "status": {
                "allocatable": {"nvidia.com/gpu": "4", "cpu": "8"},
                "conditions": [{"type": "DiskPressure", "status": "False"},
                               {"type": "Ready", "status": ready}],
            },
        });
        serde_json::from_value(node).unwrap()
    }

    fn pod(node: Option<&str>, gpus: &str, selector: Value) -> Pod {
        let limits = json!({"limits": {"nvidia.com/gpu": gpus}});
        let pod = json!({"spec": {
            "nodeName": node, "nodeSelector": selector,
            "initContainers": [{"name": "first", "resources": {"limits": {"cpu": "1"}}}],
            "containers": [{"name": "app", "resources": limits}, {"name": "beside"}],
        }});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn what_nodes_have_is_free_unless_a_pod_has_it_and_who_waits_is_counted() {
        let nodes = [
            node("n1", "L4", "True", false),
            node("n2", "L4", "True", false),
            node("n3", "A100", "True", false),
            node("n4", "L4", "Unknown", false),
            node("n5", "L4", "True", true),
        ];
        let pods = [
            pod(Some("n1"), "3", json!({})),
            pod(Some("n3"), "1", json!({})),
            pod(Some("n4"), "4", json!({})),
            pod(None, "1", json!({"product": "L4", "zone": "a"})),
            pod(None, "1", json!({"product": "A100"})),
            pod(None, "0", json!({"product": "L4"})),
        ];
        let told = Capacity {
            total: Some(8),
            free: Some(5),
            waiting: Some(1),
        };
        assert_eq!(of(&GpuWord::of(WORD), Some(&nodes), &pods), told);
        let untold = Capacity {
            waiting: Some(1),
            ..Capacity::default()
        };
        assert_eq!(of(&GpuWord::of(WORD), None, &pods), untold);
        let nothing = of(&GpuWord::of("none"), Some(&nodes), &pods);
        assert_eq!(nothing, Capacity::default());
    }
}
