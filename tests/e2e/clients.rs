//! Clients and apps that others wrote, unmodified.

use std::process::Command;

use serde_json::json;

use super::harness::{ROOMY, Server, app, here, venv_program};

/// Run to its end, away from the runtime; what it printed.
async fn run(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

#[tokio::test]
async fn jupyterlab_loads_through_its_url_and_its_kernel_computes() {
    let server = Server::start(ROOMY);
    let jupyter = venv_program("jupyter-lab").display().to_string();
    let words = [
        &jupyter,
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=sesame",
        "--ServerApp.allow_remote_access=True",
    ];
    let id = server.api.create(json!(words)).await;
    let url = server.api.running(&id).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut client = Command::new(venv_program("python"));
    client
        .arg(here("tests/clients/jupyter.py"))
        .args([&url, "sesame"]);
    assert_eq!(run(client).await.trim(), "42");
    // Its kernel is a process of its own; all go.
    server.api.stop(&id).await;
    server.nothing_is_left(&[id]).await;
}

#[tokio::test]
async fn the_published_comfydeploy_client_works_unchanged() {
    let server = Server::start(ROOMY);
    let machine = server
        .api
        .machine(json!({"name": "m", "command": app("serve.py")}))
        .await;
    let mut client = Command::new(venv_program("python"));
    client
        .arg(here("tests/clients/comfydeploy_session.py"))
        .args([&server.api.url, &server.api.key, &machine]);
    assert_eq!(run(client).await.trim(), "ok");
}

/// Whatever its document allows, and much that it does not, is sent to the server:
/// nothing makes it fail, and every answer is one that is documented.
#[tokio::test]
async fn schemathesis_finds_no_failure_and_no_undocumented_answer() {
    let server = Server::start(
        "[gpus]\nCPU = 2\n[limits]\nsessions_per_machine = 2\nsessions_per_owner = 4\nstart_minutes = 1\n",
    );
    let mut client = Command::new(venv_program("schemathesis"));
    client
        .args(["run", &format!("{}/openapi.json", server.api.url)])
        .args(["--header", &format!("Authorization: Bearer {}", server.api.key)])
        .arg("--config-file")
        .args(["--max-examples", "25", "--seed", "1", "--workers", "2"])
        .args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"])
        // Those three say 501 until they are built, which is a server error by number.
        .args(["--exclude-path-regex", "snapshot|rollback|stream-logs"])
        .current_dir(tempfile::tempdir().unwrap().path());
    run(client).await;
}
