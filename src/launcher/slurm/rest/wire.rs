//! What slurmrestd says and takes. Its versions differ: up to 0.0.38 numbers and states are
//! bare, from 0.0.40 on numbers say whether they are set, and a state is several words. What is of
//! yet another kind is as if it were not said.

use dwell_core::time::{Millis, Timestamp};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::super::interface::{Batch, Node, SlurmError};
use super::super::job::{Job, exit_status};

/// The versions that are spoken, the newest first.
pub(super) const VERSIONS: [Version; 7] = [
    Version(45),
    Version(44),
    Version(43),
    Version(42),
    Version(41),
    Version(40),
    Version(38),
];

/// A version of the API: the last number of `0.0.N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version(u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v0.0.{}", self.0)
    }
}

/// What jobs find besides what Slurm itself tells them. One without any environment is
/// refused, and the server's own is of another host.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Version {
    const fn is_bare(self) -> bool {
        self.0 < 39
    }

    /// What a job is submitted by; `more` is of the configuration, which has the last word.
    pub(super) fn submission(self, batch: &Batch<'_>, more: &Value) -> Value {
        let settings = batch.settings;
        let mut job = json!({
            "name": batch.name,
            "comment": batch.comment,
            "time_limit": self.number(batch.minutes),
            "current_working_directory": "/",
            "standard_output": settings.output(),
        });
        // A second run would have the whole of the session's time again.
        if self.is_bare() {
            job["no_requeue"] = json!(true);
            job["environment"] = json!({"PATH": PATH});
        } else {
            job["requeue"] = json!(false);
            job["environment"] = json!([format!("PATH={PATH}")]);
        }
        let gres = if self.is_bare() {
            "gres"
        } else {
            "tres_per_node"
        };
        let named = [
            ("partition", settings.partition.clone().map(Value::from)),
            ("account", settings.account.clone().map(Value::from)),
            ("qos", settings.qos.clone().map(Value::from)),
            ("cpus_per_task", settings.cpus.map(Value::from)),
            (
                "memory_per_node",
                batch.memory_mib.map(|mib| self.number(mib)),
            ),
            (gres, batch.gres.as_ref().map(|gres| self.gres(gres))),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                job[name] = value;
            }
        }
        for (name, value) in more.as_object().into_iter().flatten() {
            job[name] = value.clone();
        }
        json!({"script": batch.script, "job": job})
    }

    /// What moves a job's time limit.
    pub(super) fn limit(self, minutes: u64) -> Value {
        json!({"time_limit": self.number(minutes)})
    }

    fn number(self, number: u64) -> Value {
        if self.is_bare() {
            json!(number)
        } else {
            json!({"set": true, "infinite": false, "number": number})
        }
    }

    fn gres(self, gres: &str) -> Value {
        if self.is_bare() {
            json!(gres)
        } else {
            json!(format!("gres/{gres}"))
        }
    }
}

/// Any answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    errors: Vec<Fault>,
    /// What became of each job that was to be ended, since version 0.0.41.
    status: Option<Vec<Outcome>>,
    /// What became of each job that was to be changed.
    results: Option<Vec<Fault>>,
    pub job_id: Option<u64>,
    jobs: Option<Vec<WireJob>>,
    nodes: Option<Vec<WireNode>>,
}

/// Something that went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fault {
    description: Option<String>,
    error: Option<String>,
    error_code: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outcome {
    error: OutcomeError,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OutcomeError {
    code: i64,
    string: Option<String>,
}

/// What says no more than that something went wrong.
const NOTHING_NEW: &str = "Batch job submission failed";

impl Answer {
    /// The jobs that it tells of.
    pub(super) fn jobs(self) -> Result<Vec<WireJob>, SlurmError> {
        self.jobs.ok_or_else(|| tells_of_no("jobs"))
    }

    /// The nodes that it tells of.
    pub(super) fn nodes(self) -> Result<Vec<WireNode>, SlurmError> {
        self.nodes.ok_or_else(|| tells_of_no("nodes"))
    }

    /// Whether it says that something went wrong with the request as a whole.
    pub(super) const fn is_error(&self) -> bool {
        !self.errors.is_empty()
    }

    /// This, unless it says that anything went wrong.
    pub(super) fn done(self) -> Result<Self, SlurmError> {
        let of_errors = self.errors.iter();
        let of_errors = of_errors.map(|fault| [&fault.description, &fault.error]);
        let of_results = self.results.iter().flatten();
        let of_results = of_results.filter(|fault| fault.error_code.is_some_and(|it| it != 0));
        let of_results = of_results.map(|fault| [&fault.description, &fault.error]);
        let of_outcomes = self.status.iter().flatten().map(|it| &it.error);
        let of_outcomes = of_outcomes.filter(|error| error.code != 0);
        let of_outcomes = of_outcomes.map(|error| [&None, &error.string]);
        let mut faults = of_errors.chain(of_results).chain(of_outcomes).peekable();
        if faults.peek().is_none() {
            drop(faults);
            return Ok(self);
        }
        let mut words: Vec<&str> = Vec::new();
        for said in faults.flatten().flatten() {
            if !said.is_empty()
                && said != NOTHING_NEW
                && !words.iter().any(|it| it.contains(&**said))
            {
                words.push(said);
            }
        }
        Err(SlurmError::saying(match words.as_slice() {
            [] => "Unspecified error".to_owned(),
            words => words.join("; "),
        }))
    }
}

/// That nothing is said of them does not mean that there are none.
fn tells_of_no(what: &str) -> SlurmError {
    SlurmError::Unclear(format!("slurmrestd answers, and not of {what}"))
}

/// A job, of anybody's.
#[derive(Debug, Deserialize)]
pub(super) struct WireJob {
    job_id: Option<u64>,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    job_state: Words,
    #[serde(default)]
    state_reason: Words,
    #[serde(default)]
    start_time: Number,
    #[serde(default)]
    time_limit: Number,
    #[serde(default)]
    exit_code: Exit,
    #[serde(default)]
    user_name: Option<String>,
    #[serde(default)]
    partition: Option<String>,
    #[serde(default)]
    tres_per_node: Option<String>,
}

impl WireJob {
    /// Whether it is of somebody else than `user`. The host of slurmrestd need not know
    /// every user's name.
    pub(super) fn is_of_another(&self, user: &str) -> Option<&str> {
        let whose = self.user_name.as_deref().unwrap_or_default();
        Some(whose).filter(|whose| !whose.is_empty() && *whose != user)
    }

    /// As it is read whichever way Slurm is asked. `None` of a part of an array of jobs.
    pub(super) fn job(self) -> Option<Job> {
        /// Slurm's word for "none", where a number has no other.
        const NO_VALUE: u64 = 0xffff_fffe;
        let started = self.start_time.get().filter(|seconds| *seconds > 0);
        let minutes = self.time_limit.get().filter(|it| *it < NO_VALUE);
        Some(Job {
            id: self.job_id?.to_string(),
            name: self.name.unwrap_or_default(),
            state: self.job_state.joined(),
            reason: self.state_reason.joined(),
            starts_at: started
                .and_then(|seconds| i64::try_from(seconds).ok())
                .map(|seconds| Timestamp(seconds * 1_000)),
            time_limit: minutes.map(|minutes| Millis::from_seconds(minutes * 60)),
            exit_status: self.exit_code.status(),
        })
    }

    /// What it asks of each node, if it waits, in this partition if that is one.
    pub(super) fn waits_for(self, partition: Option<&str>) -> Option<String> {
        // Several, where it may run in any of them.
        let may_run_in = self.partition.unwrap_or_default();
        let is_there = |partition: &str| may_run_in.split(',').any(|it| it == partition);
        let waits = self.job_state.0.iter().any(|word| word == "PENDING");
        let is_meant = waits && partition.is_none_or(is_there);
        is_meant.then_some(self.tres_per_node.unwrap_or_default())
    }
}

/// A node.
#[derive(Debug, Deserialize)]
pub(super) struct WireNode {
    name: String,
    #[serde(default)]
    state: Words,
    #[serde(default)]
    state_flags: Words,
    #[serde(default)]
    partitions: Words,
    #[serde(default)]
    gres: Option<String>,
    #[serde(default)]
    gres_used: Option<String>,
}

/// Where no job may start, whatever else is said of a node.
const NOT_UP: [&str; 8] = [
    "DOWN",
    "DRAIN",
    "FAIL",
    "NOT_RESPONDING",
    "INVALID_REG",
    "MAINTENANCE",
    "RESERVED",
    "UNKNOWN",
];

impl WireNode {
    /// As it is read whichever way Slurm is asked, if it is of this partition.
    pub(super) fn node(self, partition: Option<&str>) -> Option<Node> {
        let is_there = |partition: &str| self.partitions.0.iter().any(|it| it == partition);
        if !partition.is_none_or(is_there) {
            return None;
        }
        let words = self.state.0.iter().chain(&self.state_flags.0);
        let words: Vec<String> = words.map(|word| word.to_ascii_uppercase()).collect();
        let is = |any: &[&str]| words.iter().any(|word| any.contains(&&**word));
        Some(Node {
            name: self.name,
            is_up: is(&["IDLE", "MIXED", "ALLOCATED"]) && !is(&NOT_UP),
            gres: self.gres.unwrap_or_default(),
            gres_used: self.gres_used.unwrap_or_default(),
        })
    }
}

/// One word, or several.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "AnyWords")]
struct Words(Vec<String>);

impl Words {
    fn joined(&self) -> String {
        self.0.join(" ")
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AnyWords {
    One(String),
    Several(Vec<String>),
    Other(IgnoredAny),
}

impl From<AnyWords> for Words {
    fn from(words: AnyWords) -> Self {
        match words {
            AnyWords::One(word) => Self(vec![word]),
            AnyWords::Several(words) => Self(words),
            AnyWords::Other(_) => Self::default(),
        }
    }
}

/// A number, or none.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Number {
    Bare(u64),
    Said {
        set: bool,
        #[serde(default)]
        infinite: bool,
        number: u64,
    },
    Other(IgnoredAny),
}

impl Default for Number {
    fn default() -> Self {
        Self::Other(IgnoredAny)
    }
}

impl Number {
    const fn get(self) -> Option<u64> {
        match self {
            Self::Bare(number)
            | Self::Said {
                set: true,
                infinite: false,
                number,
            } => Some(number),
            Self::Said { .. } | Self::Other(_) => None,
        }
    }
}

/// How a job's script ended.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Exit {
    /// As `wait()` has it.
    Waited(i32),
    Said {
        return_code: Number,
    },
    Other(IgnoredAny),
}

impl Default for Exit {
    fn default() -> Self {
        Self::Other(IgnoredAny)
    }
}

impl Exit {
    fn status(&self) -> Option<i32> {
        match self {
            Self::Waited(status) => Some(exit_status(*status)),
            Self::Said { return_code } => return_code.get()?.try_into().ok(),
            Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::SlurmSettings;
    use super::*;

    const OLD: Version = Version(38);
    const NEW: Version = Version(43);

    fn answer(json: Value) -> Answer {
        serde_json::from_value(json).unwrap()
    }

    /// As version 22.05 said it, and 25.05, of the same job but for the numbers.
    #[test]
    fn a_job_is_read_whichever_version_says_it() {
        let job = |json: Value| {
            answer(json!({"jobs": [json]}))
                .jobs()
                .unwrap()
                .remove(0)
                .job()
        };
        let old = job(json!({
            "job_id": 17, "name": "a-b", "job_state": "FAILED", "state_reason": "NonZeroExitCode",
            "start_time": 1_795_744_317, "time_limit": 3, "exit_code": 20992,
            "user_name": "root", "partition": "gpu", "tres_per_node": "gres:gpu:a10g:1"
        }));
        let number = |number: u64| json!({"set": true, "infinite": false, "number": number});
        let new = job(json!({
            "job_id": 17, "name": "a-b", "job_state": ["FAILED"],
            "state_reason": "NonZeroExitCode", "start_time": number(1_795_744_317),
            "time_limit": number(3), "user_name": "root", "partition": "gpu",
            "exit_code": {"status": ["ERROR"], "return_code": number(82),
                          "signal": {"id": {"set": false, "infinite": false, "number": 0},
                                     "name": ""}},
            "tres_per_node": "gres/gpu:a10g:1"
        }));
        let read = Job {
            id: "17".into(),
            name: "a-b".into(),
            state: "FAILED".into(),
            reason: "NonZeroExitCode".into(),
            starts_at: Some(Timestamp(1_795_744_317_000)),
            time_limit: Some(Millis::from_minutes(3)),
            exit_status: Some(82),
        };
        assert_eq!(old, Some(read.clone()));
        assert_eq!(new, Some(read));
    }

    #[test]
    fn what_is_not_said_or_not_known_is_nothing_and_hides_no_other_job() {
        let none = json!({"set": false, "infinite": true, "number": 0});
        let jobs = answer(json!({"jobs": [
            {"job_id": null, "name": "part of an array"},
            {"job_id": 1, "job_state": ["PENDING", "REQUEUED"], "start_time": 0,
             "time_limit": 4_294_967_294_u64, "exit_code": null, "state_reason": null},
            {"job_id": 2, "job_state": {"odd": 1}, "start_time": none, "time_limit": none,
             "exit_code": "odd", "state_reason": ["Priority"], "user_name": null},
        ]}));
        let jobs: Vec<_> = jobs
            .jobs()
            .unwrap()
            .into_iter()
            .filter_map(WireJob::job)
            .collect();
        let read = |id: &str, state: &str, reason: &str| Job {
            id: id.into(),
            state: state.into(),
            reason: reason.into(),
            ..Job::default()
        };
        let wanted = [read("1", "PENDING REQUEUED", ""), read("2", "", "Priority")];
        assert_eq!(jobs, wanted);
    }

    #[test]
    fn a_job_that_waits_asks_for_gpus_in_its_partitions() {
        let waits = |state: &str, partition: &str| {
            let job = json!({"job_id": 1, "job_state": state, "partition": partition,
                             "tres_per_node": "gres:gpu:l4:1"});
            let job = answer(json!({"jobs": [job]})).jobs().unwrap().remove(0);
            job.waits_for(Some("gpu")).is_some()
        };
        assert!(waits("PENDING", "gpu") && waits("PENDING", "cpu,gpu"));
        assert!(!waits("RUNNING", "gpu") && !waits("PENDING", "gpus"));
    }

    #[test]
    fn a_node_is_up_if_jobs_may_run_there_whichever_version_says_it() {
        let node = |state: Value, flags: Value| {
            let node = json!({"name": "n1", "state": state, "state_flags": flags,
                              "partitions": ["gpu", "urgent"], "gres": "gpu:a10g:4",
                              "gres_used": "gpu:a10g:1(IDX:0)"});
            answer(json!({"nodes": [node]})).nodes().unwrap().remove(0)
        };
        for (state, flags, is_up) in [
            (json!("mixed"), json!([]), true),
            (json!("idle"), json!(["DRAIN"]), false),
            (json!("down"), json!(["NOT_RESPONDING"]), false),
            (json!(["MIXED", "PLANNED"]), json!(null), true),
            (json!(["IDLE", "DRAIN"]), json!(null), false),
            (json!(["ALLOCATED", "COMPLETING"]), json!(null), true),
        ] {
            let read = node(state.clone(), flags).node(Some("gpu")).unwrap();
            assert_eq!((read.is_up, &*read.gres), (is_up, "gpu:a10g:4"), "{state}");
        }
        let elsewhere = node(json!("idle"), json!([])).node(Some("cpu"));
        assert_eq!(elsewhere, None);
    }

    #[test]
    fn what_goes_wrong_is_said_in_slurms_words_wherever_they_stand() {
        let trouble = |json: Value| answer(json).done().err();
        let refused = |words: &str| Some(SlurmError::Refused(words.to_owned()));
        let fine = json!({"errors": [], "warnings": [{"description": "odd"}], "results": null,
                          "status": [{"error": {"string": "No error", "code": 0}}]});
        assert_eq!(trouble(fine), None);
        for (json, words) in [
            (
                json!({"errors": [{"description": "Batch job submission failed",
                                   "error": "Invalid partition name specified"}]}),
                "Invalid partition name specified",
            ),
            (
                json!({"errors": [{"description": "Unknown key \"bogus\""},
                                  {"error": "Failure during parsing"}]}),
                "Unknown key \"bogus\"; Failure during parsing",
            ),
            (
                json!({"errors": [], "results": [{"job_id": 1, "error_code": 2010,
                                                  "error": "Access denied"}]}),
                "Access denied",
            ),
        ] {
            assert_eq!(trouble(json), refused(words));
        }
        let gone = json!({"errors": [], "status": [
            {"error": {"string": "Job/step already completing or completed", "code": 2021},
             "job_id": {"set": true, "infinite": false, "number": 1}}]});
        assert!(trouble(gone).unwrap().is_of_a_job_that_is_gone());
        for unclear in [
            json!({"errors": [{"description": "Failed while looking for jobs",
                               "error": "Unspecified error"}]}),
            json!({"errors": [{"description": "Unable to query jobs",
                               "error": "Protocol authentication error"}]}),
            json!({"errors": [{}]}),
        ] {
            let trouble = trouble(unclear);
            assert!(
                matches!(trouble, Some(SlurmError::Unclear(_))),
                "{trouble:?}"
            );
        }
    }

    #[test]
    fn a_job_is_told_of_as_each_version_takes_it_and_the_configuration_has_the_last_word() {
        let settings = SlurmSettings {
            partition: Some("gpu".into()),
            cpus: Some(2),
            ..SlurmSettings::default()
        };
        let batch = Batch {
            settings: &settings,
            name: "dwell-a-b",
            comment: "b".into(),
            minutes: 7,
            gres: Some("gpu:l4:1".into()),
            memory_mib: Some(512),
            image: Vec::new(),
            script: "#!/bin/sh".into(),
        };
        let more = json!({"nice": 3, "current_working_directory": "/tmp"});
        let old = json!({"script": "#!/bin/sh", "job": {
            "name": "dwell-a-b", "comment": "b", "time_limit": 7, "partition": "gpu",
            "current_working_directory": "/tmp", "standard_output": "/dev/null",
            "cpus_per_task": 2, "memory_per_node": 512, "gres": "gpu:l4:1", "no_requeue": true,
            "environment": {"PATH": PATH}, "nice": 3
        }});
        assert_eq!(OLD.submission(&batch, &more), old);
        let number = |number: u64| json!({"set": true, "infinite": false, "number": number});
        let new = json!({"script": "#!/bin/sh", "job": {
            "name": "dwell-a-b", "comment": "b", "time_limit": number(7), "partition": "gpu",
            "current_working_directory": "/tmp", "standard_output": "/dev/null",
            "cpus_per_task": 2, "memory_per_node": number(512), "tres_per_node": "gres/gpu:l4:1",
            "requeue": false, "environment": [format!("PATH={PATH}")], "nice": 3
        }});
        assert_eq!(NEW.submission(&batch, &more), new);
    }
}
