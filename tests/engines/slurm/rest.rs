//! The same by slurmrestd, where the server has none of Slurm's commands.

use std::process::Command;

use serde_json::Value;

use super::cluster::{Cluster, slurm};
use super::restd::{Restd, SocketRestd, restd};
use super::servers::{Manner, server_of, web};
use super::{faults, stories};
use crate::harness::DWELL;
use crate::seen::{job_of, sentence, words};

#[tokio::test]
async fn an_app_is_reached_by_its_url_sees_its_gpu_and_ends_when_it_is_told_to() {
    stories::an_app_sees_its_gpu(&restd().manner()).await;
}

#[tokio::test]
async fn a_session_that_finds_no_gpu_waits_with_slurms_reason_and_estimate() {
    stories::it_waits_for_a_gpu(&restd().manner()).await;
}

#[tokio::test]
async fn what_is_free_and_what_waits_is_shown() {
    let manner = Manner {
        // One session is on this host.
        environment: Vec::new(),
        ..restd().manner()
    };
    stories::what_is_free_is_shown(manner).await;
}

#[tokio::test]
async fn an_extension_past_the_jobs_time_limit_moves_it() {
    stories::an_extension_moves_the_limit(&restd().manner()).await;
}

#[tokio::test]
async fn a_session_is_cancelled_whatever_its_job_does() {
    stories::it_is_cancelled_in_each_state(&restd().manner()).await;
}

#[tokio::test]
async fn the_doctor_says_whether_slurm_answers_and_has_such_gpus() {
    let cluster = slurm();
    let _guard = cluster.alone().await;
    let by_rest = restd().launcher.clone();
    for way in ["", &by_rest] {
        for (word, says) in [
            ("gpu:l4", "slurm answers, 2 of 2 L4 free"),
            ("gpu:l5", "slurm has no gpu:l5 on any node that is up"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("dwell.toml");
            let gpus = format!("gpus = {{ L4 = \"{word}\" }}");
            let config = format!("[[launcher]]\nkind = \"slurm\"\n{gpus}\n{way}");
            std::fs::write(&file, config).unwrap();
            let mut doctor = Command::new(DWELL);
            doctor
                .args(["doctor", "--config", file.to_str().unwrap()])
                .args(["--data-dir", dir.path().to_str().unwrap()])
                .envs(cluster.environment());
            let said = doctor.output().unwrap();
            let said = String::from_utf8(said.stdout).unwrap();
            assert!(said.contains(says), "{said}");
        }
    }
}

#[tokio::test]
async fn what_slurm_refuses_fails_its_session_in_slurms_words() {
    let cluster = slurm();
    let _guard = cluster.shared().await;
    for (more, said) in [
        (
            "job = { constraints = \"nope\" }",
            "Invalid feature specification",
        ),
        ("job = { bogus = 1 }", "bogus"),
        (
            "memory_mib = 1000000",
            "Requested node configuration is not available",
        ),
    ] {
        let launcher = format!("agent = \"{DWELL}\"\n{}{more}", restd().launcher);
        let manner = Manner {
            launcher,
            ..restd().manner()
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
async fn by_its_socket_jobs_are_those_of_whom_it_is_and_nobody_elses() {
    let cluster = Cluster::with("");
    let restd = SocketRestd::of(&cluster);
    let server = server_of(&cluster, &restd.manner());
    cluster.command(&["scontrol", "update", "PartitionName=gpu", "State=DOWN"]);
    let id = server.api.create_with(web("A10G")).await;
    let says = |session: &Value| {
        let last = words(session).pop();
        last.is_some_and(|it| it == "PENDING (PartitionDown)")
    };
    let job = job_of(&server.api.until(&id, says).await);
    assert_eq!(cluster.job(&job).unwrap()["user_name"], "nobody");
    // One that is called the same, but is root's.
    let name = cluster.job(&job).unwrap()["name"].clone();
    let name = format!("--job-name={}", name.as_str().unwrap());
    let others = cluster.submit(&[&name], "true");
    let ended = server.api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    cluster.becomes(&job, "CANCELLED").await;
    assert_eq!(cluster.job(&others).unwrap()["job_state"], "PENDING");
}

#[tokio::test]
async fn ids_that_come_again_confuse_nothing() {
    let cluster = Cluster::with(faults::FEW_IDS);
    let restd = Restd::of(&cluster);
    faults::ids_come_again(&cluster, &restd.manner()).await;
}

#[tokio::test]
async fn a_slurmrestd_that_is_away_disturbs_no_session_and_new_ones_wait_for_it() {
    let cluster = Cluster::with(faults::IMPATIENT);
    let restd = Restd::of(&cluster);
    let (gone, back) = (|| restd.kill(), || restd.comes_back());
    faults::nobody_is_disturbed(&cluster, &restd.manner(), gone, back).await;
}

#[tokio::test]
async fn a_controller_that_is_away_disturbs_no_session_and_new_ones_wait_for_it() {
    let cluster = Cluster::with(faults::IMPATIENT);
    let restd = Restd::of(&cluster);
    let gone = || cluster.kill_slurmctld();
    let back = || cluster.slurmctld_comes_back();
    faults::nobody_is_disturbed(&cluster, &restd.manner(), gone, back).await;
}
