//! What Slurm's commands print of jobs and of nodes.

use dwell_core::time::{Millis, Timestamp};

use super::super::interface::Node;
use super::super::job::{Job, exit_status};

/// `squeue --Format`: a job, each field with the width that it may have, and the reason,
/// which may hold anything, at the end.
pub(super) const JOB_FORMAT: &str = "JobID:20|,Name:100|,State:20|,StartTime:24|,\
                                     TimeLimit:20|,exit_code:12|,Reason:300";

/// What a line of `squeue` says. `None` if it is none.
pub(super) fn job(line: &str) -> Option<Job> {
    let mut fields = line.splitn(7, '|');
    let mut next = || fields.next().map(str::trim);
    let (id, name, state) = (next()?, next()?, next()?);
    let (starts, limit, exit, reason) = (next()?, next()?, next()?, next()?);
    let starts: Option<i64> = starts.parse().ok();
    Some(Job {
        id: id.to_owned(),
        name: name.to_owned(),
        state: state.to_owned(),
        reason: reason.to_owned(),
        starts_at: starts.map(|seconds| Timestamp(seconds * 1_000)),
        time_limit: time_limit(limit),
        exit_status: exit.parse().ok().map(exit_status),
    })
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

/// What a line of `sinfo` says. `None` if it is none.
pub(super) fn node(line: &str) -> Option<Node> {
    let mut fields = line.splitn(4, '|');
    let mut next = || fields.next().map(str::trim);
    let (name, state, gres, used) = (next()?, next()?, next()?, next()?);
    let is_up = ["idle", "mix", "alloc", "comp", "plnd"]
        .iter()
        .any(|it| state.starts_with(it));
    Some(Node {
        name: name.to_owned(),
        // One with a star does not answer, one with a dollar is reserved for maintenance.
        is_up: is_up && !state.ends_with(['*', '$']),
        gres: gres.to_owned(),
        gres_used: used.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_squeue_is_one_job_in_slurms_own_words() {
        let line = "17 |dwell-a-b |PENDING |1764144000 |11:00 |20992 |Resources \n";
        let waits = Job {
            id: "17".into(),
            name: "dwell-a-b".into(),
            state: "PENDING".into(),
            reason: "Resources".into(),
            starts_at: Some(Timestamp(1_764_144_000_000)),
            time_limit: Some(Millis::from_minutes(11)),
            exit_status: Some(82),
        };
        assert_eq!(job(line), Some(waits));
        let runs = job("18|n|RUNNING|1764144000|1-02:00:00|0|None").unwrap();
        assert_eq!(runs.time_limit, Some(Millis::from_minutes(26 * 60)));
        let odd = "19|n|PENDING|N/A|UNLIMITED|0|ReqNodeNotAvail, UnavailableNodes:n[1-2]|x";
        let odd = job(odd).unwrap();
        assert_eq!((odd.starts_at, odd.time_limit), (None, None));
        assert!(odd.reason.ends_with("n[1-2]|x"), "{}", odd.reason);
        assert_eq!(job("slurm_load_jobs error: something"), None);
    }

    #[test]
    fn a_node_is_up_if_jobs_may_run_there() {
        for (state, is_up) in [
            ("idle", true),
            ("mix", true),
            ("alloc", true),
            ("idle~", true),
            ("down*", false),
            ("idle*", false),
            ("drng", false),
        ] {
            let line = format!("n1 |{state} |gpu:l4:2(S:0,1) |gpu:l4:1(IDX:0)\n");
            let node = node(&line).unwrap();
            assert_eq!((&*node.name, node.is_up), ("n1", is_up), "{state}");
            assert_eq!(node.gres, "gpu:l4:2(S:0,1)");
            assert_eq!(node.gres_used, "gpu:l4:1(IDX:0)");
        }
        assert_eq!(node("n1|idle"), None);
    }
}
