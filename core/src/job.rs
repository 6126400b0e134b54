//! Jobs: what the engine of a cluster (Slurm, Kubernetes) runs for a session.
//!
//! An engine has queues, limits and words of its own. What it says is kept in its own
//! words; what follows from it is decided in
//! [`control_plane`](crate::control_plane::ControlPlane::jobs_are).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::gpu::GpuType;
use crate::id::SessionId;
use crate::time::{Millis, Timestamp};

/// So much of what an engine said of one job is kept; the oldest goes first.
const SAID_MAX: usize = 32;

/// How long a job that has a place may fetch what it needs. An engine that counts this to
/// the job's time must be told to give it so much more.
pub const PREPARED_WITHIN: Millis = Millis::from_minutes(30);

/// An estimate that is off by less says the same as before.
const JITTER: Millis = Millis::from_minutes(1);

/// Which launcher, by the name that the configuration gives it: `slurm`, `kubernetes`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LauncherName(pub String);

impl std::fmt::Display for LauncherName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an engine calls a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an engine's word means to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for a place: the engine's queue is the session's.
    Pending,
    /// It has a place, and what it needs is being fetched.
    Preparing,
    /// What it needs cannot be had, with a place or without; its engine tries on.
    Stuck,
    /// It has a place. Its agent calls by itself.
    Running,
    /// Nothing of it is left.
    Ended,
    /// The engine says what we do not know. It may be anything but ended.
    Unknown,
}

/// A job as its engine shows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// What the engine calls it.
    pub id: JobId,
    /// What its words mean.
    pub state: JobState,
    /// The engine's own words: `PENDING (Resources)`.
    pub words: String,
    /// When the engine expects to have a place for it.
    pub starts_at: Option<Timestamp>,
    /// How long the engine lets it run, from its start.
    pub time_limit: Option<Millis>,
}

/// Something that an engine said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When it was heard.
    pub at: Timestamp,
    /// What.
    pub words: String,
}

/// A session's job, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// By which launcher it was had.
    pub launcher: LauncherName,
    /// What the engine calls it.
    pub id: JobId,
    /// What it said last, as it concerns us.
    pub state: JobState,
    /// When the engine expects to have a place for it.
    pub starts_at: Option<Timestamp>,
    /// All that was said, each once: the session's timeline.
    pub said: Vec<Said>,
}

impl Job {
    /// The last of the engine's words.
    #[must_use]
    pub fn words(&self) -> &str {
        self.said.last().map_or("", |said| &said.words)
    }

    /// The same, once its engine said this of it. `before` is what was known.
    pub(crate) fn after(
        before: Option<&Self>,
        launcher: &LauncherName,
        status: &JobStatus,
        now: Timestamp,
    ) -> Self {
        let mut said = before.map_or_else(Vec::new, |before| before.said.clone());
        if said.last().is_none_or(|last| last.words != status.words) {
            said.push(Said {
                at: now,
                words: status.words.clone(),
            });
        }
        let surplus = said.len().saturating_sub(SAID_MAX);
        said.drain(..surplus);
        Self {
            launcher: launcher.clone(),
            id: status.id.clone(),
            state: status.state,
            starts_at: status
                .starts_at
                .map(|at| steadied(before.and_then(|job| job.starts_at), at)),
            said,
        }
    }
}

/// Estimates jitter, and each change is put on record.
fn steadied(before: Option<Timestamp>, now: Timestamp) -> Timestamp {
    before
        .filter(|before| now.since(*before).max(before.since(now)) < JITTER)
        .unwrap_or(now.to_the_minute())
}

/// All jobs that one engine has of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jobs(pub Vec<(SessionId, JobStatus)>);

/// A cluster whose engine is asked for jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its launcher.
    pub name: LauncherName,
    /// The types of GPU that it has. How many, it knows itself.
    pub gpu_types: BTreeSet<GpuType>,
    /// So many jobs of ours it may have at once, waiting ones included. `None` is no limit.
    pub jobs_max: Option<u32>,
    /// Whether its jobs can run in images.
    pub runs_images: bool,
    /// Whether the limit on a job's time can be moved once it was given. If not, jobs get
    /// the longest that any session may come to need.
    pub moves_time_limits: bool,
}

/// Where sessions may be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// On the GPUs of this host.
    Host {
        /// Whether it has an engine that runs images.
        runs_images: bool,
    },
    /// Wherever this cluster's engine finds a place.
    Cluster(Cluster),
}

impl Offer {
    /// Whether sessions that run in images can be put there.
    #[must_use]
    pub const fn runs_images(&self) -> bool {
        match self {
            Self::Host { runs_images } => *runs_images,
            Self::Cluster(cluster) => cluster.runs_images,
        }
    }
}
