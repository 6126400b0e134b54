//! What can go wrong with sessions in batch jobs: Slurm's daemons, its operators, its hosts,
//! the server, each alone.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::cluster::{Cluster, slurm};
use super::servers::{Manner, nothing_is_left, on, server_of, web};
use crate::harness::{Server, app_processes, processes, signal};
use crate::seen::{
    event_is_true, extended, job_of, queued, sentence, served, was_told_to_end, with_job, words,
};

/// Slurm's commands give a controller that is away less time.
pub const IMPATIENT: &str = "MessageTimeout=2";

/// It uses them again soon.
pub const FEW_IDS: &str = "MinJobAge=2\nFirstJobId=7\nMaxJobId=10";

/// One session that runs, and its job.
async fn running(server: &Server, gpu: &str) -> (String, String) {
    let id = server.api.create_with(web(gpu)).await;
    let job = job_of(&server.api.running(&id).await);
    (id, job)
}

/// Its app answers, now.
async fn answers(server: &Server, id: &str) {
    let session = server.api.session(id).await;
    assert_eq!(session["status"], "running", "{session}");
    assert_eq!(served(&server.api, &session).await, "hello");
}

/// The agent of a session's job, and the first process that it keeps its app with.
fn agents_of(id: &str) -> Vec<u32> {
    processes(|command, environment| {
        command.contains("agent") && environment.contains(id) && !command.contains("serve.py")
    })
}

/// Its agent heard that the job is to end, and Slurm says why.
async fn ends_as_told(server: &Server, id: &str, why: &str) {
    let ended = server.api.ended(id).await;
    was_told_to_end(&ended);
    let says_why = |session: &Value| words(session).iter().any(|it| it.starts_with(why));
    let later = server.api.until(id, says_why).await;
    assert_eq!(later["ended_at"], ended["ended_at"], "{later}");
    event_is_true(&server.api, id).await;
}

// --- Operators ------------------------------------------------------------------

#[tokio::test]
async fn a_job_that_an_operator_cancels_ends_its_session_with_a_sentence() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, &Manner::default());
    let (id, job) = running(&server, "A10G").await;
    cluster.command(&["scancel", &job]);
    ends_as_told(&server, &id, "CANCELLED").await;

    // One that waits has used nothing.
    let held = cluster.submit(&["--gres=gpu:l4:2"], "exec sleep infinity");
    cluster.becomes(&held, "RUNNING").await;
    let waits = server.api.create_with(web("L4")).await;
    let job = job_of(&queued(&server.api, &waits).await);
    cluster.command(&["scancel", &job]);
    let ended = server.api.ended(&waits).await;
    assert_eq!(ended["end_reason"], "failed", "{ended}");
    assert!(sentence(&ended).contains("CANCELLED"), "{ended}");
    assert_eq!(ended["cost"], 0.0);
    cluster.command(&["scancel", &held]);
    nothing_is_left(cluster, &[id, waits]).await;
}

#[tokio::test]
async fn a_session_whose_gpu_an_urgent_job_takes_ends_and_says_so() {
    let cluster = slurm();
    let _guard = cluster.alone().await;
    let server = server_of(cluster, &Manner::default());
    let (one, _) = running(&server, "L4").await;
    let (two, _) = running(&server, "L4").await;
    let urgent = cluster.submit(
        &["--gres=gpu:l4:2", "--partition=urgent"],
        "exec sleep infinity",
    );
    cluster.becomes(&urgent, "RUNNING").await;
    for id in [&one, &two] {
        ends_as_told(&server, id, "PREEMPTED").await;
    }
    cluster.command(&["scancel", &urgent]);
    nothing_is_left(cluster, &[one, two]).await;
}

#[tokio::test]
async fn a_session_whose_job_is_suspended_is_not_given_up_and_goes_on_when_it_is_resumed() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, &Manner::default());
    let (id, job) = running(&server, "A10G").await;
    cluster.suspend(&job);
    let is_suspended = |session: &Value| words(session).iter().any(|it| it == "SUSPENDED");
    server.api.until(&id, is_suspended).await;
    // Longer than `lost_after`.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(server.api.session(&id).await["status"], "running");
    cluster.resume(&job);
    answers(&server, &id).await;
    let ended = server.api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    nothing_is_left(cluster, &[id]).await;
}

#[tokio::test]
async fn a_session_that_is_suspended_past_its_time_ends_as_soon_as_it_is_resumed() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, &Manner::default());
    let mut body = web("A10G");
    body["timeout"] = 1.into();
    let id = server.api.create_with(body).await;
    let job = job_of(&server.api.running(&id).await);
    cluster.suspend(&job);
    cluster.becomes(&job, "SUSPENDED").await;
    tokio::time::sleep(Duration::from_secs(63)).await;
    cluster.resume(&job);
    let resumed = Instant::now();
    let ended = server.api.ended(&id).await;
    assert!(resumed.elapsed() < Duration::from_secs(10), "{ended}");
    assert_eq!(ended["end_reason"], "timed_out", "{ended}");
    event_is_true(&server.api, &id).await;
    nothing_is_left(cluster, &[id]).await;
}

/// Agent and first process can do nothing; the third that watches the clock is Slurm.
#[tokio::test]
async fn what_neither_its_agent_nor_its_first_process_ends_slurm_ends() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let manner = Manner {
        limits: "relaunch_after_seconds = 2\nlost_after_seconds = 6\nstart_minutes = 0.1",
        ..Manner::default()
    };
    let server = server_of(cluster, &manner);
    let mut body = web("A10G");
    body["timeout"] = 1.into();
    let id = server.api.create_with(body).await;
    let job = job_of(&server.api.running(&id).await);
    let limit = cluster.job(&job).unwrap()["time_limit"].as_u64().unwrap();
    assert!(limit <= 3, "{limit}");
    for agent in agents_of(&id) {
        signal(agent, Signal::SIGSTOP);
    }
    let is_over = |job: &Value| {
        ["TIMEOUT", "CANCELLED", "FAILED"]
            .map(Value::from)
            .contains(&job["job_state"])
    };
    // Slurm looks every half minute.
    let began = Instant::now();
    while !is_over(&cluster.job(&job).unwrap()) {
        assert!(began.elapsed() < Duration::from_secs(60 * limit + 60));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ended = server.api.ended(&id).await;
    assert!(!sentence(&ended).is_empty(), "{ended}");
    event_is_true(&server.api, &id).await;
    nothing_is_left(cluster, &[id]).await;
}

// --- The controller ---------------------------------------------------------------

#[tokio::test]
async fn a_controller_that_is_away_disturbs_no_session_and_new_ones_wait_for_it() {
    let cluster = Cluster::with(IMPATIENT);
    let gone = || cluster.kill_slurmctld();
    let back = || cluster.slurmctld_comes_back();
    nobody_is_disturbed(&cluster, &Manner::default(), gone, back).await;
}

/// While what a server asks is away.
pub async fn nobody_is_disturbed(
    cluster: &Cluster,
    manner: &Manner,
    gone: impl Fn(),
    back: impl Fn(),
) {
    let server = server_of(cluster, manner);
    let (stays, job) = running(&server, "A10G").await;
    let (goes, _) = running(&server, "A10G").await;
    cluster.is_saved().await;
    gone();
    let new = server.api.create_with(web("A10G")).await;
    let unwanted = server.api.create_with(web("A10G")).await;
    assert_eq!(
        server
            .api
            .delete(&format!("/session/{unwanted}"))
            .await
            .status,
        200
    );
    // An agent needs nobody to end its session.
    let ended = server.api.stop(&goes).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    extended(&server.api, &stays, 60).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    answers(&server, &stays).await;
    assert_ne!(server.api.session(&new).await["status"], "ended");
    back();
    server.api.running(&new).await;
    let ended = server.api.ended(&unwanted).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    answers(&server, &stays).await;
    cluster
        .until(&job, |job| job["time_limit"].as_u64() > Some(60))
        .await;
    for id in [&stays, &new] {
        server.api.stop(id).await;
    }
    nothing_is_left(cluster, &[stays, goes, new, unwanted]).await;
}

#[tokio::test]
async fn a_job_whose_answer_is_lost_is_found_and_is_the_only_one() {
    let cluster = Cluster::with(IMPATIENT);
    let server = server_of(&cluster, &Manner::default());
    let (stays, _) = running(&server, "A10G").await;
    cluster.pause_slurmctld();
    let id = server.api.create_with(web("A10G")).await;
    // The command has given up, and been asked again.
    tokio::time::sleep(Duration::from_secs(6)).await;
    answers(&server, &stays).await;
    cluster.resume_slurmctld();
    server.api.running(&id).await;
    let of_it = |job: &Value| job["comment"] == *id && job["job_state"] == "RUNNING";
    let began = Instant::now();
    while cluster.jobs().iter().filter(|job| of_it(job)).count() != 1 {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{:?}",
            cluster.jobs()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    answers(&server, &id).await;
    for id in [&stays, &id] {
        server.api.stop(id).await;
    }
    nothing_is_left(&cluster, &[stays, id]).await;
}

/// The id of a job that Slurm has forgotten goes to the next.
#[tokio::test]
async fn a_forgotten_job_ends_its_session_and_the_next_of_its_id_is_another_sessions() {
    let cluster = Cluster::with("");
    let mut server = server_of(&cluster, &Manner::default());
    let (stays, _) = running(&server, "A10G").await;
    cluster.is_saved().await;
    let saved = cluster.saved();
    let (forgotten, job) = running(&server, "A10G").await;
    server.kill();
    cluster.kill_slurmctld();
    cluster.restore(&saved);
    cluster.slurmctld_comes_back();
    assert_eq!(cluster.job(&job), None);
    let other = cluster.submit(&["--gres=gpu:a10g:1"], "exec sleep infinity");
    assert_eq!(other, job);
    cluster.becomes(&other, "RUNNING").await;
    server.restart();
    let ended = server.api.ended(&forgotten).await;
    assert_eq!(ended["end_reason"], "lost", "{ended}");
    assert!(!sentence(&ended).is_empty());
    event_is_true(&server.api, &forgotten).await;
    // Neither cancelled nor given anybody's time.
    let (next, _) = running(&server, "A10G").await;
    server.api.stop(&next).await;
    assert_eq!(cluster.job(&other).unwrap()["job_state"], "RUNNING");
    cluster.command(&["scancel", &other]);
    answers(&server, &stays).await;
    server.api.stop(&stays).await;
    nothing_is_left(&cluster, &[stays, forgotten, next]).await;
}

#[tokio::test]
async fn a_job_that_slurm_knows_no_more_when_the_server_is_back_ends_its_session() {
    let cluster = Cluster::with("MinJobAge=2");
    let mut server = server_of(&cluster, &Manner::default());
    let (stays, _) = running(&server, "A10G").await;
    let (id, job) = running(&server, "A10G").await;
    server.kill();
    cluster.command(&["scancel", &job]);
    cluster.forgets(&job).await;
    server.restart();
    let ended = server.api.ended(&id).await;
    assert!(!sentence(&ended).is_empty(), "{ended}");
    event_is_true(&server.api, &id).await;
    answers(&server, &stays).await;
    server.api.stop(&stays).await;
    nothing_is_left(&cluster, &[stays, id]).await;
}

#[tokio::test]
async fn ids_that_come_again_confuse_nothing() {
    ids_come_again(&Cluster::with(FEW_IDS), &Manner::default()).await;
}

/// Of a cluster with [`FEW_IDS`].
pub async fn ids_come_again(cluster: &Cluster, manner: &Manner) {
    let server = server_of(cluster, manner);
    let (stays, kept) = running(&server, "A10G").await;
    let mut ids = Vec::new();
    let mut jobs = Vec::new();
    for _ in 0..4 {
        let (id, job) = running(&server, "A10G").await;
        let ended = server.api.stop(&id).await;
        assert_eq!(ended["end_reason"], "cancelled", "{ended}");
        cluster.forgets(&job).await;
        ids.push(id);
        jobs.push(job);
    }
    assert!(jobs[..2].contains(&jobs[2]), "{jobs:?}");
    let session = server.api.session(&stays).await;
    assert_eq!(job_of(&session), kept);
    answers(&server, &stays).await;
    server.api.stop(&stays).await;
    ids.push(stays);
    nothing_is_left(cluster, &ids).await;
}

// --- Hosts --------------------------------------------------------------------

#[tokio::test]
async fn a_session_outlives_its_hosts_slurmd() {
    let cluster = Cluster::with("");
    let server = server_of(&cluster, &Manner::default());
    let (stays, job) = running(&server, "L4").await;
    let (goes, _) = running(&server, "L4").await;
    cluster.kill_slurmd("n3");
    let ended = server.api.stop(&goes).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    assert_eq!(app_processes(std::slice::from_ref(&goes)), [0; 0]);
    answers(&server, &stays).await;
    // Slurm gives up the host, and its jobs with it: their agents do not.
    cluster.becomes(&job, "NODE_FAIL").await;
    answers(&server, &stays).await;
    cluster.slurmd_comes_back("n3");
    // It ends what it had given up.
    let ended = server.api.ended(&stays).await;
    assert!(!sentence(&ended).is_empty(), "{ended}");
    for id in [&stays, &goes] {
        event_is_true(&server.api, id).await;
    }
    nothing_is_left(&cluster, &[stays, goes]).await;
}

#[tokio::test]
async fn a_session_whose_host_loses_power_is_lost_with_a_sentence() {
    let cluster = Cluster::with("");
    let server = server_of(&cluster, &Manner::default());
    let (lost, _) = running(&server, "L4").await;
    let (stays, _) = running(&server, "A10G").await;
    cluster.node_dies("n3");
    let died = Instant::now();
    let ended = server.api.ended(&lost).await;
    assert_eq!(ended["end_reason"], "lost", "{ended}");
    assert!(sentence(&ended).contains("NODE_FAIL"), "{ended}");
    event_is_true(&server.api, &lost).await;
    // It paid for what is proven, not for what Slurm took to find out.
    let paid = ended["cost"].as_f64().unwrap();
    let held = moment(&ended, "ended_at").duration_since(moment(&ended, "created_at"));
    let most = held.as_secs_f64() - died.elapsed().as_secs_f64() + 8.0;
    assert!(paid <= most, "{paid} and at most {most}: {ended}");
    answers(&server, &stays).await;
    cluster.node_comes_back("n3");
    let (next, _) = running(&server, "L4").await;
    for id in [&stays, &next] {
        server.api.stop(id).await;
    }
    nothing_is_left(&cluster, &[lost, stays, next]).await;
}

fn moment(session: &Value, key: &str) -> jiff::Timestamp {
    session[key].as_str().unwrap().parse().unwrap()
}

// --- Starts that are one too many ---------------------------------------------------

/// Slurm has put down that the job waits, not that it was started, and starts it again.
#[tokio::test]
async fn no_app_is_started_twice_though_its_job_is() {
    let cluster = Cluster::with("");
    let server = server_of(&cluster, &Manner::default());
    let partition = |state: &str| {
        let state = format!("State={state}");
        cluster.command(&["scontrol", "update", "PartitionName=gpu", &state]);
    };
    let starts = cluster.file("app-starts");
    let app = crate::harness::here("tests/apps/serve.py");
    let line = format!(
        "echo start >> {}; exec python3 -S {}",
        starts.display(),
        app.display()
    );
    partition("DOWN");
    let id = server.api.create_with(on("A10G", &line)).await;
    with_job(&server.api, &id).await;
    cluster.is_saved().await;
    let saved = cluster.saved();
    partition("UP");
    server.api.running(&id).await;
    cluster.kill_slurmctld();
    cluster.restore(&saved);
    cluster.slurmctld_comes_back();
    partition("UP");
    let ended = server.api.ended(&id).await;
    assert!(!sentence(&ended).is_empty(), "{ended}");
    nothing_is_left(&cluster, std::slice::from_ref(&id)).await;
    assert_eq!(std::fs::read_to_string(starts).unwrap(), "start\n");
}
