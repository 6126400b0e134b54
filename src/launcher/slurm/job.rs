//! What Slurm says of a job, however it was asked, and what that means to a session.

use dwell_core::job::{JobId, JobState, JobStatus};
use dwell_core::time::{Millis, Timestamp};

use crate::launcher::handout;

/// One job, in Slurm's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Job {
    pub id: String,
    pub name: String,
    /// Its state; where there are several words, each says more than those before.
    pub state: String,
    /// Why it is so; empty or `None` where Slurm has nothing to say.
    pub reason: String,
    /// When it started, or is expected to.
    pub starts_at: Option<Timestamp>,
    /// How long it may run. `None` where there is no limit, or none of the job's own.
    pub time_limit: Option<Millis>,
    /// What its script ended with, as a shell has it.
    pub exit_status: Option<i32>,
}

/// Reasons for which a job waits and will for ever, as things are, and what ends that.
const HOPELESS: [(&str, &str); 12] = [
    ("PartitionTimeLimit", TOO_LONG),
    ("AssocMaxWallDurationPerJobLimit", TOO_LONG),
    ("QOSMaxWallDurationPerJobLimit", TOO_LONG),
    ("PartitionConfig", TOO_MUCH),
    ("PartitionNodeLimit", TOO_MUCH),
    ("BadConstraints", TOO_MUCH),
    ("AssocMaxGRESPerJob", TOO_MUCH),
    ("QOSMaxGRESPerJob", TOO_MUCH),
    ("InvalidAccount", WRONG_NAME),
    ("InvalidQOS", WRONG_NAME),
    ("AccountNotAllowed", WRONG_NAME),
    ("QOSNotAllowed", WRONG_NAME),
];

const TOO_LONG: &str = "No job may take as long as this one here; lower timeout_max_minutes in \
                        [limits], set moves_time_limits in the [[launcher]] if the server's user \
                        is an operator of Slurm, or have MaxTime of the partition raised";
const TOO_MUCH: &str = "No node has what it asks for; look at cpus, memory_mib, gpus and options \
                        of the [[launcher]]";
const WRONG_NAME: &str = "Look at account, qos and partition of the [[launcher]]";

/// Where jobs write if nothing else is said.
pub(super) const NOWHERE: &str = "/dev/null";

const SAYS_NOWHERE: &str = "What such jobs say is kept if output of the [[launcher]] names a file";

/// A job without a time limit is taken to run for a year: what waits for it gets no estimate.
const NO_ESTIMATE: Millis = Millis::from_minutes(360 * 24 * 60);

impl Job {
    /// What this means `now`, where jobs write to `output`.
    pub(super) fn status(self, now: Timestamp, output: &str) -> JobStatus {
        let mut state = state(&self.state);
        let mut words = match &*self.reason {
            "" | "None" => self.state,
            reason => format!("{} ({reason})", self.state),
        };
        if let Some(failed @ 1..) = self.exit_status {
            words = match (handout::trouble(failed), output) {
                (Some(trouble), _) => format!("{words}. {trouble}"),
                (None, NOWHERE) => format!("{words}. {SAYS_NOWHERE}"),
                (None, file) => format!("{words}. {file} on its node may say why"),
            };
        }
        let hopeless = HOPELESS.iter().find(|(it, _)| *it == self.reason);
        if let (JobState::Pending, Some((_, remedy))) = (state, hopeless) {
            state = JobState::Stuck;
            words = format!("{words}. {remedy}");
        }
        let is_estimate =
            |at: &Timestamp| state == JobState::Pending && at.since(now) < NO_ESTIMATE;
        JobStatus {
            id: JobId(self.id),
            state,
            words,
            starts_at: self.starts_at.filter(is_estimate),
            time_limit: self.time_limit,
        }
    }
}

/// What a job's state means to its session: the last word that is known.
fn state(words: &str) -> JobState {
    let known = words.split_whitespace().rev().find_map(|word| match word {
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "RESV_DEL_HOLD"
        | "SPECIAL_EXIT" => Some(JobState::Pending),
        // Its nodes are being booted, or made ready by the prolog.
        "CONFIGURING" => Some(JobState::Preparing),
        // Its processes are there, whatever they do.
        "RUNNING" | "COMPLETING" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "RESIZING"
        | "STAGE_OUT" => Some(JobState::Running),
        "BOOT_FAIL" | "CANCELLED" | "COMPLETED" | "DEADLINE" | "FAILED" | "NODE_FAIL"
        | "OUT_OF_MEMORY" | "PREEMPTED" | "REVOKED" | "TIMEOUT" => Some(JobState::Ended),
        _ => None,
    });
    known.unwrap_or(JobState::Unknown)
}

/// What the exit status is of a job that ended as `wait()` says.
pub(super) const fn exit_status(wait_status: i32) -> i32 {
    wait_status >> 8
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_764_143_000_000);

    fn status(state: &str, reason: &str) -> JobStatus {
        Job {
            state: state.into(),
            reason: reason.into(),
            ..Job::default()
        }
        .status(NOW, NOWHERE)
    }

    #[test]
    fn a_state_is_slurms_last_word_that_is_known_and_all_words_are_kept() {
        for (words, state) in [
            ("RUNNING", JobState::Running),
            ("CANCELLED COMPLETING", JobState::Running),
            ("RUNNING CONFIGURING", JobState::Preparing),
            ("PENDING LAUNCH_FAILED", JobState::Pending),
            ("DREAMING", JobState::Unknown),
            ("", JobState::Unknown),
        ] {
            let status = status(words, "None");
            assert_eq!((status.state, &*status.words), (state, words));
        }
    }

    #[test]
    fn a_job_that_came_to_no_agent_says_why() {
        let failed = Job {
            state: "FAILED".into(),
            reason: "NonZeroExitCode".into(),
            exit_status: Some(exit_status(20_992)),
            ..Job::default()
        };
        let words = failed.status(NOW, NOWHERE).words;
        let begins = "FAILED (NonZeroExitCode). The agent could not be fetched";
        assert!(words.starts_with(begins), "{words}");
    }

    #[test]
    fn a_job_that_failed_for_another_reason_says_where_to_look() {
        let failed = Job {
            state: "FAILED".into(),
            reason: "NonZeroExitCode".into(),
            exit_status: Some(1),
            ..Job::default()
        };
        for (output, looks) in [
            (NOWHERE, "if output of the [[launcher]]"),
            ("/logs/%j.txt", "/logs/%j.txt"),
        ] {
            let words = failed.clone().status(NOW, output).words;
            assert!(words.contains(looks), "{words}");
        }
    }

    #[test]
    fn what_waits_for_ever_is_stuck_and_says_what_to_do() {
        let long = status("PENDING", "PartitionTimeLimit");
        assert_eq!(long.state, JobState::Stuck);
        let begins = "PENDING (PartitionTimeLimit). No job may take as long";
        assert!(long.words.starts_with(begins), "{}", long.words);
        assert!(long.words.contains("timeout_max_minutes"));
        assert_eq!(status("PENDING", "PartitionConfig").state, JobState::Stuck);
        for cured in ["Resources", "PartitionDown", "JobHeldUser", "Licenses"] {
            let waits = status("PENDING", cured);
            assert_eq!(waits.state, JobState::Pending, "{cured}");
        }
        let ended = status("CANCELLED", "PartitionTimeLimit");
        assert_eq!(ended.state, JobState::Ended);
    }

    #[test]
    fn an_estimate_is_of_what_waits_and_not_behind_what_has_no_limit() {
        let soon = Timestamp(NOW.0 + 1_000_000);
        let year = Timestamp(NOW.0 + 31_536_000_000);
        for (state, at, estimate) in [
            ("PENDING", soon, Some(soon)),
            ("PENDING", year, None),
            ("RUNNING", soon, None),
            ("CONFIGURING", soon, None),
        ] {
            let job = Job {
                state: state.into(),
                starts_at: Some(at),
                ..Job::default()
            };
            assert_eq!(job.status(NOW, NOWHERE).starts_at, estimate, "{state}");
        }
    }
}
