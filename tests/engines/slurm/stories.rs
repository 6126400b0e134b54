//! Sessions in batch jobs: what users and operators see of them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::cluster::{Cluster, slurm};
use super::servers::{Manner, nothing_is_left, on, server_of, web};
use crate::harness::{Api, DWELL, Server, app_processes, here, venv_program};
use crate::seen::{
    ended_within, event_is_true, extended, job_of, log, queued, sentence, served, words,
};

#[tokio::test]
async fn an_app_in_a_job_is_reached_by_its_url_sees_its_gpu_and_ends_when_it_is_told_to() {
    an_app_sees_its_gpu(&Manner::default()).await;
}

pub async fn an_app_sees_its_gpu(manner: &Manner) {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, manner);
    let script = "echo on $CUDA_VISIBLE_DEVICES; exec python3 -S -m http.server $PORT";
    let id = server.api.create_with(on("L4", script)).await;
    let running = server.api.running(&id).await;
    assert!(!served(&server.api, &running).await.is_empty());
    assert_eq!(running["job"]["launcher"], "slurm");
    let job = job_of(&running);
    assert_eq!(cluster.job(&job).unwrap()["comment"], json!(id));
    let ended = server.api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    cluster.becomes(&job, "COMPLETED").await;
    let log = log(&server.api, &id).await;
    assert!(log.iter().any(|it| it == "on 0" || it == "on 1"), "{log:?}");
    let said = words(&server.api.session(&id).await);
    let first = said.first().map(String::as_str);
    assert_eq!(first, Some("PENDING"), "{said:?}");
    assert_eq!(app_processes(&[id]), [0; 0]);
}

#[tokio::test]
async fn sessions_of_two_types_of_gpu_run_each_where_its_type_is() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, &Manner::default());
    let script = "echo $SLURMD_NODENAME > index.html; exec python3 -S -m http.server $PORT";
    let mut nodes = Vec::new();
    let mut ids = Vec::new();
    for gpu in ["A10G", "L4"] {
        let id = server.api.create_with(on(gpu, script)).await;
        let running = server.api.running(&id).await;
        assert_eq!(running["gpu"], gpu);
        nodes.push(served(&server.api, &running).await.trim().to_owned());
        ids.push(id);
    }
    assert!(
        ["n1", "n2"].contains(&&*nodes[0]) && nodes[1] == "n3",
        "{nodes:?}"
    );
    for id in &ids {
        server.api.stop(id).await;
        event_is_true(&server.api, id).await;
    }
    nothing_is_left(cluster, &ids).await;
}

#[tokio::test]
async fn a_session_that_finds_no_gpu_waits_with_slurms_reason_and_estimate_until_one_ends() {
    it_waits_for_a_gpu(&Manner::default()).await;
}

pub async fn it_waits_for_a_gpu(manner: &Manner) {
    let cluster = slurm();
    let _guard = cluster.alone().await;
    let server = server_of(cluster, manner);
    let api = &server.api;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = api.create_with(web("L4")).await;
        api.running(&id).await;
        ids.push(id);
    }
    let waits = api.create_with(web("L4")).await;
    // Slurm makes up both in its own time.
    let is_explained = |session: &Value| {
        let said = words(session);
        let has_reason = said.iter().any(|it| it == "PENDING (Resources)");
        has_reason && !session["job"]["starts_at"].is_null()
    };
    let session = api.until(&waits, is_explained).await;
    assert_eq!(session["status"], "queued", "{session}");
    assert_eq!(session["cost"], 0.0);
    api.stop(&ids[0]).await;
    let is_served = |session: &Value| words(session).iter().any(|it| it == "RUNNING");
    let running = api.until(&waits, is_served).await;
    assert!(running["job"]["starts_at"].is_null(), "{running}");
    api.running(&waits).await;
    ids.push(waits);
    for id in &ids[1..] {
        api.stop(id).await;
    }
    nothing_is_left(cluster, &ids).await;
}

#[tokio::test]
async fn a_gpu_of_this_host_goes_first_then_slurms_and_what_is_free_is_shown_of_each() {
    what_is_free_is_shown(Manner::default()).await;
}

pub async fn what_is_free_is_shown(manner: Manner) {
    let cluster = slurm();
    let _guard = cluster.alone().await;
    let manner = Manner {
        limits: "relaunch_after_seconds = 2\nlost_after_seconds = 6\n\
                 [gpus]\nL4 = 1\n[[launcher]]\nkind = \"local\"",
        ..manner
    };
    let server = server_of(cluster, &manner);
    let api = &server.api;
    let mut ids = Vec::new();
    for place in [json!(null), json!("slurm"), json!("slurm")] {
        let id = api.create_with(web("L4")).await;
        assert_eq!(api.running(&id).await["job"]["launcher"], place);
        ids.push(id);
    }
    // What waits is in Slurm's queue, which is shown as such.
    let waits = api.create_with(web("L4")).await;
    queued(api, &waits).await;
    let standing = async || {
        let shown = api.get("/platform/gpus").await.json();
        let types = shown.as_array().unwrap();
        let of_l4 = types.iter().find(|it| it["gpu"] == "L4").unwrap();
        let place = |place: &Value| {
            ["launcher", "total", "free", "waiting", "sessions"].map(|key| place[key].clone())
        };
        let places = of_l4["launchers"].as_array().unwrap();
        places.iter().map(place).collect::<Vec<_>>()
    };
    let here = |free: u32| {
        [
            json!("local"),
            json!(1),
            json!(free),
            json!(null),
            json!(1 - free),
        ]
    };
    let there = [json!("slurm"), json!(2), json!(0), json!(1), json!(3)];
    assert_eq!(standing().await, [here(0), there.clone()]);
    api.stop(&ids[0]).await;
    assert_eq!(standing().await, [here(1), there]);
    let next = api.create_with(web("L4")).await;
    assert_eq!(api.running(&next).await["job"], json!(null));
    ids.extend([waits, next]);
    for id in &ids[1..] {
        api.stop(id).await;
    }
    nothing_is_left(cluster, &ids).await;
}

#[tokio::test]
async fn an_extension_past_the_jobs_time_limit_moves_it() {
    an_extension_moves_the_limit(&Manner::default()).await;
}

pub async fn an_extension_moves_the_limit(manner: &Manner) {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, manner);
    let id = server.api.create_with(web("A10G")).await;
    let job = job_of(&server.api.running(&id).await);
    let before = cluster.job(&job).unwrap()["time_limit"].as_u64().unwrap();
    assert!((6..60).contains(&before), "{before}");
    extended(&server.api, &id, 120).await;
    let is_moved = |job: &Value| job["time_limit"].as_u64() == Some(before + 120);
    cluster.until(&job, is_moved).await;
    server.api.stop(&id).await;
    nothing_is_left(cluster, &[id]).await;
}

#[tokio::test]
async fn where_limits_cannot_be_moved_a_job_has_the_longest_from_its_start() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let manner = Manner {
        limits: "timeout_max_minutes = 300",
        launcher: format!("agent = \"{DWELL}\""),
        ..Manner::default()
    };
    let server = server_of(cluster, &manner);
    let id = server.api.create_with(web("A10G")).await;
    let job = job_of(&server.api.running(&id).await);
    let limit = cluster.job(&job).unwrap()["time_limit"].as_u64().unwrap();
    assert!((301..360).contains(&limit), "{limit}");
    extended(&server.api, &id, 120).await;
    server.api.stop(&id).await;
    let job = cluster.becomes(&job, "COMPLETED").await;
    assert_eq!(job["time_limit"], limit);
}

#[tokio::test]
async fn a_session_is_cancelled_whatever_its_job_does() {
    it_is_cancelled_in_each_state(&Manner::default()).await;
}

pub async fn it_is_cancelled_in_each_state(manner: &Manner) {
    let cluster = slurm();
    let _guard = cluster.alone().await;
    let server = server_of(cluster, manner);
    let api = &server.api;
    // That does not go by itself.
    let stubborn = here("tests/apps/stubborn.py");
    let stubborn = on("L4", &format!("exec python3 -S {}", stubborn.display()));
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = api.create_with(stubborn.clone()).await;
        api.running(&id).await;
        ids.push(id);
    }
    // One that waits.
    let waits = api.create_with(web("L4")).await;
    let job = job_of(&queued(api, &waits).await);
    let ended = api.stop(&waits).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    assert_eq!(ended["cost"], 0.0);
    cluster.becomes(&job, "CANCELLED").await;
    // Some that are being submitted.
    for _ in 0..5 {
        let id = api.create_with(web("A10G")).await;
        let ended = api.stop(&id).await;
        assert_eq!(ended["end_reason"], "cancelled", "{ended}");
        event_is_true(api, &id).await;
        ids.push(id);
    }
    // One that runs, and is being cancelled.
    let path = format!("/session/{}", ids[0]);
    assert_eq!(api.delete(&path).await.status, 200);
    let again = api.delete(&path).await.status;
    assert!([200, 404].contains(&again), "{again}");
    for id in &ids[..2] {
        let _ = api.delete(&format!("/session/{id}")).await;
        let ended = api.ended(id).await;
        assert_eq!(ended["end_reason"], "cancelled", "{ended}");
        event_is_true(api, id).await;
    }
    ids.push(waits);
    nothing_is_left(cluster, &ids).await;
}

#[tokio::test]
async fn what_slurm_refuses_fails_its_session_in_slurms_words() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    for (launcher, said) in [
        (
            "account = \"x\"\noptions = [\"--constraint=nope\"]",
            "Invalid feature specification",
        ),
        ("options = [\"--bogus\"]", "unrecognized option"),
        (
            "memory_mib = 1000000",
            "Requested node configuration is not available",
        ),
    ] {
        let manner = Manner {
            launcher: format!("agent = \"{DWELL}\"\n{launcher}"),
            ..Manner::default()
        };
        let server = server_of(cluster, &manner);
        let id = server.api.create_with(web("A10G")).await;
        let ended = server.api.ended(&id).await;
        assert_eq!(ended["end_reason"], "failed", "{ended}");
        let sentence = sentence(&ended);
        assert!(
            sentence.starts_with("Slurm refuses: ") && sentence.contains(said),
            "{sentence}"
        );
    }
}

#[tokio::test]
async fn a_job_that_would_wait_for_ever_ends_its_session_with_a_remedy() {
    let cluster = Cluster::with("PartitionName=short Nodes=ALL MaxTime=5 DefMemPerCPU=100");
    let manner = Manner {
        // The last that is said counts.
        launcher: format!("agent = \"{DWELL}\"\noptions = [\"--partition=short\"]"),
        ..Manner::default()
    };
    let server = server_of(&cluster, &manner);
    let id = server.api.create_with(web("A10G")).await;
    // It is given a minute.
    let is_told = |session: &Value| {
        words(session)
            .iter()
            .any(|it| it.contains("timeout_max_minutes"))
    };
    server.api.until(&id, is_told).await;
    let ended = ended_within(&server.api, &id, Duration::from_secs(100)).await;
    assert_eq!(ended["end_reason"], "failed", "{ended}");
    let sentence = sentence(&ended);
    assert!(
        sentence.contains("PENDING (PartitionTimeLimit)")
            && sentence.contains("timeout_max_minutes"),
        "{sentence}"
    );
    nothing_is_left(&cluster, &[id]).await;
}

#[tokio::test]
async fn its_log_is_complete_and_in_order_and_says_what_it_crashed_of() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, &Manner::default());
    let count = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; \
                 echo a complaint; exit 3";
    let id = server.api.create_with(on("A10G", count)).await;
    let ended = server.api.ended(&id).await;
    assert_eq!(
        sentence(&ended),
        "The app exited with status 3 before it answered on its port: a complaint"
    );
    let wanted: Vec<_> = (1..=500).map(|number| format!("line {number}")).collect();
    let is_counted = |line: &&String| line.starts_with("line ");
    let lines = log(&server.api, &id).await;
    assert!(
        lines.iter().filter(is_counted).eq(wanted.iter()),
        "{lines:?}"
    );
    // It follows, and ends because that has ended.
    let followed = dwell(&server, &["logs", "--follow", &id]);
    let text = String::from_utf8_lossy(&followed.stdout).into_owned();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("line ")).collect();
    assert_eq!(lines.len(), 500, "{followed:?}");
    assert!(text.contains("a complaint"), "{text}");
    nothing_is_left(cluster, &[id]).await;
}

fn dwell(server: &Server, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(DWELL);
    command
        .args(arguments)
        .env("DWELL_DATA_DIR", &server.dir)
        .env_remove("DWELL_URL")
        .env_remove("DWELL_API_KEY");
    command.output().unwrap()
}

#[tokio::test]
async fn an_app_that_crashes_while_it_runs_ends_its_session_with_its_last_words() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, &Manner::default());
    let app = here("tests/apps/crashes.py");
    let app = on("A10G", &format!("exec python3 -S {}", app.display()));
    let id = server.api.create_with(app).await;
    let ended = server.api.until(&id, |session| {
        // Its one answer may be the probe's.
        session["status"] == "ended"
    });
    let ended = ended.await;
    assert!(
        sentence(&ended).contains("42") && sentence(&ended).contains("no more"),
        "{ended}"
    );
    event_is_true(&server.api, &id).await;
    nothing_is_left(cluster, &[id]).await;
}

#[tokio::test]
async fn jupyterlab_in_a_job_computes() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let server = server_of(cluster, &Manner::default());
    let command = format!(
        "exec {} lab --no-browser --allow-root --ip=127.0.0.1 --port=$PORT \
         --IdentityProvider.token=secret --ServerApp.allow_remote_access=True",
        venv_program("jupyter").display()
    );
    let mut body = on("A10G", &command);
    body["environment"] = json!({"HOME": server.dir});
    body["ready_path"] = json!("/api");
    let id = server.api.create_with(body).await;
    let session = server.api.running(&id).await;
    let client = tokio::process::Command::new(venv_program("python"))
        .arg(here("tests/clients/jupyter.py"))
        .args([session["url"].as_str().unwrap(), "secret"])
        .output()
        .await
        .unwrap();
    assert!(
        client.status.success(),
        "{}{}",
        String::from_utf8_lossy(&client.stdout),
        String::from_utf8_lossy(&client.stderr)
    );
    server.api.stop(&id).await;
    nothing_is_left(cluster, &[id]).await;
}

// --- The agent of a job -------------------------------------------------------

#[tokio::test]
async fn a_job_fetches_its_agent_from_the_server_and_the_next_finds_it() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let home = tempfile::tempdir().unwrap();
    let server = server_of(cluster, &Manner::fetching(home.path(), ""));
    for _ in 0..2 {
        let id = server.api.create_with(web("A10G")).await;
        let running = server.api.running(&id).await;
        assert_eq!(served(&server.api, &running).await, "hello");
        server.api.stop(&id).await;
        nothing_is_left(cluster, &[id]).await;
    }
    let kept = home.path().join(".cache/dwell/agents");
    let kept: Vec<_> = std::fs::read_dir(kept).unwrap().flatten().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
}

#[tokio::test]
async fn a_job_that_comes_to_no_agent_fails_its_session_with_what_to_do() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let home = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("server_url = \"http://{}\"", free.local_addr().unwrap());
    drop(free);
    let somebody = format!("server_url = \"http://{}\"", somebody_else().await);
    let bare = only_slurm(home.path());
    for (launcher, environment, begins) in [
        (
            nobody.as_str(),
            None,
            "The agent could not be fetched from the server",
        ),
        (&somebody, None, "What was fetched is not the agent"),
        (
            "agent = \"/etc/passwd\"",
            None,
            "The agent cannot be run here",
        ),
        (
            "",
            Some(("PATH", bare)),
            "There is no program here to fetch the agent with",
        ),
    ] {
        let mut manner = Manner::fetching(home.path(), launcher);
        manner.environment.extend(environment);
        let server = server_of(cluster, &manner);
        let id = server.api.create_with(web("A10G")).await;
        let ended = server.api.ended(&id).await;
        assert_eq!(ended["end_reason"], "failed", "{ended}");
        let begins = format!("slurm ended its job: FAILED (NonZeroExitCode). {begins}");
        assert!(sentence(&ended).starts_with(&begins), "{ended}");
    }
}

/// Answers everything with something; where.
async fn somebody_else() -> std::net::SocketAddr {
    use tokio::io::AsyncWriteExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

/// A `PATH` of Slurm's commands and what a script cannot do without.
fn only_slurm(dir: &Path) -> String {
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in [
        "sbatch",
        "squeue",
        "scancel",
        "scontrol",
        "sinfo",
        "sh",
        "mkdir",
        "mktemp",
        "mv",
        "rm",
        "chmod",
        "sleep",
        "id",
        "sha256sum",
    ] {
        let ask = format!("command -v {name}");
        let found = Command::new("sh").args(["-c", &ask]).output();
        let found = found.unwrap().stdout;
        let found = String::from_utf8(found).unwrap();
        std::os::unix::fs::symlink(found.trim(), bin.join(name)).unwrap();
    }
    bin.display().to_string()
}

#[tokio::test]
async fn an_image_is_refused_where_nothing_runs_images_and_else_apptainer_is_told_of_it() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let mut body = web("A10G");
    body["image"] = json!("debian:12");
    let server = server_of(cluster, &Manner::default());
    let refused = refusal(&server.api, &body).await;
    assert!(refused.contains("with containers"), "{refused}");

    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\nshift 7\nexec \"$@\"\n",
        told.display()
    );
    let program = dir.path().join("apptainer");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let manner = Manner {
        launcher: format!("agent = \"{DWELL}\"\ncontainers = \"apptainer\""),
        environment: vec![("PATH", format!("{}:{path}", dir.path().display()))],
        ..Manner::default()
    };
    let server = server_of(cluster, &manner);
    let id = server.api.create_with(body).await;
    let running = server.api.running(&id).await;
    assert_eq!(served(&server.api, &running).await, "hello");
    let told = std::fs::read_to_string(told).unwrap();
    let words = [
        "exec",
        "--nv",
        "--bind",
        DWELL,
        "--bind",
        "/tmp",
        "docker://debian:12",
        DWELL,
        "agent",
        "job",
    ];
    assert!(told.lines().eq(words), "{told}");
    server.api.stop(&id).await;
    nothing_is_left(cluster, &[id]).await;
}

/// Whether at once or by a session that fails.
async fn refusal(api: &Api, body: &Value) -> String {
    let answer = api.post("/session/dynamic", body.clone()).await;
    if answer.status != 200 {
        return answer.json()["detail"].to_string();
    }
    let id = answer.json()["session_id"].as_str().unwrap().to_owned();
    sentence(&api.ended(&id).await).to_owned()
}

// --- Servers ------------------------------------------------------------------

#[tokio::test]
async fn a_server_that_is_killed_finds_its_jobs_again_those_that_wait_and_those_that_run() {
    let cluster = slurm();
    let _guard = cluster.alone().await;
    let mut server = server_of(cluster, &Manner::default());
    let mut jobs = Vec::new();
    let mut ids = Vec::new();
    for number in 0..3 {
        let id = server.api.create_with(web("L4")).await;
        if number < 2 {
            jobs.push(job_of(&server.api.running(&id).await));
        } else {
            jobs.push(job_of(&queued(&server.api, &id).await));
        }
        ids.push(id);
    }
    let before = app_processes(&ids);
    server.kill();
    server.restart();
    for (id, job) in ids.iter().zip(&jobs).take(2) {
        let running = server.api.running(id).await;
        assert_eq!(served(&server.api, &running).await, "hello");
        assert_eq!(job_of(&running), *job);
    }
    assert_eq!(app_processes(&ids), before);
    // What ends while there is no server is seen by the next.
    server.kill();
    cluster.command(&["scancel", &jobs[0]]);
    cluster
        .until(&jobs[0], |job| {
            job["end_time"] != 0
                && job["job_state"] != "COMPLETING"
                && job["job_state"] != "RUNNING"
        })
        .await;
    server.restart();
    server.api.ended(&ids[0]).await;
    let served_now = server.api.running(&ids[2]).await;
    assert_eq!(job_of(&served_now), jobs[2]);
    for id in &ids[1..] {
        server.api.stop(id).await;
    }
    nothing_is_left(cluster, &ids).await;
}

#[tokio::test]
async fn two_servers_of_one_cluster_never_touch_each_others_jobs() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    let mut one = server_of(cluster, &Manner::default());
    let other = server_of(cluster, &Manner::default());
    let mine = one.api.create_with(web("A10G")).await;
    let theirs = other.api.create_with(web("A10G")).await;
    one.api.running(&mine).await;
    let job = job_of(&other.api.running(&theirs).await);
    one.kill();
    one.restart();
    one.api.running(&mine).await;
    one.api.stop(&mine).await;
    // Looks enough for whatever takes it for a stray.
    let next = one.api.create_with(web("A10G")).await;
    one.api.running(&next).await;
    one.api.stop(&next).await;
    assert_eq!(cluster.job(&job).unwrap()["job_state"], "RUNNING");
    assert_eq!(other.api.session(&theirs).await["status"], "running");
    other.api.stop(&theirs).await;
    nothing_is_left(cluster, &[mine, theirs, next]).await;
}
