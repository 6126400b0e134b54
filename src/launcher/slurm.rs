//! Slurm: a batch job a session.
//!
//! Every job of ours is known by its name. Ids are not enough: they are used again.

mod commands;
mod gres;
mod images;
mod interface;
mod job;
pub mod rest;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use dwell_core::gpu::GpuType;
use dwell_core::id::SessionId;
use dwell_core::job::{JobId, JobState, JobStatus, Jobs};
use dwell_core::time::Millis;

use super::cluster::{
    Capacity, Cluster, ClusterSettings, Order, SubmitError, job_name, session_of_job,
};
use super::handout::script;
use crate::clock;
use commands::Commands;
pub use images::ContainersBy;
use images::InImage;
use interface::{Batch, Interface, Node, SlurmError};
use rest::{Rest, RestSettings};

/// The engine's word for a type whose jobs ask for no GPU.
const NO_GPU: &str = "none";

/// What the configuration says of a Slurm cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlurmSettings {
    /// Where jobs go; the cluster's default if none.
    pub partition: Option<String>,
    /// Who is charged.
    pub account: Option<String>,
    /// The quality of service.
    pub qos: Option<String>,
    /// CPUs for each job.
    pub cpus: Option<u32>,
    /// Memory for each job, in MiB; what the app may use, if that is limited, or else the
    /// cluster's default if none.
    pub memory_mib: Option<u64>,
    /// Where a job's own words go, as `sbatch --output` takes it. `/dev/null` if none.
    pub output: Option<String>,
    /// Further options of `sbatch`, as they are.
    pub options: Vec<String>,
    /// How jobs of machines that name an image run in it. None can, if nothing is said.
    pub containers: Option<ContainersBy>,
    /// The agent's program on the nodes. If none, they fetch it from the server.
    pub agent: Option<String>,
    /// Whether limits of jobs can be moved: Slurm lets operators alone raise them.
    pub moves_time_limits: bool,
    /// The slurmrestd that is asked. Slurm's own commands are, if none.
    pub rest: Option<RestSettings>,
}

impl SlurmSettings {
    /// Where a job's own words go.
    fn output(&self) -> &str {
        self.output.as_deref().unwrap_or(job::NOWHERE)
    }
}

/// A Slurm cluster.
pub struct Slurm {
    settings: SlurmSettings,
    gpus: BTreeMap<GpuType, String>,
    installation: String,
    interface: Box<dyn Interface>,
}

impl Slurm {
    /// The cluster that Slurm's commands reach from here, or slurmrestd.
    #[must_use]
    pub fn new(settings: SlurmSettings, cluster: &ClusterSettings, installation: &str) -> Self {
        let interface: Box<dyn Interface> = match settings.rest.clone() {
            Some(rest) => Box::new(Rest::new(rest)),
            None => Box::new(Commands::default()),
        };
        Self {
            settings,
            gpus: cluster.gpus.clone(),
            installation: installation.to_owned(),
            interface,
        }
    }
}

#[async_trait]
impl Cluster for Slurm {
    async fn submit(&self, order: &Order) -> Result<JobStatus, SubmitError> {
        let batch = self.batch(order).map_err(SubmitError::Refused)?;
        let id = self.interface.submit(&batch).await;
        let id = id.map_err(|error| match error {
            SlurmError::Refused(why) => SubmitError::Refused(format!("Slurm refuses: {why}")),
            SlurmError::Unclear(why) => SubmitError::Unclear(why),
        })?;
        Ok(JobStatus {
            id,
            state: JobState::Pending,
            words: "PENDING".to_owned(),
            starts_at: None,
            time_limit: None,
        })
    }

    async fn jobs(&self) -> Result<Jobs, String> {
        let jobs = self.interface.jobs().await;
        let jobs = jobs.map_err(|error| error.to_string())?.into_iter();
        let now = clock::wall();
        let ours = jobs.filter_map(|job| {
            let session = session_of_job(&self.installation, &job.name)?;
            Some((session, job.status(now, self.settings.output())))
        });
        Ok(Jobs(ours.collect()))
    }

    async fn cancel(&self, session: SessionId, job: &JobId) -> Result<(), String> {
        let name = job_name(&self.installation, session);
        unless_gone(self.interface.cancel(&name, job).await)
    }

    async fn limit(
        &self,
        session: SessionId,
        job: &JobId,
        time_limit: Millis,
    ) -> Result<(), String> {
        let name = job_name(&self.installation, session);
        let limited = self.interface.limit(&name, job, minutes(time_limit)).await;
        unless_gone(limited)
    }

    async fn capacity(&self) -> Result<BTreeMap<GpuType, Capacity>, String> {
        let partition = self.settings.partition.as_deref();
        let (nodes, waiting) = tokio::join!(
            self.interface.nodes(partition),
            self.interface.waiting(partition)
        );
        let nodes = nodes.map_err(|error| error.to_string())?;
        let waiting = waiting.map_err(|error| error.to_string())?;
        let of = |word: &String| Capacity::of(word, &nodes, &waiting);
        let capacities = self.gpus.iter().map(|(gpu, word)| (gpu.clone(), of(word)));
        Ok(capacities.collect())
    }
}

impl Capacity {
    /// Of GPUs that are called `word`.
    fn of(word: &str, nodes: &[Node], waiting: &[String]) -> Self {
        if word == NO_GPU {
            return Self::default();
        }
        let (mut total, mut free) = (0, 0);
        // One that is in several partitions may be listed for each.
        let mut seen = BTreeSet::new();
        for node in nodes {
            if node.is_up && seen.insert(&*node.name) {
                let there = gres::count(&node.gres, word);
                total += there;
                free += there.saturating_sub(gres::count(&node.gres_used, word));
            }
        }
        let waits = |gres: &&String| gres::count(gres, word) > 0;
        Self {
            total: Some(total),
            free: Some(free),
            waiting: u32::try_from(waiting.iter().filter(waits).count()).ok(),
        }
    }
}

impl Slurm {
    /// The job that an order is for.
    fn batch<'a>(&'a self, order: &'a Order) -> Result<Batch<'a>, String> {
        let settings = &self.settings;
        let agent = settings.agent.as_deref();
        let InImage { options, within } = match &order.container {
            Some(container) => InImage::of(container, settings.containers, agent)?,
            None => InImage::default(),
        };
        let gres = match self.gpus.get(&order.gpu_type).map(String::as_str) {
            None | Some(NO_GPU) => None,
            Some(word) => Some(format!("{word}:1")),
        };
        Ok(Batch {
            settings,
            name: &order.name,
            comment: order.session.to_string(),
            minutes: minutes(order.time_limit),
            gres,
            memory_mib: settings.memory_mib.or(order.limits.memory_mib),
            image: options,
            script: script(order, agent, within.as_deref()),
        })
    }
}

/// Slurm counts in minutes: never fewer than are needed.
const fn minutes(time_limit: Millis) -> u64 {
    time_limit.0.div_ceil(60_000)
}

/// What is asked of a job that is gone is done.
fn unless_gone(done: Result<(), SlurmError>) -> Result<(), String> {
    match done {
        Err(error) if !error.is_of_a_job_that_is_gone() => Err(error.to_string()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_once_on_nodes_that_are_up() {
        let node = |name: &str, is_up, gres_used: &str| Node {
            name: name.to_owned(),
            is_up,
            gres: "gpu:a10g:4,gpu:l4:2".to_owned(),
            gres_used: gres_used.to_owned(),
        };
        let nodes = [
            node("n1", true, "gpu:a10g:1(IDX:0),gpu:l4:0(IDX:N/A)"),
            node("n1", true, "gpu:a10g:1(IDX:0),gpu:l4:0(IDX:N/A)"),
            node("n2", true, "gpu:a10g:0(IDX:N/A)"),
            node("n3", false, "gpu:a10g:0"),
        ];
        let waiting = ["gres:gpu:a10g:1", "gres/gpu:a10g:2", "gres:gpu:l4:1", "N/A"];
        let waiting = waiting.map(str::to_owned);
        let capacity = Capacity {
            total: Some(8),
            free: Some(7),
            waiting: Some(2),
        };
        assert_eq!(Capacity::of("gpu:a10g", &nodes, &waiting), capacity);
        let untold = Capacity::of(NO_GPU, &nodes, &waiting);
        assert_eq!(untold, Capacity::default());
    }
}
