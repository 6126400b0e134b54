//! Slurm: a batch job a session, asked for by Slurm's own commands, which find the cluster
//! as they do for everybody (`SLURM_CONF`).
//!
//! Every job of ours is known by its name. Ids are not enough: they are used again.

mod commands;
mod listing;

use std::collections::BTreeMap;

use async_trait::async_trait;
use dwell_core::gpu::GpuType;
use dwell_core::id::SessionId;
use dwell_core::job::{JobId, JobState, JobStatus, Jobs};
use dwell_core::machine::Container;
use dwell_core::time::Millis;

use super::cluster::{
    Capacity, Cluster, ClusterSettings, Order, SubmitError, job_name, session_of_job,
};
use super::handout::{quoted, script};
use crate::clock;
use commands::{CommandError, Commands};

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
}

/// What runs images on a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainersBy {
    /// The plugin of `srun` and `sbatch` (`--container-image`).
    Pyxis,
    /// The program.
    Apptainer,
}

/// A Slurm cluster.
pub struct Slurm {
    settings: SlurmSettings,
    gpus: BTreeMap<GpuType, String>,
    installation: String,
    commands: Commands,
}

impl Slurm {
    /// The cluster that Slurm's commands reach from here.
    #[must_use]
    pub fn new(settings: SlurmSettings, cluster: &ClusterSettings, installation: &str) -> Self {
        Self {
            settings,
            gpus: cluster.gpus.clone(),
            installation: installation.to_owned(),
            commands: Commands::default(),
        }
    }
}

#[async_trait]
impl Cluster for Slurm {
    async fn submit(&self, order: &Order) -> Result<JobStatus, SubmitError> {
        let words = self.submission(order).map_err(SubmitError::Refused)?;
        let within = order
            .container
            .as_ref()
            .and_then(|container| self.within(container));
        let script = script(order, self.settings.agent.as_deref(), within.as_deref());
        let printed = self.commands.run_with("sbatch", &words, &script).await;
        let printed = printed.map_err(|error| match error {
            CommandError::Refused(why) => SubmitError::Refused(format!("Slurm refuses: {why}")),
            CommandError::Unclear(why) => SubmitError::Unclear(why),
        })?;
        // `17`, or `17;cluster` where there are several.
        let id = printed.trim().split(';').next().unwrap_or_default();
        if id.parse::<u32>().is_err() {
            return Err(SubmitError::Unclear(format!("sbatch printed {printed:?}")));
        }
        Ok(JobStatus {
            id: JobId(id.to_owned()),
            state: JobState::Pending,
            words: "PENDING".to_owned(),
            starts_at: None,
            time_limit: None,
        })
    }

    async fn jobs(&self) -> Result<Jobs, String> {
        let words = [
            "--noheader".to_owned(),
            "--states=all".to_owned(),
            format!("--user={}", nix::unistd::geteuid()),
            format!("--Format={}", listing::FORMAT),
        ];
        // Moments are seconds since 1970, whatever the host's zone.
        let commands = self.commands.clone().with(&[("SLURM_TIME_FORMAT", "%s")]);
        let printed = commands.run("squeue", &words).await;
        let printed = printed.map_err(|error| error.to_string())?;
        let now = clock::wall();
        let ours = printed.lines().filter_map(|line| {
            let row = listing::row(line, now)?;
            let session = session_of_job(&self.installation, &row.name)?;
            Some((session, row.status))
        });
        Ok(Jobs(ours.collect()))
    }

    async fn cancel(&self, session: SessionId, job: &JobId) -> Result<(), String> {
        let name = job_name(&self.installation, session);
        let words = [format!("--name={name}"), job.0.clone()];
        match self.commands.run("scancel", &words).await {
            Ok(_) => Ok(()),
            Err(CommandError::Refused(why)) if is_gone(&why) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// By the name alone: by the id it might be another's, and so would the limit.
    async fn limit(
        &self,
        session: SessionId,
        _job: &JobId,
        time_limit: Millis,
    ) -> Result<(), String> {
        let words = [
            "update".to_owned(),
            format!("JobName={}", job_name(&self.installation, session)),
            format!("UserID={}", nix::unistd::geteuid()),
            format!("TimeLimit={}", minutes(time_limit)),
        ];
        match self.commands.run("scontrol", &words).await {
            Ok(_) => Ok(()),
            Err(CommandError::Refused(why)) if is_gone(&why) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn capacity(&self) -> Result<BTreeMap<GpuType, Capacity>, String> {
        let partition = self.settings.partition.as_ref();
        let partition = partition.map(|partition| format!("--partition={partition}"));
        let nodes = ["--noheader", "--Node"].map(str::to_owned).into_iter();
        let nodes: Vec<_> = nodes
            .chain([format!("--Format={}", listing::NODE_FORMAT)])
            .chain(partition.clone())
            .collect();
        let waiting = ["--noheader", "--states=PENDING", "--format=%b"].map(str::to_owned);
        let waiting: Vec<_> = waiting.into_iter().chain(partition).collect();
        let (nodes, waiting) = tokio::join!(
            self.commands.run("sinfo", &nodes),
            self.commands.run("squeue", &waiting)
        );
        let nodes = nodes.map_err(|error| error.to_string())?;
        let waiting = waiting.map_err(|error| error.to_string())?;
        let capacities = self.gpus.iter().map(|(gpu_type, word)| {
            let mut capacity = Capacity::default();
            for line in nodes.lines() {
                listing::add_node(&mut capacity, line, word);
            }
            let waits = |line: &&str| listing::count(line, word) > 0;
            capacity.waiting = u32::try_from(waiting.lines().filter(waits).count()).unwrap_or(0);
            (gpu_type.clone(), capacity)
        });
        Ok(capacities.collect())
    }
}

impl Slurm {
    /// The options of `sbatch` for a job.
    fn submission(&self, order: &Order) -> Result<Vec<String>, String> {
        let settings = &self.settings;
        let option = |name: &str, value: &str| format!("--{name}={value}");
        let mut words = vec![
            "--parsable".to_owned(),
            // A second run would have the whole of the session's time again.
            "--no-requeue".to_owned(),
            // What sbatch has itself, which is little. Anything else has the node make the
            // environment of a login, which takes seconds and may fail.
            option("export", "ALL"),
            option("job-name", &order.name),
            option("comment", &order.session.to_string()),
            option("time", &minutes(order.time_limit)),
            option("chdir", "/"),
            option("output", settings.output.as_deref().unwrap_or("/dev/null")),
        ];
        let named = [
            ("partition", &settings.partition),
            ("account", &settings.account),
            ("qos", &settings.qos),
        ];
        for (name, value) in named {
            words.extend(value.as_ref().map(|value| option(name, value)));
        }
        if let Some(cpus) = settings.cpus {
            words.push(option("cpus-per-task", &cpus.to_string()));
        }
        if let Some(mib) = settings.memory_mib.or(order.limits.memory_mib) {
            words.push(format!("--mem={mib}M"));
        }
        match self.gpus.get(&order.gpu_type).map(String::as_str) {
            None | Some(NO_GPU) => {}
            Some(word) => words.push(format!("--gres={word}:1")),
        }
        match (&order.container, settings.containers) {
            (None, _) | (Some(_), Some(ContainersBy::Apptainer)) => {}
            (Some(container), Some(ContainersBy::Pyxis)) => {
                words.push(option("container-image", &container.image));
            }
            (Some(_), None) => {
                return Err(
                    "This cluster runs no images; set containers = \"pyxis\" or \"apptainer\" in \
                     its [[launcher]]"
                        .to_owned(),
                );
            }
        }
        words.extend(settings.options.iter().cloned());
        Ok(words)
    }

    /// What the job puts its agent behind, so that it runs in this container.
    fn within(&self, container: &Container) -> Option<String> {
        if self.settings.containers != Some(ContainersBy::Apptainer) {
            return None;
        }
        let image = &container.image;
        // A file, or the address of one that is not Docker's.
        let is_named_whole = image.starts_with('/') || image.contains("://");
        let scheme = if is_named_whole { "" } else { "docker://" };
        let image = quoted(&format!("{scheme}{image}"));
        Some(format!("apptainer exec --nv --bind \"$1\" {image}"))
    }
}

/// Slurm counts in minutes: never fewer than are needed.
fn minutes(time_limit: Millis) -> String {
    time_limit.0.div_ceil(60_000).to_string()
}

/// Is there nothing left to be asked of a job about which Slurm says this?
fn is_gone(words: &str) -> bool {
    [
        "Invalid job id",
        "No jobs with",
        "already completing or completed",
        "already finished",
    ]
    .iter()
    .any(|it| words.contains(it))
}
