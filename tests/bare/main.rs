//! The static agent where there is nothing but BusyBox, and nothing that it could be linked
//! with. Needs the rights of root in a namespace, and `make test-bare`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on has failed"
)]

#[path = "../agent/host.rs"]
#[expect(dead_code, reason = "the agent's own tests need more")]
mod host;
mod names;
mod root;

use std::path::{Path, PathBuf};
use std::process::Command;

use axum::Router;
use axum::body::Body;
use axum::extract::{self, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dwell::agent::spec::AppLimits;
use dwell::agents::Agents;
use dwell::data_dir::SessionsDir;
use dwell::launcher::cluster::Order;
use dwell::launcher::handout::{self, Handout};
use dwell::session_log::copying;
use dwell_core::gpu::GpuType;
use dwell_core::id::SessionId;
use dwell_core::protocol::{LOG_PROTOCOL, ServerMessage};
use dwell_core::session::{EndReason, Ending};
use dwell_core::time::Millis;
use host::{App, Host};
use hyper_util::rt::TokioIo;
use names::Names;
use root::Root;
use tokio::sync::watch;

/// What the build made, beside the `dwell` of the tests.
fn static_agent() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_dwell")).with_file_name("dwell-agent");
    assert!(path.exists(), "make test-bare builds {}", path.display());
    path
}

/// BusyBox's web server, and a word before it.
fn app() -> App {
    App::shell("echo the app begins; exec busybox httpd -f -p $PORT -h /www")
}

fn order(server_url: &str, sha256: &str, assignment: String) -> Order {
    let session = SessionId(uuid::Uuid::new_v4());
    Order {
        session,
        name: format!("dwell-test-{session}"),
        gpu_type: GpuType::cpu(),
        container: None,
        time_limit: Millis::from_minutes(1),
        grace: Millis(500),
        limits: AppLimits::default(),
        server_url: server_url.to_owned(),
        agent: Handout::of(server_url, sha256),
        assignment,
    }
}

/// Take the log that an agent brings.
fn logs(sessions: SessionsDir) -> Router {
    let take = async move |extract::Path(id): extract::Path<SessionId>, mut request: Request| {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let connection = TokioIo::new(upgrade.await.unwrap());
            let _ = copying::receive(&sessions.of(id).log(), connection, 1 << 20).await;
        });
        let headers = [("connection", "upgrade"), ("upgrade", LOG_PROTOCOL)];
        let answer: Response =
            (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response();
        answer
    };
    Router::new().route("/agent/v1/sessions/{id}/log", get(take))
}

/// A host that hands out the static agent; its port, and the agent's hash.
async fn host_with_agent() -> (Host, u16, String) {
    let mut host = Host::without_server().await;
    let sessions = host.sessions();
    let dir = sessions.0.with_file_name("agents");
    let (_, servers) = watch::channel(None);
    let agents = Agents::new(dir, servers);
    let sha256 = agents.take_in(static_agent()).await.unwrap();
    let port = host.serve_with(agents.router().merge(logs(sessions))).await;
    (host, port, sha256)
}

#[test]
fn nothing_is_needed_of_the_host_that_it_runs_on() {
    let read = Command::new("readelf")
        .args(["--wide", "--program-headers", "--dynamic"])
        .arg(static_agent())
        .output()
        .unwrap();
    assert!(read.status.success());
    let read = String::from_utf8(read.stdout).unwrap();
    assert!(read.contains("LOAD"), "{read}");
    assert!(
        !read.contains("INTERP") && !read.contains("NEEDED"),
        "{read}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_an_empty_image_fetches_its_agent_and_runs_its_session() {
    let (host, port, sha256) = host_with_agent().await;
    let root = Root::new();
    root.write("etc/hosts", "127.0.0.1 server.example\n");
    let url = format!("http://server.example:{port}");
    let (session, assignment) = host.put_into_job(app(), &url);
    let assignment = serde_json::to_string(&assignment).unwrap();
    root.write(
        "job",
        &handout::script(&order(&url, &sha256, assignment), None, None),
    );
    let job = root.start(&["/bin/sh", "/job"]);
    session.until(|status| status.phase.rank() >= 1).await;
    session
        .say(ServerMessage::Stop {
            ending: Ending::plain(EndReason::Cancelled),
        })
        .await;
    let (ending, _) = session.ended().await;
    assert_eq!(ending, Ending::plain(EndReason::Cancelled));
    let ended = job.ended();
    assert!(ended.status.success(), "{ended:?}");
    assert!(session.log().contains(&"the app begins".to_owned()));
    // It was fetched to where its home is, and nothing else is left.
    assert_eq!(root.names_in("home/.cache/dwell/agents"), [sha256]);
    assert!(root.names_in("tmp").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_looked_up_by_dns_whatever_the_host_would_have_the_c_library_load() {
    let (host, port, _) = host_with_agent().await;
    let names = Names::new();
    let root = Root::new();
    root.write("etc/hosts", "");
    root.write(
        "etc/resolv.conf",
        &format!("nameserver {}\n", names.address()),
    );
    // It would be the end of every search.
    root.write("etc/nsswitch.conf", "hosts: nowhere [UNAVAIL=return] dns\n");
    std::fs::copy(static_agent(), root.path("dwell-agent")).unwrap();
    let (session, assignment) = host.put_into_job(app(), &format!("http://far.example:{port}"));
    let assignment = serde_json::to_string(&assignment).unwrap();
    let job = root.start_with(&[("DWELL_AGENT", &assignment)], &["/dwell-agent", "job"]);
    session.until(|status| status.phase.rank() >= 1).await;
    assert!(names.asked_for().contains(&"far.example".to_owned()));
    drop(job);
    session.no_process_is_left_within(host::PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_where_no_program_may_run_is_done_without() {
    let (_host, port, sha256) = host_with_agent().await;
    let url = format!("http://127.0.0.1:{port}");
    let script = handout::script(&order(&url, &sha256, "nothing".to_owned()), None, None);
    let root = Root::new();
    root.write("job", &script);
    root.forbid_programs("home");
    let ended = root.start(&["/bin/sh", "/job"]).ended();
    assert!(ended.err.contains("cannot be run: "), "{ended:?}");
    // It runs, and finds that this is nothing to do.
    assert!(
        ended.err.contains("dwell agent: DWELL_AGENT: "),
        "{ended:?}"
    );
    let [dir] = &root.names_in("tmp")[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(root.names_in(&format!("tmp/{dir}")), [sha256]);

    let root = Root::new();
    root.write("job", &script);
    root.forbid_programs("home");
    root.forbid_programs("tmp");
    let ended = root.start(&["/bin/sh", "/job"]).ended();
    let why = ended.status.code().and_then(handout::trouble).unwrap();
    assert!(why.contains("no program may"), "{ended:?}");
}
