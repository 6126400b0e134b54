//! Clients at work while Slurm's daemons and the server are killed at random.
//! `DWELL_SLURM_SECONDS` is for how long, `DWELL_SLURM_SEED` which storm.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;

use super::cluster::{Cluster, NODES};
use super::servers::{Manner, nothing_is_left, server_of};
use crate::client::number;
use crate::harness::{DWELL, Server, here};
use crate::storm::{audit, weathered};

/// The clients' `CPU` is what the cluster has least of.
const TYPES: &str = "gpus = { A10G = \"gpu:a10g\", CPU = \"gpu:l4\" }";
const OF_TYPE: [(&str, usize); 2] = [("A10G", 8), ("CPU", 2)];

fn rage(cluster: &Cluster, mut server: Server, mut rng: Rng, until: Instant) -> Server {
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(rng.u64(500..3_000)));
        let span = Duration::from_millis(rng.u64(100..3_000));
        match rng.u8(..4) {
            0 => {
                server.kill();
                std::thread::sleep(span / 2);
                server.restart();
            }
            1 => {
                cluster.kill_slurmctld();
                std::thread::sleep(span);
                cluster.slurmctld_comes_back();
            }
            2 => {
                cluster.pause_slurmctld();
                std::thread::sleep(span);
                cluster.resume_slurmctld();
            }
            _ => {
                let node = NODES[rng.usize(..NODES.len())].node;
                cluster.kill_slurmd(node);
                std::thread::sleep(span);
                cluster.slurmd_comes_back(node);
            }
        }
    }
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_in_a_storm_holds_and_nothing_is_left() {
    let seed = number("DWELL_SLURM_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = number("DWELL_SLURM_SECONDS").unwrap_or(45);
    eprintln!("storm {seed} for {seconds} s; again with DWELL_SLURM_SEED={seed}");
    let rng = Rng::with_seed(seed);
    let cluster = Arc::new(Cluster::with("MessageTimeout=2"));
    let starts = cluster.file("app-starts");
    let app = |name: &str| {
        let app = here(&format!("tests/apps/{name}"));
        let line = format!(
            "echo $DWELL_SESSION_ID >> {}; exec python3 -S {}",
            starts.display(),
            app.display()
        );
        json!(["sh", "-c", line])
    };
    let manner = Manner {
        launcher: format!("moves_time_limits = true\nagent = \"{DWELL}\"\n"),
        gpus: TYPES,
        ..Manner::default()
    };
    let server = server_of(&cluster, &manner);
    let raging = Arc::clone(&cluster);
    let rage = move |server, rng, until| rage(&raging, server, rng, until);
    let (server, ledger) = weathered(server, seconds, rng, app, rage).await;
    let ids = audit(&server, &ledger, OF_TYPE).await;
    nothing_is_left(&cluster, &ids).await;
    let started = std::fs::read_to_string(starts).unwrap();
    let mut seen = BTreeSet::new();
    for id in started.lines() {
        assert!(seen.insert(id), "{id} was started twice");
    }
}
