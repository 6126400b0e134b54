//! Apps as they are: each ends as a person would expect, with a sentence that says
//! why, and leaves nothing behind.

use serde_json::{Value, json};

use super::harness::{Server, app};

const CONFIG: &str = "[gpus]\nCPU = 20\n[limits]\ngrace_seconds = 1\n";

/// The app's session once it has ended by itself.
async fn end_of(server: &Server, command: Value) -> Value {
    let id = server.api.create(command).await;
    let ended = server.api.ended(&id).await;
    server.nothing_is_left(&[id]).await;
    ended
}

/// The app's session once it was stopped while it ran.
async fn stopped(server: &Server, command: Value) -> Value {
    let id = server.api.create(command).await;
    server.api.running(&id).await;
    let ended = server.api.stop(&id).await;
    server.nothing_is_left(&[id]).await;
    ended
}

#[tokio::test]
async fn apps_that_end_by_themselves_say_why() {
    let server = Server::start(CONFIG);
    for (command, reason, sentence) in [
        (
            json!("exit 0"),
            "failed",
            json!("The app exited with status 0 before it answered on its port"),
        ),
        (
            json!("echo out of cheese; exit 3"),
            "failed",
            json!("The app exited with status 3 before it answered on its port: out of cheese"),
        ),
        (
            json!("kill -SEGV $$"),
            "failed",
            json!("The app was ended by signal 11 before it answered on its port"),
        ),
        (app("leaves_daemon.py"), "exited", json!(null)),
        (
            app("crashes.py"),
            "exited",
            json!("The app exited with status 42: no more"),
        ),
        (
            json!(["no-such-program"]),
            "failed",
            json!("The program no-such-program was not found on PATH"),
        ),
    ] {
        let ended = end_of(&server, command.clone()).await;
        assert_eq!(ended["end_reason"], reason, "{command}: {ended}");
        match (&ended["error"], sentence.as_str()) {
            (Value::String(error), Some(start)) => assert!(error.starts_with(start), "{ended}"),
            (error, _) => assert_eq!(*error, sentence, "{command}"),
        }
    }
}

#[tokio::test]
async fn apps_that_do_not_want_to_end_are_ended() {
    let server = Server::start(CONFIG);
    for command in [app("stubborn.py"), app("flood.py"), app("fork_bomb.py")] {
        let ended = stopped(&server, command.clone()).await;
        assert_eq!(ended["end_reason"], "cancelled", "{command}: {ended}");
        assert_eq!(ended["error"], json!(null));
    }
}

#[tokio::test]
async fn an_app_that_never_binds_fails_at_the_start_limit_and_one_that_binds_late_runs() {
    let server = Server::start("[gpus]\nCPU = 20\n[limits]\nstart_minutes = 0.2\n");
    let late = format!(
        "sleep 3; exec python3 -S {}",
        super::harness::here("tests/apps/serve.py").display()
    );
    let (never, late) = tokio::join!(
        end_of(&server, json!("exec sleep 1000")),
        stopped(&server, json!(late))
    );
    assert_eq!(never["end_reason"], "failed");
    assert_eq!(
        never["error"],
        "The app did not answer on its port within 12 s"
    );
    assert_eq!(late["end_reason"], "cancelled");
}

#[tokio::test]
async fn an_app_that_takes_too_much_memory_is_stopped_and_the_host_is_not() {
    let server = Server::start("[gpus]\nCPU = 2\n[session]\nmemory_mib = 200\n");
    let ended = end_of(&server, app("eats_memory.py")).await;
    // Where the host has no memory controller the app meets its own limit instead.
    let error = ended["error"].as_str().unwrap_or_else(|| panic!("{ended}"));
    assert!(
        error.contains("signal 9") || error.contains("not limited"),
        "{ended}"
    );
}
