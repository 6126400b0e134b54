//! What needs a server: finding it, and each command against it.

use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dwell::data_dir::{DataDir, DataDirLock, ServerFile};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use nix::unistd::Pid;

use super::fake::Fake;
use super::{Home, Said, said};

const ID: &str = "3f2a91c0-0000-4000-8000-000000000001";

fn session(status: &str, more: &str) -> String {
    format!(
        r#"{{"id":"{ID}","session_id":"{ID}","gpu":"CPU","created_at":"2026-11-23T12:00:00.000Z","status":"{status}","timeout":15{more}}}"#
    )
}

fn running() -> String {
    session(
        "running",
        r#","url":"http://127.0.0.1:20000","timeout_end":"2999-01-01T00:00:00.000Z","started_at":"2026-11-23T12:00:01.000Z""#,
    )
}

fn ended(reason: &str, error: &str) -> String {
    session(
        "ended",
        &format!(
            r#","started_at":"2026-11-23T12:00:01.000Z","ended_at":"2026-11-23T12:10:01.000Z","end_reason":"{reason}","error":{error},"cost":0.25"#
        ),
    )
}

impl Home {
    fn ask(&self, fake: &Fake, words: &[&str]) -> Command {
        let mut command = self.dwell(words);
        command.env("DWELL_URL", &fake.url);
        command
    }
}

/// A data directory that the server at `url` holds.
fn held(home: &Home, name: &str, url: &str) -> (DataDir, DataDirLock) {
    let dir = DataDir(home.path(name));
    dir.create().unwrap();
    dir.write_admin_key("dwell_admin").unwrap();
    let lock = dir.hold().unwrap();
    let (url, pid) = (url.to_owned(), std::process::id());
    dir.write_server_file(&ServerFile { url, pid }).unwrap();
    (dir, lock)
}

fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_server_that_is_not_there_is_named_with_what_to_do() {
    // Taken, so that nobody else listens there, and not listened to.
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address: SockaddrIn = getsockname(socket.as_raw_fd()).unwrap();
    let url = format!("http://{address}");
    let home = Home::new();
    for words in [&["ls"][..], &["run", "--", "app"]] {
        let said = said(home.dwell(words).env("DWELL_URL", &url));
        assert_eq!(
            said.stderr,
            format!(
                "error: no server answers at {url} (connection refused); start one with `dwell serve`, or name another with --url or DWELL_URL\n"
            )
        );
        assert_eq!(said.code, Some(1));
    }
    let bad = said(&mut home.dwell(&["ls", "--url", "gpu:8080"]));
    assert_eq!(bad.code, Some(1));
    assert!(bad.stderr.contains("http://"), "{}", bad.stderr);
}

#[test]
fn a_flag_is_right_over_the_environment_and_that_over_the_data_directory() {
    let (home, fake, other) = (Home::new(), Fake::new(), Fake::new());
    fake.on("GET /sessions", 200, "[]");
    other.on("GET /sessions", 200, "[]");
    let (dir, _lock) = held(&home, "data", &fake.url);
    let dir = dir.0.to_str().unwrap().to_owned();
    let key_at = |server: &Fake| server.asked().last().unwrap().key.clone();

    // The data directory alone: its server, by its admin key.
    assert_eq!(
        said(&mut home.dwell(&["ls", "--data-dir", &dir])).code,
        Some(0)
    );
    assert_eq!(key_at(&fake).as_deref(), Some("dwell_admin"));
    assert_eq!(
        said(home.dwell(&["ls"]).env("DWELL_DATA_DIR", &dir)).code,
        Some(0)
    );
    assert_eq!(fake.asked().len(), 2);

    // A key of one's own.
    let mut own = home.dwell(&["ls"]);
    own.env("DWELL_DATA_DIR", &dir).env("DWELL_API_KEY", "mine");
    assert_eq!(said(&mut own).code, Some(0));
    assert_eq!(key_at(&fake).as_deref(), Some("mine"));
    own.args(["--api-key", "flag"]);
    assert_eq!(said(&mut own).code, Some(0));
    assert_eq!(key_at(&fake).as_deref(), Some("flag"));

    // A URL.
    let mut elsewhere = home.dwell(&["ls"]);
    elsewhere.env("DWELL_URL", &other.url);
    assert_eq!(said(&mut elsewhere).code, Some(0));
    assert_eq!(key_at(&other), None);
    elsewhere.args(["--url", &fake.url]);
    assert_eq!(said(&mut elsewhere).code, Some(0));
    assert_eq!(other.asked().len(), 1);
}

#[test]
fn the_users_own_data_directory_is_found_and_its_key_goes_to_no_one_else() {
    let (home, fake, other) = (Home::new(), Fake::new(), Fake::new());
    fake.on("GET /sessions", 200, "[]");
    other.on("GET /sessions", 200, "[]");
    let _held = held(&home, ".local/share/dwell", &fake.url);
    assert_eq!(said(&mut home.dwell(&["ls"])).code, Some(0));
    assert_eq!(fake.asked()[0].key.as_deref(), Some("dwell_admin"));
    assert_eq!(said(&mut home.ask(&other, &["ls"])).code, Some(0));
    assert_eq!(other.asked()[0].key, None);
    assert_eq!(said(&mut home.ask(&fake, &["ls"])).code, Some(0));
    assert_eq!(fake.asked()[1].key.as_deref(), Some("dwell_admin"));
}

#[test]
fn a_data_directory_without_a_server_is_said_to_have_none() {
    let home = Home::new();
    let said = said(&mut home.dwell(&["ls", "--data-dir", "data"]));
    assert_eq!(
        said.stderr,
        "error: no server runs on the data directory data; start one with `dwell serve --data-dir data`\n"
    );
    assert_eq!(said.code, Some(1));
}

#[test]
fn a_refusal_is_told_in_the_servers_words_with_a_remedy_for_a_missing_key() {
    let (home, fake) = (Home::new(), Fake::new());
    fake.on(
        "GET /sessions",
        401,
        r#"{"detail": "Invalid or missing token"}"#,
    );
    let refused = said(&mut home.ask(&fake, &["ls"]));
    assert_eq!(refused.code, Some(1));
    assert!(
        refused
            .stderr
            .starts_with("error: Invalid or missing token; give a key"),
        "{}",
        refused.stderr
    );
    let path = format!("POST /session/{ID}/increase-timeout");
    fake.on(
        &path,
        422,
        r#"{"detail": [{"loc": ["body", "minutes"], "msg": "too many", "type": "x"}]}"#,
    );
    let refused = said(&mut home.ask(&fake, &["extend", ID, "9999"]));
    assert_eq!(refused.stderr, "error: minutes: too many\n");
    fake.now("GET /sessions", 500, "<html>");
    let refused = said(&mut home.ask(&fake, &["ls"]));
    assert!(
        refused.stderr.contains("does not answer as a Dwell server"),
        "{refused:?}"
    );
}

#[test]
fn a_list_is_a_table_for_people_and_the_apis_json_for_scripts() {
    let (home, fake) = (Home::new(), Fake::new());
    let body = format!("[{}]", running());
    fake.on("GET /sessions", 200, &body);
    let table = said(&mut home.ask(&fake, &["ls"]));
    let lines: Vec<_> = table.stdout.lines().collect();
    assert!(
        lines[0].starts_with("ID        STATUS   GPU  MACHINE  CREATED"),
        "{table:?}"
    );
    assert!(lines[1].starts_with("3f2a91c0  running  CPU"), "{table:?}");
    assert!(lines[1].ends_with("http://127.0.0.1:20000"), "{table:?}");
    let json = said(&mut home.ask(&fake, &["ls", "--json"]));
    assert_eq!(json.stdout, format!("{body}\n"));
    said(&mut home.ask(&fake, &["ls", "--all"]));
    assert!(
        fake.find("GET /sessions?include_ended=true&limit=1000")
            .is_some()
    );

    fake.now("GET /sessions", 200, "[]");
    let none = said(&mut home.ask(&fake, &["ls"]));
    assert_eq!(none.stdout, "");
    assert!(none.stderr.contains("no open sessions"), "{none:?}");
}

#[test]
fn an_id_may_be_shortened() {
    let (home, fake) = (Home::new(), Fake::new());
    let other = running().replace("3f2a91c0", "3f2b0000");
    fake.on("GET /sessions", 200, &format!("[{},{other}]", running()));
    fake.on(&format!("GET /session/{ID}"), 200, &running());
    let shown = said(&mut home.ask(&fake, &["show", "3f2a"]));
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(
        shown
            .stdout
            .contains(&format!("id       {ID}\nstatus   running")),
        "{shown:?}"
    );
    let json = said(&mut home.ask(&fake, &["show", "--json", "3f2a"]));
    assert_eq!(json.stdout.trim_end(), running());
    let ambiguous = said(&mut home.ask(&fake, &["show", "3f2"]));
    assert_eq!(
        ambiguous.stderr,
        "error: 2 sessions begin with 3f2; give more of the id\n"
    );
    let none = said(&mut home.ask(&fake, &["stop", "77"]));
    assert_eq!(
        none.stderr,
        "error: no open session begins with 77; `dwell ls` shows those there are\n"
    );
}

#[test]
fn run_prints_the_url_alone_on_stdout_and_follows_to_the_end() {
    let (home, fake) = (Home::new(), Fake::new());
    fake.on(
        "POST /session/dynamic",
        200,
        &format!(r#"{{"session_id":"{ID}","url":null}}"#),
    );
    let path = format!("GET /session/{ID}");
    fake.on(&path, 200, &session("queued", r#","queue_position":3"#));
    fake.on(&path, 200, &session("starting", ""));
    fake.on(&path, 200, &running());
    fake.on(&path, 200, &session("stopping", ""));
    fake.on(&path, 200, &ended("timed_out", "null"));
    let words = [
        "run",
        "--gpu",
        "CPU",
        "--timeout",
        "7",
        "--env",
        "A=1",
        "--env",
        "B=x=y",
        "--workdir",
        ".",
        "--",
        "python3",
        "-m",
        "http.server",
        "{port}",
    ];
    let said = said(&mut home.ask(&fake, &words));
    assert_eq!(said.stdout, "http://127.0.0.1:20000\n");
    assert_eq!(said.code, Some(0));
    assert_eq!(
        said.stderr.lines().collect::<Vec<_>>(),
        [
            "asking for a session",
            &format!("session {ID}"),
            "queued for CPU, position 3",
            "starting",
            "running",
            "stopping",
            "the session ended: its time was up; it ran for 10 min and cost $0.25",
        ]
    );
    let body = fake.find("POST /session/dynamic").unwrap().body;
    let here = home.dir.path().canonicalize().unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "command": ["python3", "-m", "http.server", "{port}"],
            "gpu": "CPU",
            "timeout": 7,
            "workdir": here.to_str().unwrap(),
            "environment": {"A": "1", "B": "x=y"},
        })
    );
}

#[test]
fn run_fails_when_the_session_does_and_shows_what_the_app_wrote_last() {
    let (home, fake) = (Home::new(), Fake::new());
    fake.on(
        "POST /session/dynamic",
        200,
        &format!(r#"{{"session_id":"{ID}","url":null}}"#),
    );
    fake.on(
        &format!("GET /session/{ID}"),
        200,
        &ended(
            "failed",
            r#""The app exited with status 1 before it answered""#,
        ),
    );
    fake.on(
        "GET /v2/stream-logs",
        200,
        "data: {\"message\":\"no such module\",\"level\":\"warning\",\"timestamp\":\"t\"}\n\ndata: {\"type\":\"stream_complete\",\"source\":\"session\"}\n\n",
    );
    let said = said(&mut home.ask(&fake, &["run", "--", "app"]));
    assert_eq!(said.code, Some(1));
    assert_eq!(said.stdout, "");
    assert!(
        said.stderr.contains("  | no such module\n"),
        "{}",
        said.stderr
    );
    assert!(
        said.stderr.contains(
            "error: the session ended: it failed: The app exited with status 1 before it answered"
        ),
        "{}",
        said.stderr
    );
}

#[test]
fn the_first_ctrl_c_ends_the_session_and_waits_for_its_end() {
    let (home, fake) = (Home::new(), Fake::new());
    let path = format!("GET /session/{ID}");
    let delete = format!("DELETE /session/{ID}");
    fake.on(
        "POST /session/dynamic",
        200,
        &format!(r#"{{"session_id":"{ID}","url":null}}"#),
    );
    fake.on(&path, 200, &session("starting", ""));
    fake.on(&delete, 200, r#"{"success": true}"#);
    let child = spawn(&mut home.ask(&fake, &["run", "--", "app"]));
    until("a first look", || fake.find(&path).is_some());
    interrupt(&child);
    let asked_to_end = format!("{delete}?wait_for_shutdown=false");
    until("the request to end", || fake.find(&asked_to_end).is_some());
    fake.now(&path, 200, &ended("cancelled", "null"));
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.stderr.contains("the session ended: cancelled"),
        "{said:?}"
    );
}

#[test]
fn the_second_ctrl_c_leaves_at_once() {
    let (home, fake) = (Home::new(), Fake::new());
    let path = format!("GET /session/{ID}");
    let delete = format!("DELETE /session/{ID}");
    fake.on(
        "POST /session/dynamic",
        200,
        &format!(r#"{{"session_id":"{ID}","url":null}}"#),
    );
    fake.on(&path, 200, &running());
    fake.on(&delete, 200, r#"{"success": true}"#);
    let child = spawn(&mut home.ask(&fake, &["run", "--", "app"]));
    until("a first look", || fake.find(&path).is_some());
    interrupt(&child);
    let asked_to_end = format!("{delete}?wait_for_shutdown=false");
    until("the request to end", || fake.find(&asked_to_end).is_some());
    // It never ends.
    interrupt(&child);
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr.ends_with(&format!(
            "error: left without waiting; the end of session {ID} was asked for\n"
        )),
        "{said:?}"
    );
}

#[test]
fn detached_from_a_session_it_goes_on() {
    let (home, fake) = (Home::new(), Fake::new());
    fake.on("GET /machines", 200, r#"[{"id": "m-1", "name": "lab"}]"#);
    fake.on(
        "POST /session",
        200,
        &format!(r#"{{"session_id":"{ID}","url":null}}"#),
    );
    fake.on(&format!("GET /session/{ID}"), 200, &running());
    let up = said(&mut home.ask(&fake, &["up", "lab", "--detach"]));
    assert_eq!(up.stdout, "http://127.0.0.1:20000\n");
    assert_eq!(up.code, Some(0));
    assert!(
        up.stderr.contains(&format!("`dwell stop {ID}` ends it")),
        "{up:?}"
    );
    let body = fake.find("POST /session").unwrap().body;
    assert_eq!(body, serde_json::json!({"machine_id": "m-1"}));

    let unknown = said(&mut home.ask(&fake, &["up", "zoo"]));
    assert_eq!(
        unknown.stderr,
        "error: no machine is named zoo; `dwell machines ls` shows those there are\n"
    );
    let nowhere = said(&mut home.dwell(&["run", "--detach", "--data-dir", "x", "--", "app"]));
    assert!(
        nowhere.stderr.contains("`dwell serve` first"),
        "{nowhere:?}"
    );
}

#[test]
fn a_log_is_shown_as_the_app_wrote_it() {
    let (home, fake) = (Home::new(), Fake::new());
    let line = |level: &str, message: &str| {
        format!(
            "data: {{\"message\":\"{message}\",\"level\":\"{level}\",\"timestamp\":\"2026-11-23T12:00:00.000Z\"}}\n\n"
        )
    };
    let events = [
        line("info", "hello"),
        "data: {\"type\":\"keepalive\"}\n\n".to_owned(),
        line("error", "The log is full"),
        "data: {\"type\":\"stream_complete\",\"source\":\"session\"}\n\n".to_owned(),
    ];
    fake.on("GET /v2/stream-logs", 200, &events.concat());
    let followed = said(&mut home.ask(&fake, &["logs", "-f", ID]));
    assert_eq!(followed.stdout, "hello\ndwell: The log is full\n");
    assert_eq!(followed.code, Some(0));
    let json = said(&mut home.ask(&fake, &["logs", "-f", "--json", ID]));
    assert_eq!(
        json.stdout.lines().next(),
        Some(r#"{"timestamp":"2026-11-23T12:00:00.000Z","level":"info","message":"hello"}"#)
    );
    // Without following, what is there now is all.
    let now = said(&mut home.ask(&fake, &["logs", ID]));
    assert_eq!(now.stdout, "hello\n");

    fake.now("GET /v2/stream-logs", 200, &line("info", "cut"));
    let cut = said(&mut home.ask(&fake, &["logs", "-f", ID]));
    assert_eq!(cut.stdout, "cut\n");
    assert_eq!(cut.code, Some(1));
    assert!(cut.stderr.contains("ended before the log did"), "{cut:?}");
}

#[test]
fn stop_asks_all_first_and_waits_if_told_to() {
    let (home, fake) = (Home::new(), Fake::new());
    let delete = format!("DELETE /session/{ID}");
    let path = format!("GET /session/{ID}");
    fake.on(&delete, 200, r#"{"success": true}"#);
    fake.on(&path, 200, &session("stopping", ""));
    fake.on(&path, 200, &ended("cancelled", "null"));
    let stopped = said(&mut home.ask(&fake, &["stop", "--wait", ID]));
    assert_eq!(stopped.stdout, format!("{ID} ended\n"));
    assert_eq!(stopped.code, Some(0));
    let gone = "00000000-0000-4000-8000-000000000009";
    let both = said(&mut home.ask(&fake, &["stop", gone, ID]));
    assert_eq!(both.code, Some(1));
    assert_eq!(both.stdout, format!("{ID} stopping\n"));
    assert!(both.stderr.contains(gone), "{both:?}");
}

#[test]
fn extend_says_how_much_time_is_left() {
    let (home, fake) = (Home::new(), Fake::new());
    let path = format!("POST /session/{ID}/increase-timeout");
    fake.on(
        &path,
        200,
        r#"{"message": "Timeout increased successfully"}"#,
    );
    fake.on(&format!("GET /session/{ID}"), 200, &running());
    let extended = said(&mut home.ask(&fake, &["extend", ID, "30"]));
    assert!(extended.stdout.ends_with(" left\n"), "{extended:?}");
    assert_eq!(
        fake.find(&path).unwrap().body,
        serde_json::json!({"minutes": 30})
    );
}

#[test]
fn keys_create_prints_the_key_and_nothing_else() {
    let (home, fake) = (Home::new(), Fake::new());
    fake.on(
        "POST /platform/api-keys",
        200,
        r#"{"key": "dwell_new", "id": "k"}"#,
    );
    let (dir, _lock) = held(&home, "data", &fake.url);
    let words = [
        "keys",
        "create",
        "--user",
        "ada",
        "--org",
        "lovelace",
        "--data-dir",
        dir.0.to_str().unwrap(),
    ];
    let made = said(&mut home.dwell(&words));
    assert_eq!(
        (made.stdout.as_str(), made.stderr.as_str()),
        ("dwell_new\n", "")
    );
    let asked = fake.find("POST /platform/api-keys").unwrap();
    assert_eq!(asked.key.as_deref(), Some("dwell_admin"));
    assert_eq!(
        asked.body,
        serde_json::json!({"name": "command line", "user": "ada", "org": "lovelace"})
    );
}

#[test]
fn machines_are_made_changed_and_listed() {
    let (home, fake) = (Home::new(), Fake::new());
    let machine = r#"{"id":"m-000001","name":"lab","command":"jupyter lab","gpu":"A10G","timeout":60,"version":2}"#;
    fake.on("POST /machine/serverless", 200, machine);
    fake.on("PATCH /machine/serverless/m-000001", 200, machine);
    fake.on("GET /machines", 200, &format!("[{machine}]"));
    let create = [
        "machines",
        "create",
        "--name",
        "lab",
        "--command",
        "jupyter lab",
        "--timeout",
        "60",
    ];
    let made = said(&mut home.ask(&fake, &create));
    assert_eq!(made.stdout, "m-000001\n");
    assert_eq!(
        fake.find("POST /machine/serverless").unwrap().body,
        serde_json::json!({"name": "lab", "command": "jupyter lab", "timeout": 60})
    );
    let changed = said(&mut home.ask(&fake, &["machines", "update", "lab", "--", "app", "-x"]));
    assert_eq!(changed.stdout, "m-000001 version 2\n");
    assert_eq!(
        fake.find("PATCH /machine/serverless/m-000001")
            .unwrap()
            .body,
        serde_json::json!({"command": ["app", "-x"]})
    );
    let nothing = said(&mut home.ask(&fake, &["machines", "update", "lab"]));
    assert_eq!(nothing.code, Some(1));
    let listed = said(&mut home.ask(&fake, &["machines", "ls"]));
    assert_eq!(
        listed.stdout,
        "ID        NAME  VERSION  GPU   TIMEOUT  CHANGED  COMMAND\nm-000001  lab   2        A10G  60 min            jupyter lab\n"
    );
}

#[test]
fn usage_is_asked_for_a_period() {
    let (home, fake) = (Home::new(), Fake::new());
    fake.on(
        "GET /platform/usage",
        200,
        r#"{"usage":[{"gpu":"A10G","usage_in_sec":3600.0,"cost":1.1}],"total_cost":1.1}"#,
    );
    let used = said(&mut home.ask(&fake, &["usage", "--since", "2026-11-01"]));
    assert_eq!(
        used.stdout,
        "GPU   TIME  COST\nA10G  1 h   $1.10\nall   1 h   $1.10\n"
    );
    assert!(
        fake.find("GET /platform/usage?start_time=2026-11-01T00%3A00%3A00.000Z")
            .is_some()
    );
}
