//! Servers whose sessions are jobs of Slurm, and what is left of those.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::harness::{DWELL, PATIENCE, Server, app_processes, here};

/// What is said of a cluster, and how fast all goes.
pub struct Manner {
    /// More of `[limits]`.
    pub limits: &'static str,
    /// More of `[[launcher]]`.
    pub launcher: String,
    /// Which GPUs it has.
    pub gpus: &'static str,
    /// More of the server's environment.
    pub environment: Vec<(&'static str, String)>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            limits: "relaunch_after_seconds = 2\nlost_after_seconds = 6",
            launcher: format!("moves_time_limits = true\nagent = \"{DWELL}\""),
            gpus: "gpus = { A10G = \"gpu:a10g\", L4 = \"gpu:l4\" }",
            environment: Vec::new(),
        }
    }
}

impl Manner {
    /// Jobs fetch their agent from the server, and find nothing of earlier ones in `home`.
    pub fn fetching(home: &Path, launcher: &str) -> Self {
        Self {
            // To fetch it may take its time.
            limits: "relaunch_after_seconds = 2\nlost_after_seconds = 60",
            launcher: launcher.to_owned(),
            environment: vec![("HOME", home.display().to_string())],
            ..Self::default()
        }
    }
}

/// A server whose sessions are jobs of this cluster.
pub fn server_of(cluster: &Cluster, manner: &Manner) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let Manner {
        limits,
        launcher,
        gpus,
        ..
    } = manner;
    let config = format!(
        "[limits]\nsessions_per_machine = 300\ngrace_seconds = 0.3\nheartbeat_seconds = 0.5\n\
         {limits}\n[prices]\nA10G = 3600.0\nL4 = 3600.0\n\
         [[launcher]]\nkind = \"slurm\"\npartition = \"gpu\"\nlook_seconds = 0.5\n\
         {gpus}\n{launcher}"
    );
    // However often it starts again.
    let variables = cluster.environment().into_iter();
    let variables = variables.chain(manner.environment.iter().cloned());
    let enter: Vec<String> = std::iter::once("env".to_owned())
        .chain(variables.map(|(name, value)| format!("{name}={value}")))
        .collect();
    let server = Server::try_start_behind(&enter, dir.path(), &config, "127.0.0.1:0", &[], &[]);
    let mut server = server.unwrap();
    server.owns(dir);
    server
}

/// A session of this line of a shell.
pub fn on(gpu: &str, line: &str) -> Value {
    json!({"command": ["sh", "-c", line], "gpu": gpu, "timeout": 5})
}

/// One that answers.
pub fn web(gpu: &str) -> Value {
    let app = here("tests/apps/serve.py");
    on(gpu, &format!("exec python3 -S {}", app.display()))
}

/// No process of them is left, nor a job that is not over.
pub async fn nothing_is_left(cluster: &Cluster, sessions: &[String]) {
    let is_over = |job: &Value| {
        let state = job["job_state"].as_str().unwrap();
        ![
            "PENDING",
            "CONFIGURING",
            "RUNNING",
            "SUSPENDED",
            "COMPLETING",
        ]
        .contains(&state)
    };
    let is_ours = |job: &Value| sessions.iter().any(|id| job["comment"] == **id);
    let began = Instant::now();
    loop {
        let processes = app_processes(sessions);
        let jobs = cluster.jobs();
        let jobs: Vec<_> = jobs
            .iter()
            .filter(|job| is_ours(job) && !is_over(job))
            .collect();
        if processes.is_empty() && jobs.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "left: {processes:?} {jobs:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
