//! What can go wrong beside a container, with the agent as a real process and no server,
//! or one of the tests' own.

use std::time::Duration;

use dwell_core::protocol::{AgentPhase, AgentStatus, ServerMessage};
use dwell_core::session::{EndReason, Ending};
use dwell_core::time::Millis;
use nix::sys::signal::Signal;

use crate::engine::{BUSYBOX, Engine};
use crate::harness::Server;
use crate::host::{App, Host, Session};

/// An agent and its app are gone within this of the agent's death.
const ORPHAN_GONE_WITHIN: Duration = Duration::from_secs(2);

fn app(line: &str) -> App {
    let words = ["sh", "-c", line].map(str::to_owned);
    App::new(words.into()).in_image(BUSYBOX)
}

fn web() -> App {
    app("exec httpd -f -p $PORT -h /workspace")
}

fn cancelled() -> ServerMessage {
    ServerMessage::Stop {
        ending: Ending::plain(EndReason::Cancelled),
    }
}

fn ran(status: &AgentStatus) -> Millis {
    match status.phase {
        AgentPhase::Ended {
            running_ms: Some(ran),
            ..
        } => ran,
        _ => panic!("{status:?}"),
    }
}

async fn nothing_is_left(engine: &Engine, session: &Session) {
    session.nothing_is_left().await;
    engine.has_nothing_of(&session.id()).await;
}

pub async fn time_is_up_with_no_server_at_all(engine: &Engine) {
    let _guard = engine.shared().await;
    let host = Host::with_manner(engine.manner()).await;
    let session = host.launch(web().granted(Millis(700))).await;
    session.end_is_in_the_journal().await;
    nothing_is_left(engine, &session).await;
    let status = session.journal_end().unwrap();
    assert!((700..1_700).contains(&ran(&status).0), "{status:?}");
}

pub async fn an_extension_is_kept(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web().granted(Millis(600))).await;
    session.running().await;
    let granted_ms = Millis(1_500);
    session.say(ServerMessage::Lease { granted_ms }).await;
    let (ending, status) = session.ended().await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    assert!(ran(&status).0 >= 1_500, "{status:?}");
    nothing_is_left(engine, &session).await;
}

pub async fn an_app_that_exits_ends_with_its_status_and_last_words(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(app("echo no cheese >&2; exit 3")).await;
    let (ending, _) = session.ended().await;
    let sentence = "The app exited with status 3 before it answered on its port: no cheese";
    assert_eq!(ending, Ending::failed(sentence.into()));
    nothing_is_left(engine, &session).await;
}

pub async fn an_agent_that_is_killed_takes_its_container_along(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web()).await;
    session.running().await;
    session.kill_agent().await;
    session.no_process_is_left_within(ORPHAN_GONE_WITHIN).await;
    assert_eq!(session.launch_again().await, "Started");
    let (ending, _) = session.ended().await;
    let sentence = "Its agent was killed, and the app with it";
    assert_eq!(ending, Ending::failed(sentence.into()));
    assert_eq!(session.starts(), 1);
    nothing_is_left(engine, &session).await;
}

pub async fn a_container_whose_agent_is_paused_ends_on_time_and_is_billed_to_its_end(
    engine: &Engine,
) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web().granted(Millis(1_500))).await;
    session.running().await;
    session.signal_agent(Signal::SIGSTOP);
    // Its grace and what it may be late by besides.
    let limit = Duration::from_millis(1_500 + 500 + 1_000);
    session.no_process_is_left_within(limit).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    session.signal_agent(Signal::SIGCONT);
    let (ending, status) = session.ended().await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    let AgentStatus { held_ms, .. } = status;
    assert!(held_ms.0 < ran(&status).0 + 30_000, "{status:?}");
    assert!((1_500..2_900).contains(&ran(&status).0), "{status:?}");
    nothing_is_left(engine, &session).await;
}

pub async fn a_container_whose_keeper_is_killed_or_paused_ends(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web()).await;
    session.running().await;
    session.signal_first_process(Signal::SIGKILL);
    session.ended().await;
    nothing_is_left(engine, &session).await;

    let session = host.launch(web().granted(Millis(1_000))).await;
    session.running().await;
    session.signal_first_process(Signal::SIGSTOP);
    let (ending, _) = session.ended().await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    nothing_is_left(engine, &session).await;
}

pub async fn a_container_whose_keeper_and_agent_are_told_to_go_ends_with_a_sentence(
    engine: &Engine,
) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web()).await;
    session.running().await;
    session.signal_first_process(Signal::SIGTERM);
    session.signal_agent(Signal::SIGTERM);
    let (ending, _) = session.ended().await;
    let why = ending.error.unwrap();
    assert_eq!(why, "Its host is shutting down");
    nothing_is_left(engine, &session).await;
}

pub async fn what_is_left_when_agent_and_keeper_are_killed_at_once_is_ended_by_the_next(
    engine: &Engine,
) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web()).await;
    session.running().await;
    // So that neither sees the other go.
    session.signal_agent(Signal::SIGSTOP);
    session.signal_first_process(Signal::SIGSTOP);
    session.signal_first_process(Signal::SIGKILL);
    session.kill_agent().await;
    assert!(engine.container_of(&session.id()).is_some());
    assert_eq!(session.launch_again().await, "Started");
    session.ended().await;
    nothing_is_left(engine, &session).await;
}

pub async fn a_container_that_somebody_removes_ends_its_session_with_a_sentence(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web()).await;
    session.running().await;
    let container = engine.container_of(&session.id()).unwrap();
    engine.docker(&["rm", "--force", &container]);
    let (ending, _) = session.ended().await;
    assert_eq!(ending.reason, EndReason::Exited);
    let sentence = ending.error.unwrap();
    let known = [
        "The app ended: somebody else removed its container",
        // It was killed first.
        "The app was killed by signal 9 (KILL, perhaps for want of memory)",
    ];
    assert!(known.contains(&sentence.as_str()), "{sentence}");
    nothing_is_left(engine, &session).await;
}

pub async fn a_container_that_somebody_pauses_ends_on_time(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web().granted(Millis(2_000))).await;
    session.running().await;
    let container = engine.container_of(&session.id()).unwrap();
    engine.docker(&["pause", &container]);
    let (ending, status) = session.ended().await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    assert!(ran(&status).0 < 2_900, "{status:?}");
    nothing_is_left(engine, &session).await;
}

pub async fn an_engine_that_is_killed_and_comes_back_loses_no_session_and_no_line(engine: &Engine) {
    let _guard = engine.alone().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let line = "httpd -p $PORT -h /workspace; i=0; \
                while true; do i=$((i+1)); echo line $i; sleep 0.02; done";
    let session = host.launch(app(line)).await;
    let upstream = session.running().await;
    let lines = |session: &Session| {
        let log = session.log();
        let numbers = log.iter().filter_map(|line| line.strip_prefix("line "));
        numbers.map(|it| it.parse().unwrap()).collect::<Vec<u32>>()
    };
    engine.dies();
    assert!(std::net::TcpStream::connect(upstream).is_ok());
    tokio::time::sleep(Duration::from_secs(1)).await;
    engine.come_back();
    let at_return = lines(&session).len();
    let began = std::time::Instant::now();
    while lines(&session).len() < at_return + 100 {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{:?}",
            session.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(std::net::TcpStream::connect(upstream).is_ok());
    session.say(cancelled()).await;
    let (ending, _) = session.ended().await;
    assert_eq!(ending, Ending::plain(EndReason::Cancelled));
    let read = lines(&session);
    let wanted: Vec<u32> = (1..).take(read.len()).collect();
    assert_eq!(read, wanted);
    nothing_is_left(engine, &session).await;
}

pub async fn time_is_up_with_the_engine_gone(engine: &Engine) {
    let _guard = engine.alone().await;
    let mut host = Host::with_manner(engine.manner()).await;
    host.serve().await;
    let session = host.launch(web().granted(Millis(1_500))).await;
    session.running().await;
    engine.dies();
    let (ending, status) = session.ended().await;
    session.no_process_is_left_within(Duration::ZERO).await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    assert!((1_500..2_500).contains(&ran(&status).0), "{status:?}");
    engine.come_back();
    nothing_is_left(engine, &session).await;
}

pub async fn an_agent_that_dies_while_its_container_is_started_leaves_nothing(engine: &Engine) {
    let _guard = engine.shared().await;
    for point in ["AgentBeforeContainer", "AgentAfterContainer"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("armed");
        std::fs::write(&file, "").unwrap();
        let dies = ("DWELL_FAILPOINT", format!("{point}@{}", file.display()));
        let place = dir.path().join("data");
        let server =
            Server::try_start_in(&place, &engine.config(), "127.0.0.1:0", &[], &[dies]).unwrap();
        let command = ["sh", "-c", "exec httpd -f -p $PORT"];
        let body = serde_json::json!({"command": command, "image": BUSYBOX});
        let id = server.api.create_with(body).await;
        let ended = server.api.ended(&id).await;
        assert!(!file.exists(), "{point} was not crossed");
        let sentence = "Its agent was killed, and the app with it";
        assert_eq!(ended["error"], sentence, "{point}");
        server.nothing_is_left(std::slice::from_ref(&id)).await;
        engine.has_nothing_of(&id).await;
    }
}
