//! From asking for an app on a node to its answering: as a session, and by `sbatch`.

#[expect(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/engines/slurm/cluster.rs"]
mod cluster;
#[expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/engines/slurm/host.rs"]
mod host;
pub mod thousands;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::by_hand::free_address;
use crate::http::until_it_answers;
use crate::server::{Server, Session, beside};
use crate::statistics::{Sample, millis};
use crate::{Figure, Result};
use cluster::Cluster;

const ROUNDS: usize = 20;
/// A GPU, as sessions ask for it and as a person does.
const GPU: &str = "gpu:a10g";

/// One at a time, in turn, on the same cluster: the same app.
pub fn slurm(dwell: &Path) -> Result<Vec<Figure>> {
    let cluster = Cluster::with("");
    let agent = beside("dwell-agent")?;
    let launcher = format!(
        "kind = \"slurm\"\ngpus = {{ CPU = \"{GPU}\" }}\nagent = \"{}\"\n",
        agent.display()
    );
    let server = Server::start_for(&launcher, "127.0.0.1:0", dwell, cluster.environment())?;
    let mut api = server.connect()?;
    let app = beside("hello")?.display().to_string();
    let command = [app.clone()];
    let gres = format!("--gres={GPU}:1");
    let submit = |line: &str| cluster.submit(&[&gres], line);
    let (mut sessions, mut runs, mut answers) =
        (Sample::default(), Sample::default(), Sample::default());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let session = Session::create(&mut api, &command)?;
        until_it_answers(&session.address)?;
        sessions.push(began.elapsed());
        session.end(&mut api)?;
        nothing_runs(&cluster);

        let began = Instant::now();
        let job = submit("exec sleep infinity");
        while cluster.command(&["squeue", "--noheader", "--format=%T", "--jobs", &job]) != "RUNNING"
        {
        }
        runs.push(began.elapsed());
        cancel(&cluster, &job);

        let address = free_address().ok_or("no port is free")?;
        let line = format!("PORT={} exec {app}", address.port());
        let began = Instant::now();
        let job = submit(&line);
        until_it_answers(&address.to_string())?;
        answers.push(began.elapsed());
        cancel(&cluster, &job);
    }
    let beside = |what: &str, sample: &Sample| {
        let more = millis(sessions.quantile(0.5)) - millis(sample.quantile(0.5));
        Figure {
            what: what.to_owned(),
            measured: format!("{}; {more:+.1} ms", sample.summary()),
        }
    };
    Ok(vec![
        Figure {
            what: "create → URL answers, an app that starts in 1 ms, by Slurm".to_owned(),
            measured: sessions.summary(),
        },
        beside("sbatch → squeue says RUNNING", &runs),
        beside("sbatch → the app answers", &answers),
    ])
}

fn cancel(cluster: &Cluster, job: &str) {
    cluster.command(&["scancel", job]);
    nothing_runs(cluster);
}

/// Until what is measured next has the cluster for itself.
fn nothing_runs(cluster: &Cluster) {
    while !cluster.command(&["squeue", "--noheader"]).is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
}
