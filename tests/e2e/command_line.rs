//! The command line, as a person and a script use it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::harness::{Api, DWELL, PATIENCE, ROOMY, Server, app_processes, here, processes, signal};

fn dwell(server: &Server, arguments: &[&str]) -> Output {
    Command::new(DWELL)
        .args(arguments)
        .env("DWELL_DATA_DIR", &server.dir)
        .env_remove("DWELL_URL")
        .env_remove("DWELL_API_KEY")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn serve_py() -> String {
    here("tests/apps/serve.py").display().to_string()
}

#[tokio::test]
async fn what_scripts_rely_on_prints_what_they_rely_on() {
    let server = Server::start(ROOMY);
    let command = format!("python3 -S {}", serve_py());
    let machine = said(&dwell(
        &server,
        &["machines", "create", "--name", "lab", "--command", &command],
    ));
    assert!(machine.parse::<uuid::Uuid>().is_ok(), "{machine}");
    let key = said(&dwell(
        &server,
        &["keys", "create", "--user", "ada", "--org", "lab"],
    ));
    assert_eq!(key.lines().count(), 1);
    assert_eq!(
        Api::new(&server.api.url, &key)
            .get("/sessions")
            .await
            .status,
        200
    );

    let run = said(&dwell(
        &server,
        &["run", "--detach", "--", "python3", "-S", &serve_py()],
    ));
    let sessions: Value = serde_json::from_str(&said(&dwell(&server, &["ls", "--json"]))).unwrap();
    let session = &sessions[0];
    assert!(run.contains(session["url"].as_str().unwrap()), "{run}");
    let id = session["id"].as_str().unwrap();
    // A person types the beginning.
    let shown = said(&dwell(&server, &["show", &id[..8]]));
    assert!(shown.contains(id), "{shown}");
    said(&dwell(&server, &["extend", &id[..8], "5"]));
    assert_eq!(server.api.session(id).await["timeout"], 20);
    said(&dwell(&server, &["stop", &id[..8]]));
    server.api.ended(id).await;
    said(&dwell(&server, &["usage"]));
    said(&dwell(&server, &["logs", id]));
}

#[tokio::test]
async fn wrong_usage_is_exit_2_and_what_fails_is_exit_1_with_a_sentence() {
    let server = Server::start(ROOMY);
    assert_eq!(dwell(&server, &["no-such-command"]).status.code(), Some(2));
    assert_eq!(dwell(&server, &["extend"]).status.code(), Some(2));
    let failed = dwell(&server, &["stop", "6f1c1a52-5f3a-4a70-9f55-1f8f2d5f0a11"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&failed.stderr).starts_with("error: "),
        "{failed:?}"
    );
    let unreachable = Command::new(DWELL)
        .args(["ls", "--url", "http://127.0.0.1:1", "--api-key", "x"])
        .output()
        .unwrap();
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unreachable.stderr).contains("http://127.0.0.1:1"));
}

#[tokio::test]
async fn a_key_can_be_made_before_the_first_server() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(DWELL)
        .args(["keys", "create", "--user", "ada", "--data-dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    let key = said(&output);
    let server = Server::start_in(dir.path(), ROOMY);
    assert_eq!(
        Api::new(&server.api.url, &key)
            .get("/sessions")
            .await
            .status,
        200
    );
}

/// `dwell run` with nobody to serve it.
struct Alone {
    child: Child,
    dir: tempfile::TempDir,
    url: String,
}

fn run_alone(script: &str) -> Alone {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(DWELL)
        .args([
            "run",
            "--",
            "python3",
            "-S",
            &here("tests/apps").join(script).display().to_string(),
        ])
        .env("DWELL_DATA_DIR", dir.path())
        .env_remove("DWELL_URL")
        .env_remove("DWELL_API_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    Alone {
        child,
        dir,
        url: url.trim().to_owned(),
    }
}

impl Alone {
    /// The server that it is for itself.
    fn api(&self) -> Api {
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        let server: Value = serde_json::from_str(&read("server.json")).unwrap();
        Api::new(server["url"].as_str().unwrap(), read("admin.key").trim())
    }

    fn session(&self) -> Vec<String> {
        std::fs::read_dir(self.dir.path().join("sessions"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    async fn gone(&mut self) -> std::process::ExitStatus {
        let began = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not go");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let dir = self.dir.path().display().to_string();
        for agent in processes(|words, _| words.contains("agent") && words.contains(&dir)) {
            signal(agent, Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn run_serves_by_itself_and_ctrl_c_ends_its_session() {
    let mut alone = run_alone("serve.py");
    assert!(alone.url.starts_with("http://127.0.0.1:"), "{}", alone.url);
    assert_eq!(Api::new("", "").get(&alone.url).await.text, "hello");
    let sessions = alone.session();
    signal(alone.child.id(), Signal::SIGINT);
    alone.gone().await;
    assert!(app_processes(&sessions).is_empty(), "its session goes on");
}

#[tokio::test]
async fn a_second_ctrl_c_does_not_wait_for_an_app_that_does_not_want_to_end() {
    let mut alone = run_alone("stubborn.py");
    let sessions = alone.session();
    signal(alone.child.id(), Signal::SIGINT);
    // The first one is taken when the session is being stopped.
    let api = alone.api();
    api.until(&sessions[0], |session| session["status"] == "stopping")
        .await;
    assert!(!app_processes(&sessions).is_empty());
    let began = std::time::Instant::now();
    signal(alone.child.id(), Signal::SIGINT);
    alone.gone().await;
    assert!(
        began.elapsed() < std::time::Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    // Its agent ends it all the same, with nobody there.
    let waited = std::time::Instant::now();
    while !app_processes(&sessions).is_empty() {
        assert!(waited.elapsed() < PATIENCE, "its session goes on");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn doctor_says_what_this_host_allows() {
    let server = Server::start(ROOMY);
    let output = dwell(&server, &["doctor", "--json"]);
    let _: Value = serde_json::from_slice(&output.stdout).unwrap();
    let help = Command::new(DWELL).arg("--help").output().unwrap();
    for command in [
        "serve", "keys", "machines", "run", "up", "ls", "show", "logs", "extend", "stop", "usage",
        "doctor",
    ] {
        assert!(said(&help).contains(command), "{command}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(said(&dwell(&server, &["completions", shell])).contains("dwell"));
    }
}
