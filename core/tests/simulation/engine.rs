//! The engine of a cluster, as real ones behave: what it has of ours, and what it says.

use std::collections::BTreeMap;

use dwell_core::control_plane::Launch;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::id::SessionId;
use dwell_core::job::{Cluster, JobId, JobState, JobStatus, LauncherName};
use dwell_core::time::{Millis, Timestamp};

/// What a node takes at most to have all that a job needs.
pub const BOOT_MS: u64 = 30_000;

/// An engine and its nodes, each with one GPU.
#[derive(Debug)]
pub struct Engine {
    pub cluster: Cluster,
    pub look_every: u64,
    pub nodes: Vec<Node>,
    pub jobs: BTreeMap<u32, EngineJob>,
    pub last_job: u32,
    pub unreachable_until: u64,
    /// It counts in this, rounding up, and ends jobs late by half of it at most.
    pub grain_ms: u64,
}

#[derive(Debug)]
pub struct Node {
    pub gpu: GpuId,
    gpu_type: GpuType,
    /// The engine does not hear of it, and has given up what runs there.
    pub is_down: bool,
}

#[derive(Debug)]
pub struct EngineJob {
    pub session: SessionId,
    pub launch: Box<Launch>,
    pub stage: Stage,
    /// Why it ends, or ended.
    pub why: String,
    pub time_limit: Millis,
    pub node: Option<GpuId>,
    pub started_at: u64,
    pub suspended_at: Option<u64>,
    /// For how long it was suspended: that does not count.
    pub suspended_ms: u64,
    /// In calm: since when it is no open session's, or one too many.
    pub stray_since: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Waits,
    Runs,
    /// It was told to end.
    Ends,
    Over,
}

impl Engine {
    pub fn new(
        moves_time_limits: bool,
        jobs_max: Option<u32>,
        look_every: u64,
        grain_ms: u64,
    ) -> Self {
        let types = [("n1", "A10G"), ("n2", "A10G"), ("n3", "H100")];
        let node = |(name, gpu_type): (&str, &str)| Node {
            gpu: GpuId(name.into()),
            gpu_type: GpuType(gpu_type.into()),
            is_down: false,
        };
        let nodes: Vec<_> = types.into_iter().map(node).collect();
        Self {
            cluster: Cluster {
                name: LauncherName("slurm".into()),
                gpu_types: nodes.iter().map(|node| node.gpu_type.clone()).collect(),
                jobs_max,
                runs_images: false,
                moves_time_limits,
            },
            look_every,
            nodes,
            jobs: BTreeMap::new(),
            last_job: 0,
            unreachable_until: 0,
            grain_ms,
        }
    }

    pub fn node(&mut self, gpu: &GpuId) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.gpu == *gpu)
    }

    /// Puts a job into the queue; its number.
    pub fn take(&mut self, launch: Box<Launch>) -> u32 {
        self.last_job += 1;
        let job = EngineJob {
            session: launch.session,
            stage: Stage::Waits,
            why: String::new(),
            time_limit: self.rounded(launch.time_limit),
            launch,
            node: None,
            started_at: 0,
            suspended_at: None,
            suspended_ms: 0,
            stray_since: None,
        };
        self.jobs.insert(self.last_job, job);
        self.last_job
    }

    /// The job that is to start next, and where.
    pub fn next_start(&self, is_away: impl Fn(&GpuId) -> bool) -> Option<(u32, GpuId)> {
        let waiting = self
            .jobs
            .iter()
            .filter(|(_, job)| job.stage == Stage::Waits);
        waiting.into_iter().find_map(|(number, job)| {
            let node = self.nodes.iter().find(|node| {
                node.gpu_type == job.launch.gpu_type
                    && !node.is_down
                    && !is_away(&node.gpu)
                    && self.on_node(&node.gpu).is_none()
            })?;
            Some((*number, node.gpu.clone()))
        })
    }

    /// The job that a node is kept for.
    pub fn on_node(&self, gpu: &GpuId) -> Option<u32> {
        let is_there = |job: &EngineJob| {
            job.node.as_ref() == Some(gpu) && matches!(job.stage, Stage::Runs | Stage::Ends)
        };
        let mut jobs = self.jobs.iter();
        jobs.find_map(|(number, job)| is_there(job).then_some(*number))
    }

    /// All jobs of a session that are not over.
    pub fn jobs_of(&self, session: SessionId) -> impl Iterator<Item = (u32, &EngineJob)> {
        let jobs = self.jobs.iter().map(|(number, job)| (*number, job));
        jobs.filter(move |(_, job)| job.session == session && job.stage != Stage::Over)
    }

    pub fn rounded(&self, span: Millis) -> Millis {
        Millis(span.0.div_ceil(self.grain_ms) * self.grain_ms)
    }

    /// Has the engine given up this job, or forgotten it?
    pub fn is_over(&self, job: u32) -> bool {
        let job = self.jobs.get(&job);
        job.is_none_or(|job| job.stage == Stage::Over)
    }
}

impl EngineJob {
    /// When the engine ends it, if it is not over before.
    pub fn limit_at(&self) -> u64 {
        self.started_at + self.time_limit.0 + self.suspended_ms
    }

    /// What the engine says of it. Its estimates jitter.
    pub fn status(&self, number: u32, estimate: Timestamp) -> JobStatus {
        let (state, words) = match self.stage {
            Stage::Waits => (JobState::Pending, "PENDING (Resources)"),
            Stage::Runs if self.suspended_at.is_some() => (JobState::Unknown, "SUSPENDED"),
            Stage::Runs => (JobState::Running, "RUNNING"),
            Stage::Ends => (JobState::Unknown, "COMPLETING"),
            Stage::Over => (JobState::Ended, self.why.as_str()),
        };
        JobStatus {
            id: JobId(number.to_string()),
            state,
            words: words.to_owned(),
            starts_at: (self.stage == Stage::Waits).then_some(estimate),
            time_limit: Some(self.time_limit),
        }
    }
}

/// The number of a job that we know by this id.
pub fn number_of(job: &JobId) -> u32 {
    job.0.parse().unwrap()
}
