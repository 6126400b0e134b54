//! What a Pod's status means to its session, in Kubernetes' own words.

use dwell_core::id::SessionId;
use dwell_core::job::{JobId, JobState, JobStatus};
use dwell_core::time::Millis;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition, PodStatus};

use super::pod::{APP, SESSION};
use crate::launcher::handout;

/// Why a container waits that will go on waiting.
const STUCK: [&str; 8] = [
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// So much of one of Kubernetes' messages is kept.
const MESSAGE_CHARS: usize = 300;

/// The session that a Pod is of.
pub(super) fn session_of(pod: &Pod) -> Option<SessionId> {
    pod.metadata.labels.as_ref()?.get(SESSION)?.parse().ok()
}

/// What a Pod is by its status.
pub(super) fn status(pod: &Pod) -> JobStatus {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let containers = || {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    };
    let is_going = pod.metadata.deletion_timestamp.is_some();
    let (state, detail) = match phase {
        "Succeeded" | "Failed" => {
            let why = with_message(status.reason.as_deref(), status.message.as_deref())
                .or_else(|| disruption(&status))
                .or_else(|| containers().find_map(ended));
            (JobState::Ended, why)
        }
        // What else the configuration put into the Pod may run on.
        "Running" if app_is_over(&status) => (JobState::Ended, containers().find_map(ended)),
        // Its containers may run on a node that is not heard of.
        _ if is_going => {
            let why = disruption(&status).map(|why| format!(", {why}"));
            let why = why.unwrap_or_default();
            (JobState::Running, Some(format!("Terminating{why}")))
        }
        "Running" => (JobState::Running, None),
        "Pending" => pending(pod, containers()),
        _ => (
            JobState::Unknown,
            with_message(status.reason.as_deref(), status.message.as_deref()),
        ),
    };
    let spec = pod.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.active_deadline_seconds);
    JobStatus {
        id: JobId(pod.metadata.uid.clone().unwrap_or_default()),
        state,
        words: match detail {
            Some(detail) => format!("{phase} ({detail})"),
            None => phase.to_owned(),
        },
        starts_at: None,
        time_limit: seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Millis::from_seconds),
    }
}

fn condition<'a>(status: &'a PodStatus, name: &str) -> Option<&'a PodCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == name)
}

/// Why somebody takes it away. Before 1.26 Kubernetes does not say.
fn disruption(status: &PodStatus) -> Option<String> {
    let why = condition(status, "DisruptionTarget").filter(|it| it.status == "True")?;
    with_message(why.reason.as_deref(), why.message.as_deref())
}

fn app_is_over(status: &PodStatus) -> bool {
    let mut containers = status.container_statuses.iter().flatten();
    let app = containers.find(|container| container.name == APP);
    let state = app.and_then(|app| app.state.as_ref());
    state.is_some_and(|state| state.terminated.is_some())
}

/// One whose containers do not run yet.
fn pending<'a>(
    pod: &Pod,
    mut containers: impl Iterator<Item = &'a ContainerStatus>,
) -> (JobState, Option<String>) {
    let scheduled = pod
        .status
        .as_ref()
        .and_then(|status| condition(status, "PodScheduled"));
    let is_placed = scheduled.is_some_and(|condition| condition.status == "True");
    if !is_placed {
        let why = scheduled.and_then(|condition| {
            with_message(condition.reason.as_deref(), condition.message.as_deref())
        });
        return (JobState::Pending, why);
    }
    let waiting = containers.find_map(|container| container.state.as_ref()?.waiting.as_ref());
    let Some(waiting) = waiting else {
        return (JobState::Preparing, None);
    };
    let is_stuck = waiting
        .reason
        .as_deref()
        .is_some_and(|reason| STUCK.contains(&reason));
    let state = if is_stuck {
        JobState::Stuck
    } else {
        JobState::Preparing
    };
    let why = with_message(waiting.reason.as_deref(), waiting.message.as_deref());
    (state, why)
}

/// How a container ended that did not end well.
fn ended(container: &ContainerStatus) -> Option<String> {
    let ContainerState { terminated, .. } = container.state.clone()?;
    let terminated = terminated.filter(|it| it.exit_code != 0)?;
    let reason = terminated.reason.unwrap_or_default();
    let code = terminated.exit_code;
    let trouble = handout::trouble(code).filter(|_| container.name == APP);
    Some(match trouble {
        Some(trouble) => format!("{reason}, exit status {code}: {trouble}"),
        None => format!("{reason}, exit status {code}"),
    })
}

fn with_message(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    let message = message.map(str::trim).filter(|message| !message.is_empty());
    let message = message.map(|it| it.chars().take(MESSAGE_CHARS).collect::<String>());
    match (reason, message) {
        (None, message) => message,
        (Some(reason), None) => Some(reason.to_owned()),
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(status: Value) -> (JobState, String) {
        let pod = json!({"metadata": {"uid": "u"}, "spec": {"containers": []}, "status": status});
        let status = super::status(&serde_json::from_value(pod).unwrap());
        (status.state, status.words)
    }

    fn waiting(reason: &str, message: &str) -> Value {
        let state = json!({"waiting": {"reason": reason, "message": message}});
        json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [container(state)],
        })
    }

    fn container(state: Value) -> Value {
        json!({"name": APP, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
               "state": state})
    }

    #[test]
    fn each_way_of_waiting_is_told_from_the_others() {
        assert_eq!(of(json!({})), (JobState::Pending, "Pending".into()));
        let unschedulable = json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                            "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."}],
        });
        let words = "Pending (Unschedulable: 0/2 nodes are available: 2 Insufficient \
                     nvidia.com/gpu.)";
        assert_eq!(of(unschedulable), (JobState::Pending, words.into()));
        let creating = of(waiting("ContainerCreating", ""));
        assert_eq!(
            creating,
            (JobState::Preparing, "Pending (ContainerCreating)".into())
        );
        let stuck = of(waiting(
            "ImagePullBackOff",
            "Back-off pulling image \"nope\"",
        ));
        let words = "Pending (ImagePullBackOff: Back-off pulling image \"nope\")";
        assert_eq!(stuck, (JobState::Stuck, words.into()));
    }

    #[test]
    fn how_a_pod_ended_is_said_and_what_is_not_known_is_not_taken_for_an_end() {
        let evicted = json!({"phase": "Failed", "reason": "Evicted",
                             "message": "The node was low on resource: memory."});
        let words = "Failed (Evicted: The node was low on resource: memory.)";
        assert_eq!(of(evicted), (JobState::Ended, words.into()));
        let exited = |code: i32, reason: &str| {
            let state = json!({"terminated": {"exitCode": code, "reason": reason}});
            of(json!({"phase": "Failed", "containerStatuses": [container(state)]}))
        };
        let words = "Failed (OOMKilled, exit status 137)";
        assert_eq!(exited(137, "OOMKilled"), (JobState::Ended, words.into()));
        assert!(exited(82, "Error").1.contains("could not be fetched"));
        assert_eq!(of(json!({"phase": "Succeeded"})).0, JobState::Ended);
        let over = container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}));
        let mut beside = container(json!({"running": {}}));
        beside["name"] = json!("sidecar");
        let runs_on = json!({"phase": "Running", "containerStatuses": [beside, over]});
        assert_eq!(of(runs_on), (JobState::Ended, "Running".into()));
        // As of 1.26.
        let disrupted = json!({"type": "DisruptionTarget", "status": "True",
                               "reason": "PreemptionByScheduler",
                               "message": "default-scheduler: preempting to accommodate a higher \
                                           priority pod"});
        let running = json!({"phase": "Running", "conditions": [disrupted]});
        let pod = json!({"metadata": {"deletionTimestamp": "2026-11-27T08:00:00Z"},
                         "spec": {"containers": []}, "status": running});
        let going = super::status(&serde_json::from_value(pod).unwrap());
        let words = "Running (Terminating, PreemptionByScheduler: default-scheduler: preempting to \
                     accommodate a higher priority pod)";
        assert_eq!((going.state, &*going.words), (JobState::Running, words));
        let odd = of(json!({"phase": "Dreaming", "reason": "NodeLost"}));
        assert_eq!(odd, (JobState::Unknown, "Dreaming (NodeLost)".into()));
    }
}
