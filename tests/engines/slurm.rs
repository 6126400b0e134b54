//! What the tests of sessions on Slurm rely on: that their cluster does as clusters do.

mod cluster;
mod faults;
mod host;
mod rest;
mod restd;
mod servers;
mod stand_in;
mod stories;
mod storm;
mod thousands;

use std::path::Path;
use std::time::{Duration, Instant};

use cluster::{Cluster, NODES, slurm};

/// Runs until it is ended.
const FOREVER: &str = "exec sleep infinity";

/// A file that a job writes to, once it has.
async fn written(file: &Path) -> String {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.ends_with('\n') {
            return text;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{file:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().len()
}

/// Does it get longer?
async fn grows(file: &Path) {
    let (before, began) = (length(file), Instant::now());
    while length(file) == before {
        assert!(began.elapsed() < Duration::from_secs(20), "{file:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes to it as long as it lives.
fn ticks(file: &Path) -> String {
    format!("while :; do echo; sleep 0.05; done > {}", file.display())
}

#[tokio::test]
async fn a_job_runs_at_once_and_sees_the_gpus_it_asked_for() {
    let slurm = slurm();
    let _guard = slurm.shared().await;
    let sees = slurm.file("sees");
    let line = format!(
        "echo $SLURM_JOB_ID $CUDA_VISIBLE_DEVICES > {}",
        sees.display()
    );
    let began = Instant::now();
    let id = slurm.submit(&["--gres=gpu:a10g:2"], &line);
    let words = written(&sees).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    let (job, gpus) = words.trim().split_once(' ').unwrap();
    assert_eq!(job, id);
    let gpus: Vec<u32> = gpus.split(',').map(|gpu| gpu.parse().unwrap()).collect();
    assert!(
        gpus.len() == 2 && gpus[0] < gpus[1] && gpus[1] < 4,
        "{gpus:?}"
    );
    slurm.becomes(&id, "COMPLETED").await;
}

#[tokio::test]
async fn a_job_for_which_nothing_is_free_waits_and_it_says_for_what() {
    let slurm = slurm();
    let _guard = slurm.alone().await;
    let first = slurm.submit(&["--gres=gpu:l4:2"], FOREVER);
    slurm.becomes(&first, "RUNNING").await;
    let second = slurm.submit(&["--gres=gpu:l4:1"], FOREVER);
    let waits = |job: &serde_json::Value| job["state_reason"] == "Resources";
    let job = slurm.until(&second, waits).await;
    assert_eq!(job["job_state"], "PENDING");
    slurm.command(&["scancel", &first]);
    slurm.becomes(&second, "RUNNING").await;
    slurm.command(&["scancel", &second]);
    slurm.becomes(&second, "CANCELLED").await;
}

#[tokio::test]
async fn what_no_host_has_is_refused() {
    let slurm = slurm();
    let _guard = slurm.shared().await;
    let options = ["--gres=gpu:l4:3", "--wrap", FOREVER];
    let refused = slurm.asked(&[&["sbatch", "--parsable"], &options[..]].concat());
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("Requested node configuration"), "{said}");
}

#[tokio::test]
async fn a_job_that_is_cancelled_is_told_and_then_killed() {
    let slurm = slurm();
    let _guard = slurm.shared().await;
    let told = slurm.file("told");
    let line = format!(
        "trap 'echo TERM >> {0}' TERM; echo runs > {0}; while :; do sleep 0.1; done",
        told.display()
    );
    let id = slurm.submit(&[], &line);
    written(&told).await;
    slurm.command(&["scancel", &id]);
    slurm.becomes(&id, "COMPLETING").await;
    let job = slurm.becomes(&id, "CANCELLED").await;
    assert_eq!(job["exit_code"], 9, "{job}");
    assert_eq!(written(&told).await, "runs\nTERM\n");
}

#[tokio::test]
async fn a_suspended_job_stands_still_until_it_is_resumed() {
    let slurm = slurm();
    let _guard = slurm.shared().await;
    let file = slurm.file("suspended");
    let id = slurm.submit(&["--gres=gpu:a10g:1"], &ticks(&file));
    written(&file).await;
    slurm.suspend(&id);
    slurm.becomes(&id, "SUSPENDED").await;
    let before = length(&file);
    let other = slurm.submit(&[], "sleep 0.3");
    slurm.becomes(&other, "COMPLETED").await;
    assert_eq!(length(&file), before);
    slurm.resume(&id);
    slurm.becomes(&id, "RUNNING").await;
    grows(&file).await;
    slurm.command(&["scancel", &id]);
    slurm.becomes(&id, "CANCELLED").await;
}

#[tokio::test]
async fn jobs_go_on_while_the_controller_is_dead_or_does_not_answer() {
    let slurm = slurm();
    let _guard = slurm.alone().await;
    let file = slurm.file("controller");
    let id = slurm.submit(&["--gres=gpu:a10g:1"], &ticks(&file));
    let before = slurm.becomes(&id, "RUNNING").await;
    written(&file).await;
    slurm.is_saved().await;

    slurm.kill_slurmctld();
    assert!(!slurm.asked(&["scontrol", "ping"]).status.success());
    grows(&file).await;
    slurm.slurmctld_comes_back();
    let after = slurm.becomes(&id, "RUNNING").await;
    assert_eq!(after["start_time"], before["start_time"]);

    slurm.pause_slurmctld();
    grows(&file).await;
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| slurm.job(&id));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!asked.is_finished(), "it answers");
        slurm.resume_slurmctld();
        let job = asked.join().unwrap().unwrap();
        assert_eq!(job["job_state"], "RUNNING");
    });
    slurm.command(&["scancel", &id]);
    slurm.becomes(&id, "CANCELLED").await;
}

/// It says the id of a job some seconds before it has written it down, and does not write
/// down at once what it started.
#[tokio::test]
async fn a_controller_that_is_killed_may_forget_a_job_or_start_it_twice() {
    let slurm = Cluster::with("");
    let partition = |state: &str| {
        let state = format!("State={state}");
        slurm.command(&["scontrol", "update", "PartitionName=gpu", &state]);
    };
    let file = slurm.file("starts");
    partition("DOWN");
    let one = slurm.submit(&[], &format!("echo start >> {}; {FOREVER}", file.display()));
    slurm.is_saved().await;
    let saved = slurm.saved();
    partition("UP");
    slurm.becomes(&one, "RUNNING").await;
    written(&file).await;
    let other = slurm.submit(&[], FOREVER);

    slurm.kill_slurmctld();
    slurm.restore(&saved);
    slurm.slurmctld_comes_back();
    assert_eq!(slurm.job(&other), None);
    assert_eq!(slurm.submit(&["--hold"], FOREVER), other);
    partition("UP");
    let began = Instant::now();
    while written(&file).await != "start\nstart\n" {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn jobs_go_on_while_their_hosts_slurmd_is_dead() {
    let slurm = slurm();
    let _guard = slurm.alone().await;
    let file = slurm.file("slurmd");
    let id = slurm.submit(&["--nodelist=n2"], &ticks(&file));
    written(&file).await;
    slurm.kill_slurmd("n2");
    grows(&file).await;
    slurm.slurmd_comes_back("n2");
    grows(&file).await;
    slurm.becomes(&id, "RUNNING").await;
    slurm.command(&["scancel", &id]);
    slurm.becomes(&id, "CANCELLED").await;
}

#[tokio::test]
async fn a_job_whose_host_loses_power_is_said_to_have_failed_with_it() {
    let slurm = Cluster::with("");
    let file = slurm.file("host");
    let id = slurm.submit(&["--nodelist=n3"], &ticks(&file));
    written(&file).await;
    slurm.node_dies("n3");
    let job = slurm.becomes(&id, "NODE_FAIL").await;
    assert_eq!(job["batch_host"], "n3");
    let before = length(&file);
    slurm.node_comes_back("n3");
    let next = slurm.submit(&["--nodelist=n3"], "true");
    slurm.becomes(&next, "COMPLETED").await;
    assert_eq!(length(&file), before, "it goes on");
}

#[tokio::test]
async fn an_urgent_job_takes_what_another_has() {
    let slurm = slurm();
    let _guard = slurm.alone().await;
    let told = slurm.file("preempted");
    let line = format!(
        "trap 'echo TERM >> {0}' TERM; echo runs > {0}; while :; do sleep 0.1; done",
        told.display()
    );
    let one = slurm.submit(&["--gres=gpu:l4:2"], &line);
    written(&told).await;
    let other = slurm.submit(&["--gres=gpu:l4:1", "--partition=urgent"], FOREVER);
    slurm.becomes(&one, "PREEMPTED").await;
    slurm.becomes(&other, "RUNNING").await;
    assert_eq!(written(&told).await, "runs\nTERM\n");
    slurm.command(&["scancel", &other]);
    slurm.becomes(&other, "CANCELLED").await;
}

#[tokio::test]
async fn a_job_that_ended_long_ago_is_not_known() {
    let slurm = Cluster::with("MinJobAge=2");
    let id = slurm.submit(&[], "true");
    slurm.becomes(&id, "COMPLETED").await;
    slurm.forgets(&id).await;
    for words in [
        ["squeue", "--jobs", &id],
        ["scontrol", "show", &format!("job={id}")],
    ] {
        let said = slurm.asked(&words);
        assert_eq!(said.status.code(), Some(1), "{words:?}");
        let said = String::from_utf8(said.stderr).unwrap();
        assert!(said.contains("Invalid job id specified"), "{said}");
    }
}

#[tokio::test]
async fn ids_of_jobs_come_again() {
    let slurm = Cluster::with("MinJobAge=2\nFirstJobId=7\nMaxJobId=9");
    let first = slurm.submit(&[], "true");
    assert_eq!(first, "7");
    slurm.becomes(&first, "COMPLETED").await;
    slurm.forgets(&first).await;
    let ids: Vec<String> = (0..2).map(|_| slurm.submit(&[], "true")).collect();
    assert_eq!(ids, ["8", "7"]);
}

#[tokio::test]
async fn clusters_know_nothing_of_each_other() {
    let (one, other) = (Cluster::with(""), Cluster::with(""));
    let gpus: u32 = NODES.iter().map(|gpus| gpus.count).sum();
    for cluster in [&one, &other] {
        let ids: Vec<String> = (0..gpus)
            .map(|_| cluster.submit(&["--gres=gpu:1"], FOREVER))
            .collect();
        for id in &ids {
            cluster.becomes(id, "RUNNING").await;
        }
    }
    drop(one);
    assert_eq!(other.jobs().len(), 10);
}
