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
    pub errors: Vec<Fault>,
    pub job_id: Option<u64>,
    pub jobs: Vec<WireJob>,
    pub nodes: Vec<WireNode>,
}

/// Something that went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fault {
    description: Option<String>,
    error: Option<String>,
}

impl Answer {
    /// This, unless it says that something went wrong.
    pub(super) fn done(self) -> Result<Self, SlurmError> {
        if self.errors.is_empty() {
            return Ok(self);
        }
        let mut words: Vec<&str> = Vec::new();
        for fault in &self.errors {
            for said in [&fault.description, &fault.error].into_iter().flatten() {
                if !said.is_empty() && !words.iter().any(|it| it.contains(&**said)) {
                    words.push(said);
                }
            }
        }
        Err(SlurmError::saying(match words.as_slice() {
            [] => "Unspecified error".to_owned(),
            words => words.join("; "),
        }))
    }
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
    pub user_name: Option<String>,
    #[serde(default)]
    partition: Option<String>,
    #[serde(default)]
    tres_per_node: Option<String>,
}

impl WireJob {
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
