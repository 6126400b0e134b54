//! Asking Slurm by its own commands, which find the cluster as they do for everybody
//! (`SLURM_CONF`).

mod listing;
mod run;

use async_trait::async_trait;
use dwell_core::job::JobId;

use super::interface::{Batch, Interface, Node, SlurmError};
use super::job::Job;
use run::Runner;

/// The commands that the server's `PATH` has.
#[derive(Default)]
pub(super) struct Commands(Runner);

#[async_trait]
impl Interface for Commands {
    async fn submit(&self, batch: &Batch<'_>) -> Result<JobId, SlurmError> {
        let words = submission(batch);
        let printed = self.0.run_with("sbatch", &words, &batch.script).await?;
        // `17`, or `17;cluster` where there are several.
        let id = printed.trim().split(';').next().unwrap_or_default();
        if id.parse::<u32>().is_err() {
            return Err(SlurmError::Unclear(format!("sbatch printed {printed:?}")));
        }
        Ok(JobId(id.to_owned()))
    }

    async fn jobs(&self) -> Result<Vec<Job>, SlurmError> {
        let words = [
            "--noheader".to_owned(),
            "--states=all".to_owned(),
            format!("--user={}", nix::unistd::geteuid()),
            option("Format", listing::JOB_FORMAT),
        ];
        // Moments are seconds since 1970, whatever the host's zone.
        let runner = self.0.clone().with(&[("SLURM_TIME_FORMAT", "%s")]);
        let printed = runner.run("squeue", &words).await?;
        Ok(printed.lines().filter_map(listing::job).collect())
    }

    async fn cancel(&self, name: &str, id: &JobId) -> Result<(), SlurmError> {
        let words = [option("name", name), id.0.clone()];
        self.0.run("scancel", &words).await.map(drop)
    }

    /// By the name alone: `scontrol` takes it or the id.
    async fn limit(&self, name: &str, _: &JobId, minutes: u64) -> Result<(), SlurmError> {
        let words = [
            "update".to_owned(),
            format!("JobName={name}"),
            format!("UserID={}", nix::unistd::geteuid()),
            format!("TimeLimit={minutes}"),
        ];
        self.0.run("scontrol", &words).await.map(drop)
    }

    async fn nodes(&self, partition: Option<&str>) -> Result<Vec<Node>, SlurmError> {
        let mut words = vec!["--noheader".to_owned(), "--Node".to_owned()];
        words.push(option("Format", listing::NODE_FORMAT));
        words.extend(partition.map(|partition| option("partition", partition)));
        let printed = self.0.run("sinfo", &words).await?;
        Ok(printed.lines().filter_map(listing::node).collect())
    }

    async fn waiting(&self, partition: Option<&str>) -> Result<Vec<String>, SlurmError> {
        let mut words = ["--noheader", "--states=PENDING", "--format=%b"]
            .map(str::to_owned)
            .to_vec();
        words.extend(partition.map(|partition| option("partition", partition)));
        let printed = self.0.run("squeue", &words).await?;
        Ok(printed.lines().map(str::to_owned).collect())
    }
}

fn option(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

/// The options of `sbatch` for a job.
fn submission(batch: &Batch<'_>) -> Vec<String> {
    let settings = batch.settings;
    let mut words = vec![
        "--parsable".to_owned(),
        // A second run would have the whole of the session's time again.
        "--no-requeue".to_owned(),
        // What sbatch has itself, which is little. Anything else has the node make the
        // environment of a login, which takes seconds and may fail.
        option("export", "ALL"),
        option("job-name", batch.name),
        option("comment", &batch.comment),
        option("time", &batch.minutes.to_string()),
        option("chdir", "/"),
        option("output", settings.output()),
    ];
    let named = [
        ("partition", settings.partition.clone()),
        ("account", settings.account.clone()),
        ("qos", settings.qos.clone()),
        ("cpus-per-task", settings.cpus.map(|cpus| cpus.to_string())),
        ("mem", batch.memory_mib.map(|mib| format!("{mib}M"))),
        ("gres", batch.gres.clone()),
    ];
    for (name, value) in named {
        words.extend(value.map(|value| option(name, &value)));
    }
    words.extend(batch.image.iter().map(|(name, value)| match value {
        Some(value) => option(name, value),
        None => format!("--{name}"),
    }));
    words.extend(settings.options.iter().cloned());
    words
}
