//! What users and operators see of sessions in containers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::{BUSYBOX, Engine, Kind};
use crate::harness::{Api, DWELL, Server, app_processes, here, venv_program};

/// Serves what `setup` leaves in the session's files.
pub fn web(setup: &str) -> Value {
    let line = format!("{setup}; exec httpd -f -p $PORT -h /workspace");
    json!(["sh", "-c", line])
}

fn in_busybox(command: Value) -> Value {
    json!({"command": command, "image": BUSYBOX, "timeout": 5})
}

/// What the app serves at `path`.
async fn served(api: &Api, session: &str, path: &str) -> String {
    let session = api.running(session).await;
    let url = session["url"].as_str().unwrap().to_owned();
    let answer = api.get(&format!("{url}/{path}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text
}

pub async fn fails(api: &Api, body: Value) -> String {
    let id = api.create_with(body).await;
    let session = api.ended(&id).await;
    assert_eq!(session["end_reason"], "failed", "{session}");
    session["error"].as_str().unwrap().to_owned()
}

async fn log(api: &Api, session: &str) -> Vec<String> {
    let answer = api
        .get(&format!("/v2/stream-logs?session_id={session}"))
        .await;
    let lines = answer.text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
        Some(line["message"].as_str()?.to_owned())
    });
    lines.collect()
}

pub async fn an_app_in_an_image_is_reached_by_its_url_and_ends_when_it_is_told_to(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let api = &server.api;
    let machine = json!({
        "name": "web", "image": BUSYBOX, "timeout": 5,
        "command": web("echo \"hello from $COLOUR, $(pwd)\" > index.html"),
        "environment": {"COLOUR": "blue"},
    });
    let machine = api.machine(machine).await;
    let shown = api.get(&format!("/machine/{machine}")).await.json();
    assert_eq!(shown["image"], BUSYBOX);
    let made = api.post("/session", json!({"machine_id": machine})).await;
    let id = made.json()["session_id"].as_str().unwrap().to_owned();
    let page = served(api, &id, "").await;
    assert_eq!(page.trim(), "hello from blue, /workspace");
    assert!(engine.container_of(&id).is_some());
    let ended = api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    engine.has_nothing_of(&id).await;
    server.nothing_is_left(&[id]).await;
}

pub async fn its_log_is_complete_and_in_order(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let count = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; \
                 echo a complaint >&2; exit 3";
    let id = server
        .api
        .create_with(in_busybox(json!(["sh", "-c", count])))
        .await;
    let ended = server.api.ended(&id).await;
    let error = ended["error"].as_str().unwrap();
    assert!(error.contains("exited with status 3"), "{error}");
    let log = log(&server.api, &id).await;
    let lines: Vec<_> = log
        .iter()
        .filter(|line| line.starts_with("line "))
        .collect();
    let wanted: Vec<_> = (1..=500).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, wanted.iter().collect::<Vec<_>>());
    assert!(log.iter().any(|line| line == "a complaint"), "{log:?}");
}

pub async fn it_has_no_privileges_but_those_named(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let show = web("cat /proc/self/status > status");
    let id = server.api.create_with(in_busybox(show.clone())).await;
    let status = served(&server.api, &id, "status").await;
    let of = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(of(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(of(&status, "NoNewPrivs"), "1");
    assert_eq!(of(&status, "Seccomp"), "2", "a filter");

    let mut named = in_busybox(show);
    named["capabilities"] = json!(["NET_BIND_SERVICE"]);
    let id = server.api.create_with(named).await;
    let status = served(&server.api, &id, "status").await;
    assert_eq!(of(&status, "CapBnd"), "0000000000000400");
}

pub async fn nothing_can_be_written_in_a_read_only_root_but_files_and_tmp(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let tries = "(touch /etc/x && echo root || echo no root; touch /tmp/x && echo tmp; \
                 touch x && echo files) > result 2>/dev/null";
    let mut body = in_busybox(web(tries));
    let id = server.api.create_with(body.clone()).await;
    let writable = served(&server.api, &id, "result").await;
    assert_eq!(writable, "root\ntmp\nfiles\n");
    body["read_only"] = json!(true);
    let id = server.api.create_with(body).await;
    let read_only = served(&server.api, &id, "result").await;
    assert_eq!(read_only, "no root\ntmp\nfiles\n");
}

pub async fn it_reaches_out_but_neither_the_hosts_loopback_nor_other_sessions(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let api = &server.api;
    let first = api.create_with(in_busybox(web("true"))).await;
    api.running(&first).await;
    let container = engine.container_of(&first).unwrap();
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let other = engine.docker(&["inspect", "--format", address, &container]);
    assert!(!other.is_empty());
    let outside = Outside::listen();
    let own = api.url.rsplit(':').next().unwrap().to_owned();
    let can = |what: &str, host: &str, port: &str| {
        format!("nc -w 3 {host} {port} < /dev/null > /dev/null 2>&1 && echo {what}; ")
    };
    let tries = [
        can("outside", "198.51.100.1", "7777"),
        can("loopback", "127.0.0.1", &own),
        can("other", &other, "8080"),
        can("itself", "127.0.0.1", "8080"),
    ];
    // Somebody else's end changes nothing for those who stay.
    let third = api.create_with(in_busybox(web("true"))).await;
    api.running(&third).await;
    api.stop(&third).await;
    engine.has_nothing_of(&third).await;
    // Where the tests themselves reach the other, so that it is no mistake of theirs.
    assert!(std::net::TcpStream::connect((other.as_str(), 8080)).is_ok());
    let lines = format!(
        "httpd -p $PORT -h /workspace; ({} echo done) > tried; exec sleep 1000",
        tries.concat()
    );
    let second = api
        .create_with(in_busybox(json!(["sh", "-c", lines])))
        .await;
    let mut tried = String::new();
    while !tried.ends_with("done\n") {
        tried = served(api, &second, "tried").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(tried, "outside\nitself\ndone\n");
    drop(outside);
}

/// Somebody beyond this host who takes connections.
struct Outside(std::process::Child);

impl Outside {
    fn listen() -> Self {
        let holder = std::env::var("DWELL_TEST_OUTSIDE").unwrap();
        let child = std::process::Command::new("nsenter")
            .arg(format!("--net=/proc/{holder}/ns/net"))
            .args(["/bin/busybox", "httpd", "-f", "-p", "7777"])
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn an_app_that_takes_too_much_memory_ends_with_a_sentence(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    // As much of one line as there is.
    let greedy = in_busybox(json!(["sh", "-c", "exec sort /dev/zero"]));
    let error = fails(&server.api, greedy).await;
    assert!(
        error.contains("was killed because it took more memory than it may"),
        "{error}"
    );
}

pub async fn a_fork_bomb_is_held_by_the_limit_on_processes(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    // To be served takes a process too: the bomb waits until that has been seen.
    let bomb = "httpd -p $PORT -h /workspace; echo there > index.html; \
                until [ -e go ]; do sleep 0.1; done; \
                (while true; do sleep 1000 & done); exec sleep 1000";
    let id = server
        .api
        .create_with(in_busybox(json!(["sh", "-c", bomb])))
        .await;
    assert_eq!(served(&server.api, &id, "").await.trim(), "there");
    let files = server.dir.join("sessions").join(&id).join("work");
    std::fs::write(files.join("go"), "").unwrap();
    let mut processes = 0;
    let began = Instant::now();
    while processes < 90 {
        assert!(began.elapsed() < Duration::from_secs(20), "{processes}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        processes = app_processes(std::slice::from_ref(&id)).len();
    }
    assert!(processes <= 100, "{processes}");
    server.api.stop(&id).await;
    engine.has_nothing_of(&id).await;
}

pub async fn busy_apps_get_no_more_of_a_core_than_they_may(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&(engine.config() + "cpus = 0.2\n"));
    // Several, so that whatever else runs on this machine leaves them more than that.
    let busy = "for i in 1 2 3 4; do while true; do true; done & done; \
                exec httpd -f -p $PORT -h /workspace";
    let id = server
        .api
        .create_with(in_busybox(json!(["sh", "-c", busy])))
        .await;
    server.api.running(&id).await;
    let used = || -> Duration {
        let processes = app_processes(std::slice::from_ref(&id));
        processes.into_iter().map(cpu_time).sum()
    };
    let began = Instant::now();
    let at_first = used();
    let mut more = Duration::ZERO;
    while more < Duration::from_millis(600) {
        assert!(began.elapsed() < Duration::from_secs(60), "{more:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        more = used() - at_first;
    }
    let cores = more.as_secs_f64() / began.elapsed().as_secs_f64();
    assert!(cores < 0.3, "{cores}");
    server.api.stop(&id).await;
    engine.has_nothing_of(&id).await;
}

/// What a process has had of all cores together.
fn cpu_time(pid: u32) -> Duration {
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After its name, which may have spaces, the 12th and 13th: as user, and in the kernel.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    TICK * ticks.map(|it| it.parse::<u32>().unwrap()).sum::<u32>()
}

pub async fn what_it_writes_is_limited_or_its_log_says_that_it_is_not(engine: &Engine) {
    let _guard = engine.shared().await;
    let limiting = engine.on_btrfs().await;
    assert!(limiting.limits_disk());
    writes_as_much_as_it_may(&limiting).await;
    writes_as_much_as_it_may(engine).await;
}

async fn writes_as_much_as_it_may(engine: &Engine) {
    let server = Server::start(&(engine.config() + "disk_mib = 20\n"));
    let write = web("dd if=/dev/zero of=/tmp/much bs=1M count=40; wc -c < /tmp/much > written");
    let id = server.api.create_with(in_busybox(write)).await;
    let written = served(&server.api, &id, "written").await;
    let is_limited = written.trim().parse::<u64>().unwrap() <= 20 << 20;
    assert_eq!(is_limited, engine.limits_disk(), "{written}");
    server.api.stop(&id).await;
    engine.has_nothing_of(&id).await;
    let log = log(&server.api, &id).await;
    let says = |line: &String| line.starts_with("The limit on disk is not in force: ");
    assert_eq!(log.iter().any(says), !is_limited, "{log:?}");
    let findings = doctor(engine).await;
    let disk = finding(&findings, "container disk");
    assert_eq!(disk["verdict"] == "ok", is_limited, "{disk}");
}

pub async fn the_doctor_says_what_the_engine_can(engine: &Engine) {
    let _guard = engine.shared().await;
    let findings = doctor(engine).await;
    let containers = finding(&findings, "containers");
    let name = match engine.kind {
        Kind::Docker => "Docker Engine",
        Kind::Podman => "Podman",
    };
    let version = engine.docker(&["version", "--format", "{{.Server.Version}}"]);
    let api = engine.docker(&["version", "--format", "{{.Server.APIVersion}}"]);
    let sentence = format!("{name} {version} (API {api}) at {}", engine.host());
    assert_eq!(containers["found"], sentence);
    assert_eq!(containers["verdict"], "ok");
    let limits = finding(&findings, "container limits");
    assert_eq!(limits["found"], "on memory, processes and cores");
}

/// What the doctor finds on a server that limits all that can be limited.
async fn doctor(engine: &Engine) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("dwell.toml");
    std::fs::write(&config, engine.config() + "cpus = 1\ndisk_mib = 20\n").unwrap();
    let doctor = tokio::process::Command::new(DWELL)
        .args(["doctor", "--json", "--data-dir"])
        .arg(dir.path())
        .arg("--config")
        .arg(&config)
        .output();
    serde_json::from_slice(&doctor.await.unwrap().stdout).unwrap()
}

fn finding<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    let finding = findings.iter().find(|finding| finding["check"] == check);
    finding.unwrap_or_else(|| panic!("{findings:?}"))
}

pub async fn an_image_that_is_missing_or_of_another_architecture_ends_with_a_sentence(
    engine: &Engine,
) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let missing = "localhost:1/nobody/has-this:1";
    let error = fails(&server.api, json!({"command": ["true"], "image": missing})).await;
    let begins = format!("The image {missing} could not be pulled: ");
    assert!(error.starts_with(&begins), "{error}");

    let foreign = "dwell-test/foreign:1";
    engine.load_foreign(foreign);
    let error = fails(&server.api, json!({"command": ["true"], "image": foreign})).await;
    let begins = format!("The image {foreign} is for s390x, and this host is ");
    assert!(error.starts_with(&begins), "{error}");
}

pub async fn a_program_that_is_not_in_the_image_ends_with_a_sentence(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let error = fails(&server.api, in_busybox(json!(["no-such-program"]))).await;
    assert!(
        error.starts_with("The container could not be started: ")
            && error.contains("no-such-program"),
        "{error}"
    );
}

pub async fn a_snapshot_is_a_version_that_runs_what_the_session_had_become(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.config());
    let api = &server.api;
    // What it finds of an earlier run it shows.
    let web = web(
        "cat /etc/kept > index.html; echo \"kept $(date +%s%N)\" > /etc/kept; \
                   cp /etc/kept kept",
    );
    let machine = json!({"name": "web", "image": BUSYBOX, "timeout": 5, "command": web});
    let machine = api.machine(machine).await;
    let of_machine = async || {
        let made = api.post("/session", json!({"machine_id": machine})).await;
        made.json()["session_id"].as_str().unwrap().to_owned()
    };
    let first = of_machine().await;
    let kept = served(api, &first, "kept").await;
    let path = format!("/session/{first}/snapshot");
    let answer = api.post(&path, json!({})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let snapshot = answer.json();
    assert_eq!(snapshot["message"], "Session snapshot created successfully");
    assert_eq!(snapshot["version"], 2);
    assert!(
        snapshot["image_id"]
            .as_str()
            .is_some_and(|id| !id.is_empty())
    );
    // It goes on as if nothing had been.
    assert_eq!(served(api, &first, "kept").await, kept);
    let shown = api.get(&format!("/machine/{machine}")).await.json();
    assert_eq!(shown["machine_version_id"], snapshot["version_id"]);
    let second = of_machine().await;
    assert_eq!(served(api, &second, "").await, kept);

    let lone = api.create_with(in_busybox(self::web("true"))).await;
    api.running(&lone).await;
    let path = format!("/session/{lone}/snapshot");
    let answer = api.post(&path, json!({})).await;
    assert_eq!(
        (answer.status, answer.detail().as_str()),
        (400, "Machine id not found")
    );
    let answer = api.post(&path, json!({"machine_name": "from it"})).await;
    assert_eq!(answer.json()["version"], 1, "{answer:?}");
}

pub async fn jupyterlab_in_an_image_computes(engine: &Engine) {
    let _guard = engine.shared().await;
    let server = Server::start(&engine.roomy_config());
    let image = engine.jupyter();
    let command = "exec /venv/bin/jupyter lab --no-browser --allow-root --ip=0.0.0.0 \
                   --port=$PORT --IdentityProvider.token=secret \
                   --ServerApp.allow_remote_access=True";
    let body = json!({
        "command": command, "image": image, "timeout": 5,
        "environment": {"HOME": "/workspace"}, "ready_path": "/api",
    });
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
    engine.has_nothing_of(&id).await;
}

pub async fn a_server_that_is_killed_finds_its_containers_again(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut server = Server::start(&engine.config());
    let id = server
        .api
        .create_with(in_busybox(web("date +%s%N > index.html")))
        .await;
    let before = served(&server.api, &id, "").await;
    server.kill();
    server.restart();
    assert_eq!(served(&server.api, &id, "").await, before);
    let ended = server.api.stop(&id).await;
    assert_eq!(ended["end_reason"], "cancelled", "{ended}");
    engine.has_nothing_of(&id).await;
}

pub async fn what_is_left_in_the_engine_of_a_session_that_is_not_open_is_swept(engine: &Engine) {
    let _guard = engine.shared().await;
    let mut server = Server::start(&engine.config());
    let sessions = format!("dwell.sessions={}", server.dir.join("sessions").display());
    let ours = uuid::Uuid::new_v4().to_string();
    let others = uuid::Uuid::new_v4().to_string();
    for (session, of) in [
        (&ours, sessions.as_str()),
        (&others, "dwell.sessions=/elsewhere"),
    ] {
        let label = format!("dwell.session={session}");
        let mark = format!("DWELL_SESSION_ID={session}");
        let run = [
            "run",
            "--detach",
            "--network",
            "none",
            "--env",
            &mark,
            "--label",
            &label,
        ];
        let words = [&run[..], &["--label", of, BUSYBOX, "sleep", "1000"]].concat();
        engine.docker(&words);
    }
    // The first thing that a server does is to sweep.
    server.kill();
    server.restart();
    engine.has_nothing_of(&ours).await;
    let left = engine
        .container_of(&others)
        .expect("it is another server's");
    engine.docker(&["rm", "--force", &left]);
}
