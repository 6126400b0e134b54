//! What is asked of Slurm, whichever way it is asked.

use async_trait::async_trait;
use dwell_core::job::JobId;

use super::SlurmSettings;
use super::job::Job;

/// A way of asking Slurm.
#[async_trait]
pub(super) trait Interface: Send + Sync {
    /// A new job; its id.
    async fn submit(&self, batch: &Batch<'_>) -> Result<JobId, SlurmError>;

    /// All jobs of the user that asks, those that ended included while Slurm knows them.
    async fn jobs(&self) -> Result<Vec<Job>, SlurmError>;

    /// End the job of that id, if that is its name: Slurm uses ids again.
    async fn cancel(&self, name: &str, id: &JobId) -> Result<(), SlurmError>;

    /// Let the job of that name run for so many minutes from its start.
    async fn limit(&self, name: &str, id: &JobId, minutes: u64) -> Result<(), SlurmError>;

    /// The nodes of this partition, or else all.
    async fn nodes(&self, partition: Option<&str>) -> Result<Vec<Node>, SlurmError>;

    /// What anybody's jobs that wait there ask of each node, one of each job.
    async fn waiting(&self, partition: Option<&str>) -> Result<Vec<String>, SlurmError>;
}

/// A job to be submitted. What every job is given besides stands in the settings.
pub(super) struct Batch<'a> {
    pub settings: &'a SlurmSettings,
    pub name: &'a str,
    pub comment: String,
    /// How long it may run, from its start.
    pub minutes: u64,
    /// As `--gres` takes it.
    pub gres: Option<String>,
    pub memory_mib: Option<u64>,
    /// Options of `sbatch` by which Slurm itself runs it in an image.
    pub image: Vec<(&'static str, Option<String>)>,
    pub script: String,
}

/// A node, and its GPUs as Slurm writes them: `gpu:a10g:4(S:0-1),gpu:l4:2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub name: String,
    /// Whether jobs may run there.
    pub is_up: bool,
    pub gres: String,
    pub gres_used: String,
}

/// Why Slurm did not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SlurmError {
    /// It says no, in these words.
    #[error("{0}")]
    Refused(String),
    /// It is not known what it did.
    #[error("{0}")]
    Unclear(String),
}

/// What Slurm says when it has not heard, or not answered, or cannot just now: it may have
/// done what it was asked for, or may do it when it is asked again.
const UNCLEAR: [&str; 18] = [
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Communication connection failure",
    "Communication shutdown failure",
    "Message send failure",
    "Message receive failure",
    "Unexpected message received",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Resource temporarily unavailable",
    "controller in standby mode",
    // Its queue is full, or all its ids are in use.
    "sleeping and retrying",
    "try again",
    // It cannot be told who asks.
    "Protocol authentication error",
    "Munge",
    // Which slurmrestd says of a controller that is away, among other things.
    "Unspecified error",
];

impl SlurmError {
    /// By what Slurm says.
    pub(super) fn saying(words: String) -> Self {
        if UNCLEAR.iter().any(|it| words.contains(it)) {
            Self::Unclear(words)
        } else {
            Self::Refused(words)
        }
    }

    /// Is there nothing left to be asked of a job about which Slurm says this?
    pub(super) fn is_of_a_job_that_is_gone(&self) -> bool {
        let gone = [
            "Invalid job id",
            "No jobs with",
            "already completing or completed",
            "already finished",
        ];
        matches!(self, Self::Refused(words) if gone.iter().any(|it| words.contains(it)))
    }
}
