//! All Pods of ours, kept as the API server tells of them.
//!
//! A watch that breaks is begun anew and lists all Pods again; until it has, nothing is
//! said of them. A Pod that was just created is known before the watch tells of it.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dwell_core::id::SessionId;
use dwell_core::job::{JobId, JobState, JobStatus, Jobs};
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::status::{session_of, status};
use super::with_causes;

/// All Pods are listed anew this often, whatever was told meanwhile.
const RESYNC_EVERY: Duration = Duration::from_mins(10);
/// The first pause after a watch that broke; each next one is twice as long …
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A Pod that was created is told of within this.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// What is known of Pods. It is kept as long as this lives.
pub(super) struct Pods {
    known: Arc<Known>,
    watching: AbortHandle,
}

#[derive(Default)]
struct Known {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Why it is not known how things stand; at first nobody has been asked.
    trouble: Option<String>,
    is_complete: bool,
    pods: HashMap<JobId, Entry>,
    /// What comes of a list, until it is complete.
    listed: HashMap<JobId, Entry>,
}

#[derive(Clone)]
struct Entry {
    session: SessionId,
    name: String,
    status: JobStatus,
    /// When it was created by us, until the watch tells of it.
    created_at: Option<Instant>,
    /// Since when it was seen to have ended, if nobody has removed it yet.
    ended_at: Option<Instant>,
}

/// A Pod that has ended.
pub(super) struct EndedPod {
    pub name: String,
    pub id: JobId,
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Pods {
    /// Watch those with these labels.
    pub(super) fn watch(api: Api<Pod>, labels: &str) -> Self {
        let known = Arc::new(Known::default());
        let config = watcher::Config::default().labels(labels);
        let kept = Arc::clone(&known);
        let watching = tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                // It would go on after an error, and not say when it does.
                let events = watcher(api.clone(), config.clone());
                match timeout(RESYNC_EVERY, kept.follow(events)).await {
                    Err(_) => pause = FIRST_PAUSE,
                    Ok(()) => {
                        sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
        });
        Self {
            known,
            watching: watching.abort_handle(),
        }
    }

    /// A Pod was created, and this is what it is.
    pub(super) fn created(&self, session: SessionId, name: &str, status: JobStatus) {
        let mut state = self.known.state();
        state.pods.entry(status.id.clone()).or_insert(Entry {
            session,
            name: name.to_owned(),
            status,
            created_at: Some(Instant::now()),
            ended_at: None,
        });
    }

    /// All that there are.
    pub(super) fn jobs(&self) -> Result<Jobs, String> {
        let mut state = self.known.state();
        if !state.is_complete {
            let why = state.trouble.clone();
            return Err(why.unwrap_or_else(|| "its Pods are not listed yet".to_owned()));
        }
        state
            .pods
            .retain(|_, pod| pod.created_at.is_none_or(|at| at.elapsed() < TOLD_WITHIN));
        let jobs = state
            .pods
            .values()
            .map(|pod| (pod.session, pod.status.clone()));
        Ok(Jobs(jobs.collect()))
    }

    /// Those that have been over for longer than this.
    pub(super) fn ended_for(&self, span: Duration) -> Vec<EndedPod> {
        let state = self.known.state();
        let is_old = |pod: &Entry| pod.ended_at.is_some_and(|at| at.elapsed() > span);
        let ended = state.pods.iter().filter(|(_, pod)| is_old(pod));
        ended
            .map(|(id, pod)| EndedPod {
                name: pod.name.clone(),
                id: id.clone(),
            })
            .collect()
    }

    /// Until something is told of any.
    pub(super) async fn changed(&self) {
        self.known.changed.notified().await;
    }
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take in what is told until it is told no more.
    async fn follow(&self, events: impl Stream<Item = Result<Event<Pod>, watcher::Error>>) {
        let mut events = pin!(events);
        loop {
            match events.next().await {
                Some(Ok(event)) => self.take(event),
                told => {
                    let mut state = self.state();
                    state.is_complete = false;
                    let error = told.and_then(Result::err);
                    state.trouble = error.map(|error| with_causes(&error));
                    return;
                }
            }
        }
    }

    fn take(&self, event: Event<Pod>) {
        let mut state = self.state();
        match event {
            Event::Init => state.listed.clear(),
            Event::InitApply(pod) => {
                if let Some((id, entry)) = entry(&pod, state.pods.get(&id_of(&pod))) {
                    state.listed.insert(id, entry);
                }
            }
            Event::InitDone => {
                let mut listed = std::mem::take(&mut state.listed);
                // Created while it was listed.
                let new = state
                    .pods
                    .drain()
                    .filter(|(_, pod)| pod.created_at.is_some());
                for (id, pod) in new {
                    listed.entry(id).or_insert(pod);
                }
                state.pods = listed;
                state.is_complete = true;
                state.trouble = None;
            }
            Event::Apply(pod) => {
                if let Some((id, entry)) = entry(&pod, state.pods.get(&id_of(&pod))) {
                    state.pods.insert(id, entry);
                }
            }
            Event::Delete(pod) => {
                state.pods.remove(&id_of(&pod));
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

fn id_of(pod: &Pod) -> JobId {
    JobId(pod.metadata.uid.clone().unwrap_or_default())
}

/// `before` is what was known of it.
fn entry(pod: &Pod, before: Option<&Entry>) -> Option<(JobId, Entry)> {
    let status = status(pod);
    let ended_at = before.and_then(|before| before.ended_at);
    let is_left = status.state == JobState::Ended && pod.metadata.deletion_timestamp.is_none();
    let ended_at = is_left.then(|| ended_at.unwrap_or_else(Instant::now));
    let entry = Entry {
        session: session_of(pod)?,
        name: pod.metadata.name.clone()?,
        status,
        created_at: None,
        ended_at,
    };
    Some((id_of(pod), entry))
}
