//! What Slurm's commands print of jobs and of nodes.

use dwell_core::job::{JobId, JobState, JobStatus};
use dwell_core::time::{Millis, Timestamp};

use crate::launcher::cluster::Capacity;
use crate::launcher::handout;

/// `squeue --Format`: a job, each field with the width that it may have, and the reason,
/// which may hold anything, at the end.
pub(super) const FORMAT: &str = "JobID:20|,Name:100|,State:20|,StartTime:24|,TimeLimit:20|,\
                                 exit_code:12|,Reason:300";

/// One job as `squeue` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub name: String,
    pub status: JobStatus,
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

/// A job without a time limit is taken to run for a year: what waits for it gets no estimate.
const NO_ESTIMATE: Millis = Millis::from_minutes(360 * 24 * 60);

/// What a line of `squeue` says `now`. `None` if it is none.
pub(super) fn row(line: &str, now: Timestamp) -> Option<Row> {
    let mut fields = line.splitn(7, '|');
    let mut next = || fields.next().map(str::trim);
    let (id, name, word) = (next()?, next()?, next()?);
    let (starts, limit, exit, reason) = (next()?, next()?, next()?, next()?);
    let mut state = state(word);
    // Slurm says of the reason "None" where it has nothing to say.
    let mut words = match reason {
        "" | "None" => word.to_owned(),
        reason => format!("{word} ({reason})"),
    };
    // As wait() has it.
    let status = exit.parse().ok().map(|status: i32| status >> 8);
    if let Some(trouble) = status.and_then(handout::trouble) {
        words = format!("{words}. {trouble}");
    }
    let hopeless = HOPELESS
        .iter()
        .find(|(it, _)| word == "PENDING" && *it == reason);
    if let Some((_, remedy)) = hopeless {
        state = JobState::Stuck;
        words = format!("{words}. {remedy}");
    }
    let starts_at = starts
        .parse()
        .ok()
        .map(|seconds: i64| Timestamp(seconds * 1_000));
    Some(Row {
        name: name.to_owned(),
        status: JobStatus {
            id: JobId(id.to_owned()),
            state,
            words,
            starts_at: starts_at
                .filter(|at| state == JobState::Pending && at.since(now) < NO_ESTIMATE),
            time_limit: time_limit(limit),
        },
    })
}

/// What a job's state means to its session.
fn state(word: &str) -> JobState {
    match word {
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "RESV_DEL_HOLD"
        | "SPECIAL_EXIT" => JobState::Pending,
        // Its nodes are being booted, or made ready by the prolog.
        "CONFIGURING" => JobState::Preparing,
        // Its processes are there, whatever they do.
        "RUNNING" | "COMPLETING" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "RESIZING"
        | "STAGE_OUT" => JobState::Running,
        "BOOT_FAIL" | "CANCELLED" | "COMPLETED" | "DEADLINE" | "FAILED" | "NODE_FAIL"
        | "OUT_OF_MEMORY" | "PREEMPTED" | "REVOKED" | "TIMEOUT" => JobState::Ended,
        _ => JobState::Unknown,
    }
}

/// `1-02:03:04`, `02:03:04`, `3:04`. `None` where there is no limit, or none of the job's own.
fn time_limit(text: &str) -> Option<Millis> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (days.parse::<u64>().ok()?, clock),
        None => (0, text),
    };
    let parts = clock
        .split(':')
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>();
    let parts = parts.ok()?;
    let seconds = parts.iter().fold(0, |sum, part| sum * 60 + part);
    (1..=3)
        .contains(&parts.len())
        .then(|| Millis::from_seconds(days * 86_400 + seconds))
}

/// `sinfo --Format`: a node, its state, its GPUs and those in use.
pub(super) const NODE_FORMAT: &str = "NodeList:64|,StateCompact:20|,Gres:300|,GresUsed:300";

/// Add what a line of `sinfo` says of GPUs that are called `word`.
pub(super) fn add_node(capacity: &mut Capacity, line: &str, word: &str) {
    let mut fields = line.split('|').map(str::trim);
    let (Some(_), Some(state), Some(gres), Some(used)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return;
    };
    let is_up = ["idle", "mix", "alloc", "comp"]
        .iter()
        .any(|it| state.starts_with(it))
        && !state.ends_with('*');
    if is_up {
        let total = count(gres, word);
        capacity.total += total;
        capacity.free += total.saturating_sub(count(used, word));
    }
}

/// How many `gpu:a10g` there are in `gpu:a10g:4(S:0-1),gpu:l4:2`. A word without a type
/// counts all of its kind.
pub(super) fn count(gres: &str, word: &str) -> u32 {
    let of = |item: &str| -> Option<u32> {
        let bare = item.trim_start_matches("gres:").split('(').next()?;
        let rest = bare.strip_prefix(word)?.strip_prefix(':')?;
        rest.rsplit(':').next()?.parse().ok()
    };
    outer_commas(gres).filter_map(of).sum()
}

/// The items of a list; commas within parentheses part none.
fn outer_commas(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    list.split(move |it: char| {
        match it {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        it == ',' && depth == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_764_143_000_000);

    fn status(line: &str) -> JobStatus {
        row(line, NOW).unwrap().status
    }

    #[test]
    fn each_line_of_squeue_is_one_job_in_slurms_own_words() {
        let waits = row(
            "17 |dwell-a-b |PENDING |1764144000 |11:00 |0 |Resources \n",
            NOW,
        )
        .unwrap();
        assert_eq!(waits.name, "dwell-a-b");
        assert_eq!(
            waits.status,
            JobStatus {
                id: JobId("17".into()),
                state: JobState::Pending,
                words: "PENDING (Resources)".into(),
                starts_at: Some(Timestamp(1_764_144_000_000)),
                time_limit: Some(Millis::from_minutes(11)),
            }
        );
        let runs = status("18|n|RUNNING|1764144000|1-02:00:00|0|None");
        assert_eq!((runs.words.as_str(), runs.starts_at), ("RUNNING", None));
        assert_eq!(runs.time_limit, Some(Millis::from_minutes(26 * 60)));
        let odd = status("19|n|PENDING|N/A|UNLIMITED|0|ReqNodeNotAvail, UnavailableNodes:n[1-2]|x");
        assert_eq!((odd.starts_at, odd.time_limit), (None, None));
        assert!(odd.words.ends_with("n[1-2]|x)"), "{}", odd.words);
        assert_eq!(
            status("1|n|DREAMING|N/A|5:00|0|None").state,
            JobState::Unknown
        );
        assert_eq!(row("slurm_load_jobs error: something", NOW), None);
        let failed = status("20|n|FAILED|N/A|5:00|20992|NonZeroExitCode");
        let begins = "FAILED (NonZeroExitCode). The agent could not be fetched";
        assert!(failed.words.starts_with(begins), "{}", failed.words);
    }

    #[test]
    fn what_waits_for_ever_is_stuck_and_says_what_to_do_and_what_waits_for_a_year_has_no_estimate()
    {
        let long = status("5|n|PENDING|N/A|1:40:00|0|PartitionTimeLimit");
        assert_eq!(long.state, JobState::Stuck);
        let begins = "PENDING (PartitionTimeLimit). No job may take as long";
        assert!(long.words.starts_with(begins), "{}", long.words);
        assert!(long.words.contains("timeout_max_minutes"));
        let much = status("6|n|PENDING|N/A|1:00:00|0|PartitionConfig");
        assert_eq!(much.state, JobState::Stuck);
        for cured in ["Resources", "PartitionDown", "JobHeldUser", "Licenses"] {
            let waits = status(&format!("7|n|PENDING|N/A|1:00:00|0|{cured}"));
            assert_eq!(waits.state, JobState::Pending, "{cured}");
        }
        let year = status("8|n|PENDING|1795679000|1:00:00|0|Resources");
        assert_eq!(year.starts_at, None);
        let boots = status("9|n|CONFIGURING|1764143000|1:00:00|0|None");
        assert_eq!(boots.state, JobState::Preparing);
    }

    #[test]
    fn gpus_are_counted_by_their_word_on_nodes_that_are_up() {
        let mut capacity = Capacity::default();
        for line in [
            "n1|mix|gpu:a10g:4(S:0-1),gpu:l4:2|gpu:a10g:1(IDX:0),gpu:l4:0(IDX:N/A)",
            "n2|idle|gpu:a10g:4|gpu:a10g:0(IDX:N/A)",
            "n3|down*|gpu:a10g:4|gpu:a10g:0",
            "n4|idle*|gpu:a10g:4|gpu:a10g:0",
            "n5|idle|(null)|(null)",
        ] {
            add_node(&mut capacity, line, "gpu:a10g");
        }
        assert_eq!((capacity.total, capacity.free), (8, 7));
        assert_eq!(count("gpu:a10g:4(S:0,1),gpu:l4:2", "gpu"), 6);
        assert_eq!(count("gres:gpu:a10g:1", "gpu:a10g"), 1);
        assert_eq!(count("gpu:a10gx:1", "gpu:a10g"), 0);
    }
}
