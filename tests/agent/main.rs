//! The agent, as a real process with real apps, and a server of the tests' own that
//! hears what it says and may be gone.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on has failed"
)]

#[expect(dead_code, reason = "tests of containers need more")]
mod host;

use std::time::Duration;

use dwell_core::protocol::{AgentPhase, ServerMessage};
use dwell_core::session::{EndReason, Ending};
use dwell_core::time::Millis;
use host::{App, Host, python};
use nix::sys::signal::Signal;

fn cancelled() -> ServerMessage {
    ServerMessage::Stop {
        ending: Ending::plain(EndReason::Cancelled),
    }
}

#[tokio::test]
async fn an_app_that_answers_runs_and_ends_when_it_is_told_to() {
    let host = Host::new().await;
    let session = host.launch(App::new(python("serve.py"))).await;
    let upstream = session.running().await;
    assert!(std::net::TcpStream::connect(upstream).is_ok());
    session.say(cancelled()).await;
    let (ending, status) = session.ended().await;
    assert_eq!(ending, Ending::plain(EndReason::Cancelled));
    assert!(matches!(
        status.phase,
        AgentPhase::Ended {
            running_ms: Some(_),
            ..
        }
    ));
    session.nothing_is_left().await;
}

#[tokio::test]
async fn time_is_up_with_no_server_at_all() {
    let host = Host::without_server().await;
    let session = host
        .launch(App::new(python("serve.py")).granted(Millis(700)))
        .await;
    session.end_is_in_the_journal().await;
    session.nothing_is_left().await;
    let status = session.journal_end().unwrap();
    let AgentPhase::Ended { ending, running_ms } = status.phase else {
        panic!("{status:?}")
    };
    assert_eq!(ending.reason, EndReason::TimedOut);
    let ran = running_ms.unwrap().0;
    assert!((700..1_700).contains(&ran), "{ran}");
}

#[tokio::test]
async fn an_app_that_ignores_term_and_forks_daemons_is_gone_within_a_second_of_its_time() {
    let host = Host::new().await;
    let app = App::new(python("stubborn.py")).granted(Millis(500));
    let session = host.launch(app).await;
    let (ending, status) = session.ended().await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    let AgentPhase::Ended {
        running_ms: Some(ran),
        ..
    } = status.phase
    else {
        panic!()
    };
    assert!(ran.0 < 700, "TERM was late: {ran:?}");
    // Held from before it answered; the tree was gone a grace after TERM.
    session.nothing_is_left().await;
    let log = session.log();
    assert!(
        log.iter().any(|line| line.contains("daemon is up")),
        "{log:?}"
    );
}

#[tokio::test]
async fn an_extension_is_kept_and_the_server_is_told() {
    let host = Host::new().await;
    let session = host
        .launch(App::new(python("serve.py")).granted(Millis(600)))
        .await;
    session.running().await;
    session
        .say(ServerMessage::Lease {
            granted_ms: Millis(1_500),
        })
        .await;
    session
        .until(|status| status.granted_ms == Millis(1_500))
        .await;
    let (_, status) = session.ended().await;
    let AgentPhase::Ended {
        running_ms: Some(ran),
        ..
    } = status.phase
    else {
        panic!()
    };
    assert!(ran.0 >= 1_500, "{ran:?}");
}

#[tokio::test]
async fn an_app_that_exits_at_once_fails_with_its_last_words() {
    let host = Host::new().await;
    let session = host.launch(App::shell("echo no cheese >&2; exit 3")).await;
    let (ending, _) = session.ended().await;
    assert_eq!(
        ending,
        Ending::failed(
            "The app exited with status 3 before it answered on its port: no cheese".into()
        )
    );
    session.nothing_is_left().await;
}

#[tokio::test]
async fn an_app_that_exits_later_takes_its_daemons_with_it() {
    let host = Host::new().await;
    let session = host.launch(App::new(python("leaves_daemon.py"))).await;
    let (ending, _) = session.ended().await;
    assert_eq!(ending, Ending::plain(EndReason::Exited));
    session.nothing_is_left().await;
}

#[tokio::test]
async fn an_app_that_never_listens_fails_at_its_start_limit() {
    let host = Host::new().await;
    let app = App::shell("exec sleep 1000").start_limit(Millis(400));
    let session = host.launch(app).await;
    let (ending, _) = session.ended().await;
    assert_eq!(
        ending,
        Ending::failed("The app did not answer on its port within 400 ms".into())
    );
    session.nothing_is_left().await;
}

#[tokio::test]
async fn an_app_that_listens_late_loses_none_of_its_time() {
    let host = Host::new().await;
    let app = App::shell(&format!("sleep 0.8; exec {}", python("serve.py").join(" ")));
    let session = host.launch(app.granted(Millis(600))).await;
    let (ending, status) = session.ended().await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    let AgentPhase::Ended {
        running_ms: Some(ran),
        ..
    } = status.phase
    else {
        panic!()
    };
    assert!((600..1_600).contains(&ran.0), "{ran:?}");
    assert!(status.held_ms.0 >= 1_400, "{:?}", status.held_ms);
}

#[tokio::test]
async fn an_app_that_answers_500_is_not_ready_until_it_stops_to() {
    let host = Host::new().await;
    let session = host.launch(App::new(python("sick_then_well.py"))).await;
    session.running().await;
    let log = session.log();
    assert!(log.iter().any(|line| line == "well now"), "{log:?}");
}

#[tokio::test]
async fn what_cannot_be_started_says_what_and_why() {
    let host = Host::new().await;
    let session = host.launch(App::new(vec!["no-such-program".into()])).await;
    let (ending, _) = session.ended().await;
    let sentence = ending.error.unwrap();
    assert!(
        sentence.starts_with("The program no-such-program was not found on PATH"),
        "{sentence}"
    );

    let session = host
        .launch(App::shell("true").workdir("/no/such/place"))
        .await;
    let (ending, _) = session.ended().await;
    assert_eq!(
        ending.error.unwrap(),
        "The directory /no/such/place is not there"
    );
}

#[tokio::test]
async fn a_flood_of_output_is_kept_within_its_limit_and_the_lease_is_kept_too() {
    let host = Host::new().await;
    let app = App::new(python("flood.py")).granted(Millis(1_000));
    let session = host.launch(app).await;
    let (ending, status) = session.ended().await;
    assert_eq!(ending.reason, EndReason::TimedOut);
    let AgentPhase::Ended {
        running_ms: Some(ran),
        ..
    } = status.phase
    else {
        panic!()
    };
    assert!(ran.0 < 1_500, "{ran:?}");
    assert!(session.log_bytes() < 2 << 20, "{}", session.log_bytes());
    session.nothing_is_left().await;
}

#[tokio::test]
async fn the_app_has_a_clean_environment_and_a_directory_of_its_own() {
    let host = Host::new().await;
    let session = host.launch(App::shell("env; pwd; echo end; exit 1")).await;
    session.ended().await;
    let log = session.log();
    let has = |start: &str| log.iter().any(|line| line.starts_with(start));
    for wanted in [
        "PATH=",
        "PORT=1",
        "CUDA_VISIBLE_DEVICES=GPU-7",
        "DWELL_SESSION_ID=",
        "COLOUR=blue",
    ] {
        assert!(has(wanted), "{wanted} is missing: {log:?}");
    }
    // What cargo gave this test, and so the agent, must not get through.
    assert!(!has("CARGO"), "{log:?}");
    assert!(log.iter().any(|line| line.ends_with("/work")), "{log:?}");
}

#[tokio::test]
async fn a_second_launch_finds_the_first() {
    let host = Host::new().await;
    let session = host.launch(App::new(python("serve.py"))).await;
    session.running().await;
    assert_eq!(session.launch_again().await, "AlreadyRunning");
    session.say(cancelled()).await;
    session.ended().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_takes_its_app_along_and_the_next_one_tells_the_end() {
    let host = Host::new().await;
    let session = host.launch(App::new(python("stubborn.py"))).await;
    session.running().await;
    session.kill_agent().await;
    session
        .no_process_is_left_within(Duration::from_secs(2))
        .await;
    assert_eq!(session.launch_again().await, "Started");
    let (ending, status) = session.ended().await;
    assert_eq!(
        ending,
        Ending::failed("Its agent was killed, and the app with it".into())
    );
    assert!(matches!(
        status.phase,
        AgentPhase::Ended {
            running_ms: Some(_),
            ..
        }
    ));
    session.nothing_is_left().await;
    assert_eq!(session.starts(), 1, "the app was started twice");
}

#[tokio::test]
async fn an_app_starts_with_no_signal_blocked_or_ignored() {
    let host = Host::new().await;
    let words = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"];
    let session = host.launch(App::new(words.map(str::to_owned).into())).await;
    session.ended().await;
    let log = session.log();
    // Those above are the C library's own.
    let of_all = |line: &String| u64::from_str_radix(line.rsplit('\t').next()?, 16).ok();
    let masks: Vec<_> = log
        .iter()
        .filter(|it| it.starts_with("Sig"))
        .map(of_all)
        .collect();
    let usual = masks
        .iter()
        .all(|mask| mask.is_some_and(|mask| mask & 0x7fff_ffff == 0));
    assert!(masks.len() == 2 && usual, "{log:?}");
}

#[tokio::test]
async fn when_every_process_is_told_to_go_the_app_has_its_grace_and_the_end_says_why() {
    let host = Host::new().await;
    let says_so = "trap 'echo goes; sleep 0.1; echo gone; exit 3' TERM; python3 -m http.server \
                   $PORT & while :; do sleep 0.02; done";
    let session = host.launch(App::shell(says_so)).await;
    session.running().await;
    session.signal_all(Signal::SIGTERM);
    let (ending, _) = session.ended().await;
    assert_eq!(
        ending,
        Ending::failed("Its host is shutting down".to_owned())
    );
    let log = session.log();
    assert!(log.iter().any(|line| line.contains("gone")), "{log:?}");
    session.nothing_is_left().await;
}

#[tokio::test]
async fn an_agent_that_loses_its_server_calls_again() {
    let mut host = Host::new().await;
    let session = host.launch(App::new(python("serve.py"))).await;
    session.running().await;
    host.cut_all();
    session.calls_again().await;
    session.say(cancelled()).await;
    session.ended().await;
}

#[tokio::test]
async fn what_the_server_never_heard_is_told_by_the_next_agent() {
    let mut host = Host::without_server().await;
    let session = host.launch(App::shell("exit 7")).await;
    session.end_is_in_the_journal().await;
    session.kill_agent().await;
    host.serve().await;
    assert_eq!(session.launch_again().await, "Started");
    let (ending, _) = session.ended().await;
    assert_eq!(ending.reason, EndReason::Failed);
    session.nothing_is_left().await;
}

#[tokio::test]
async fn a_session_whose_agent_is_paused_ends_on_time_and_is_billed_to_its_end() {
    let host = Host::new().await;
    let app = App::new(python("stubborn.py")).granted(Millis(700));
    let session = host.launch(app).await;
    session.running().await;
    session.signal_agent(Signal::SIGSTOP);
    // 700 ms of its time, 500 of its grace, 100 for an agent that is merely late.
    session
        .no_process_is_left_within(Duration::from_millis(700 + 1_000))
        .await;
    // The longer it is paused the more there would be to bill wrongly.
    tokio::time::sleep(Duration::from_secs(2)).await;
    session.signal_agent(Signal::SIGCONT);
    let (ending, status) = session.ended().await;
    assert_eq!(ending, Ending::plain(EndReason::TimedOut));
    let AgentPhase::Ended { running_ms, .. } = status.phase else {
        panic!("{status:?}")
    };
    let ran = running_ms.unwrap();
    assert!((700..1_700).contains(&ran.0), "{ran:?}");
    assert!(status.held_ms.0 < ran.0 + 1_500, "{:?}", status.held_ms);
    session.nothing_is_left().await;
}

#[tokio::test]
async fn a_session_whose_first_process_is_paused_ends_on_time() {
    let host = Host::new().await;
    let app = App::new(python("stubborn.py")).granted(Millis(500));
    let session = host.launch(app).await;
    session.running().await;
    session.signal_first_process(Signal::SIGSTOP);
    let (ending, _) = session.ended().await;
    assert_eq!(ending, Ending::plain(EndReason::TimedOut));
    session.nothing_is_left().await;
}

#[tokio::test]
async fn a_paused_agent_is_had_to_go_on_by_whoever_looks_for_it() {
    let host = Host::new().await;
    let session = host.launch(App::new(python("serve.py"))).await;
    session.running().await;
    session.signal_agent(Signal::SIGSTOP);
    session.say(cancelled()).await;
    assert_eq!(session.launch_again().await, "AlreadyRunning");
    let (ending, _) = session.ended().await;
    assert_eq!(ending, Ending::plain(EndReason::Cancelled));
    session.nothing_is_left().await;
}

#[tokio::test]
async fn what_is_left_of_a_session_whose_directory_was_lost_is_ended_and_nothing_is_begun() {
    let host = Host::new().await;
    let mut session = host.launch(App::new(python("stubborn.py"))).await;
    session.running().await;
    session.signal_agent(Signal::SIGSTOP);
    session.lose_directory();
    assert_eq!(session.launch_again().await, "Started");
    let (ending, _) = session.ended().await;
    assert_eq!(
        ending,
        Ending::failed("What its host kept of it was lost".into())
    );
    session
        .no_process_is_left_within(Duration::from_secs(2))
        .await;
}

#[tokio::test]
async fn an_end_that_the_server_could_not_keep_is_said_again() {
    let host = Host::new().await;
    let session = host.launch(App::shell("exit 7")).await;
    // Heard, and no word that it is on record.
    session.until(|status| status.phase.rank() == 3).await;
    session.is_heard_again().await;
    session.ended().await;
}
