//! A host with a data directory, a launcher, and a server that hears its agents.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dwell::agent::job::Assignment;
use dwell::agent::journal::Holder;
use dwell::agent::spec::{AgentSpec, AppLimits, ServerAt};
use dwell::data_dir::{DataDir, ServerFile, SessionDir, SessionsDir};
use dwell::keys::AgentSecrets;
use dwell::launcher::Launcher;
use dwell::launcher::local::{Local, Manner};
use dwell_core::control_plane::{Launch, LaunchOutcome};
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::id::SessionId;
use dwell_core::lease::Terms;
use dwell_core::machine::{AppCommand, Container, Recipe};
use dwell_core::protocol::{AgentPhase, AgentStatus, PROTOCOL, ServerMessage};
use dwell_core::session::{Ending, Place, Placement};
use dwell_core::time::Millis;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

/// Longer than anything here takes; a test that waits for this has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A test app of `tests/apps`, as words.
pub fn python(name: &str) -> Vec<String> {
    let apps = elsewhere(
        "DWELL_TEST_APPS",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps"),
    );
    vec!["python3".into(), apps.join(name).display().to_string()]
}

/// Where the build put it, or where the tests were moved to with it.
fn elsewhere(variable: &str, built: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| built.into(), PathBuf::from)
}

/// What a session is to run, and on what terms.
pub struct App(Recipe, Terms);

impl App {
    pub fn new(words: Vec<String>) -> Self {
        let recipe = Recipe {
            command: AppCommand::Argv(words),
            port: None,
            workdir: None,
            environment: [("COLOUR".to_owned(), "blue".to_owned())].into(),
            gpu: GpuType::cpu(),
            timeout_minutes: 1,
            ready_path: "/".into(),
            access: None,
            container: None,
        };
        let terms = Terms {
            granted_ms: Millis(60_000),
            start_limit_ms: Millis(20_000),
            grace_ms: Millis(500),
            timeout_grace_ms: Millis(500),
        };
        Self(recipe, terms)
    }

    pub fn shell(line: &str) -> Self {
        let mut app = Self::new(Vec::new());
        app.0.command = AppCommand::Shell(line.into());
        app
    }

    pub fn granted(mut self, granted_ms: Millis) -> Self {
        self.1.granted_ms = granted_ms;
        self
    }

    pub fn start_limit(mut self, start_limit_ms: Millis) -> Self {
        self.1.start_limit_ms = start_limit_ms;
        self
    }

    /// In a container of this image.
    pub fn in_image(mut self, image: &str) -> Self {
        self.0.container = Some(Container {
            image: image.into(),
            read_only: false,
            capabilities: Vec::new(),
        });
        self
    }

    pub fn workdir(mut self, workdir: &str) -> Self {
        self.0.workdir = Some(workdir.into());
        self
    }
}

/// What the server has heard of one session, and says to it.
#[derive(Clone)]
struct Line {
    heard: watch::Sender<Option<AgentStatus>>,
    calls: watch::Sender<u32>,
    says: broadcast::Sender<Option<ServerMessage>>,
}

#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<std::collections::HashMap<SessionId, Line>>>);

impl Lines {
    fn of(&self, session: SessionId) -> Line {
        let new = || Line {
            heard: watch::Sender::new(None),
            calls: watch::Sender::new(0),
            says: broadcast::Sender::new(64),
        };
        self.0
            .lock()
            .unwrap()
            .entry(session)
            .or_insert_with(new)
            .clone()
    }
}

pub struct Host {
    dir: Arc<TempDir>,
    launcher: Local,
    lines: Lines,
}

impl Host {
    pub async fn new() -> Self {
        let mut host = Self::without_server().await;
        host.serve().await;
        host
    }

    pub async fn without_server() -> Self {
        Self::with_manner(Manner::default()).await
    }

    /// One whose agents are started in this manner.
    pub async fn with_manner(manner: Manner) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let data_dir = DataDir(dir.path().to_owned());
        let limits = AppLimits {
            memory_mib: Some(512),
            pids: Some(200),
            log_mib: 1,
        };
        let launcher = Local::new(
            &data_dir,
            manner,
            AgentSecrets::new([1; 32]),
            Millis(200),
            limits,
        )
        .with_executable(elsewhere("DWELL_TEST_BINARY", env!("CARGO_BIN_EXE_dwell")));
        Self {
            dir,
            launcher,
            lines: Lines::default(),
        }
    }

    /// Listen, and let agents know where.
    pub async fn serve(&mut self) {
        self.serve_with(Router::new()).await;
    }

    /// The same with further routes. Returns the port.
    pub async fn serve_with(&mut self, routes: Router) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("http://{address}");
        let file = ServerFile {
            url,
            pid: std::process::id(),
        };
        DataDir(self.dir.path().to_owned())
            .write_server_file(&file)
            .unwrap();
        let app = Router::new()
            .route(
                "/agent/v1/sessions/{id}/control",
                axum::routing::get(control),
            )
            .with_state(self.lines.clone())
            .merge(routes);
        tokio::spawn(async move { axum::serve(listener, app).await });
        address.port()
    }

    /// Break every connection.
    pub fn cut_all(&mut self) {
        for line in self.lines.0.lock().unwrap().values() {
            let _ = line.says.send(None);
        }
    }

    /// Where sessions' directories are.
    pub fn sessions(&self) -> SessionsDir {
        DataDir(self.dir.path().to_owned()).sessions()
    }

    pub async fn launch(&self, app: App) -> Session {
        let session = self.session(app);
        assert_eq!(session.launch_again().await, "Started");
        session
    }

    /// A session that is put into a job, and what its agent is told there.
    pub fn put_into_job(&self, app: App, server_url: &str) -> (Session, Assignment) {
        let session = self.session(app);
        let spec = AgentSpec {
            session: session.id,
            secret: AgentSecrets::new([1; 32]).of(session.id),
            server: ServerAt::Elsewhere {
                url: server_url.into(),
                certificate: None,
            },
            recipe: session.launch.recipe.clone(),
            visible_device: None,
            terms: session.launch.terms,
            may_begin: true,
            heartbeat: Millis(200),
            limits: AppLimits::default(),
            engine: None,
            is_in_job: true,
        };
        let assignment = Assignment {
            spec,
            server_certificate: None,
        };
        (session, assignment)
    }

    fn session(&self, app: App) -> Session {
        let id = SessionId(Uuid::new_v4());
        // No engine can pass a GPU that is not there.
        let is_container = app.0.container.is_some();
        let visible_device = if is_container { "7" } else { "GPU-7" };
        let launch = Launch {
            session: id,
            recipe: app.0,
            placement: Placement {
                place: Place::Host {
                    gpu: GpuId("GPU-7".into()),
                    visible_device: visible_device.into(),
                },
                port: 1,
            },
            gpu_type: GpuType("A10G".into()),
            time_limit: Millis::from_minutes(60),
            terms: app.1,
            may_begin: true,
            may_have_begun: false,
        };
        Session {
            id,
            launch,
            dir: DataDir(self.dir.path().to_owned()).session(id),
            launcher: self.launcher.clone(),
            line: self.lines.of(id),
            _host: self.dir.clone(),
        }
    }
}

pub struct Session {
    id: SessionId,
    launch: Launch,
    dir: SessionDir,
    launcher: Local,
    line: Line,
    _host: Arc<TempDir>,
}

impl Session {
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    pub async fn launch_again(&self) -> &'static str {
        match self.launcher.launch(self.launch.clone()).await {
            LaunchOutcome::Started => "Started",
            LaunchOutcome::AlreadyRunning => "AlreadyRunning",
            outcome @ (LaunchOutcome::Submitted(_)
            | LaunchOutcome::Failed(_)
            | LaunchOutcome::Unclear(_)) => panic!("{outcome:?}"),
        }
    }

    pub async fn until(&self, is_so: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
        let mut heard = self.line.heard.subscribe();
        let waited = heard.wait_for(|status| status.as_ref().is_some_and(&is_so));
        match tokio::time::timeout(PATIENCE, waited).await {
            Ok(status) => status.unwrap().clone().unwrap(),
            Err(_) => panic!(
                "last heard: {:?}; log: {:?}",
                self.line.heard.borrow(),
                self.log()
            ),
        }
    }

    pub async fn running(&self) -> SocketAddr {
        let status = self.until(|status| status.phase.rank() >= 1).await;
        match status.phase {
            AgentPhase::Running { upstream, .. } => upstream.address(),
            phase => panic!("{phase:?}; log: {:?}", self.log()),
        }
    }

    /// The end as the server hears it, which is then on record.
    pub async fn ended(&self) -> (Ending, AgentStatus) {
        let status = self.until(|status| status.phase.rank() == 3).await;
        let AgentPhase::Ended { ending, .. } = status.phase.clone() else {
            panic!()
        };
        self.say(ServerMessage::Forget).await;
        (ending, status)
    }

    pub async fn say(&self, message: ServerMessage) {
        self.line.says.send(Some(message)).unwrap();
    }

    pub async fn calls_again(&self) {
        let mut calls = self.line.calls.subscribe();
        tokio::time::timeout(PATIENCE, calls.wait_for(|calls| *calls >= 2))
            .await
            .unwrap()
            .unwrap();
    }

    /// On the same connection.
    pub async fn is_heard_again(&self) {
        let mut heard = self.line.heard.subscribe();
        heard.mark_unchanged();
        tokio::time::timeout(PATIENCE, heard.changed())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(*self.line.calls.borrow(), 1);
    }

    /// Every line that the app and the agent wrote.
    pub fn log(&self) -> Vec<String> {
        let mut files: Vec<_> = std::fs::read_dir(self.dir.log())
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        files.sort();
        let text: String = files
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap_or_default())
            .collect();
        text.lines()
            .filter_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                Some(line["message"].as_str()?.to_owned())
            })
            .collect()
    }

    pub fn log_bytes(&self) -> u64 {
        std::fs::read_dir(self.dir.log())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    }

    pub fn journal_end(&self) -> Option<AgentStatus> {
        let journal = std::fs::read_to_string(self.dir.journal()).ok()?;
        let last: serde_json::Value = serde_json::from_str(journal.lines().last()?).ok()?;
        serde_json::from_value(last.get("status")?.clone()).ok()
    }

    /// How often the app was started, by the journal.
    pub fn starts(&self) -> usize {
        std::fs::read_to_string(self.dir.journal())
            .unwrap()
            .matches("began")
            .count()
    }

    fn agents(&self) -> Vec<i32> {
        let dir = self.dir.path().to_str().unwrap();
        self.processes(|words, _| words.contains(dir))
    }

    pub fn signal_agent(&self, signal: Signal) {
        send(&self.agents(), signal);
    }

    /// Those that the agents started: the session's first process.
    pub fn signal_first_process(&self, signal: Signal) {
        for agent in self.agents() {
            let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children"));
            let children: Vec<i32> = children
                .unwrap()
                .split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect();
            assert_eq!(children.len(), 1);
            send(&children, signal);
        }
    }

    /// The app's processes, the first process and the agent, in this order.
    pub fn signal_all(&self, signal: Signal) {
        let (app, agents) = (self.app_processes(), self.agents());
        send(&app, signal);
        self.signal_first_process(signal);
        send(&agents, signal);
    }

    fn kill_agents(&self) {
        self.signal_agent(Signal::SIGKILL);
    }

    /// As when a disk was lost: nothing of what earlier agents put down is there, and
    /// the launcher knows that one has been.
    pub fn lose_directory(&mut self) {
        std::fs::remove_dir_all(self.dir.path()).unwrap();
        self.launch.may_begin = false;
    }

    /// Killed, and gone: its lock is free, which is so a little after `/proc` has no more to
    /// say of it.
    pub async fn kill_agent(&self) {
        self.kill_agents();
        let gone = async {
            while Holder::of(&self.dir).unwrap() != Holder::Nobody {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }

    /// The agent has put down the end.
    pub async fn end_is_in_the_journal(&self) {
        let written = async {
            while self.journal_end().is_none() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap();
    }

    /// The app's processes, however they came to be: all have its environment.
    fn app_processes(&self) -> Vec<i32> {
        let mark = format!("DWELL_SESSION_ID={}", self.id);
        self.processes(|_, environment| environment.contains(&mark))
    }

    fn processes(&self, is_one: impl Fn(&str, &str) -> bool) -> Vec<i32> {
        let read = |pid: i32, name: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| is_one(&read(*pid, "cmdline"), &read(*pid, "environ")))
            .collect()
    }

    pub async fn no_process_is_left_within(&self, limit: Duration) {
        let gone = async {
            while !self.app_processes().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(limit, gone).await;
        assert!(
            waited.is_ok(),
            "left: {:?}; log: {:?}",
            self.app_processes(),
            self.log()
        );
    }

    /// No process, no cgroup, no working directory.
    pub async fn nothing_is_left(&self) {
        self.no_process_is_left_within(PATIENCE).await;
        let left = || {
            let cgroups = ["unified", "memory", "pids", "."].iter().map(|hierarchy| {
                PathBuf::from("/sys/fs/cgroup")
                    .join(hierarchy)
                    .join("dwell")
                    .join(self.id.to_string())
            });
            cgroups
                .chain([self.dir.work()])
                .filter(|path| path.exists())
                .collect::<Vec<_>>()
        };
        let gone = async {
            while !left().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(
            tokio::time::timeout(PATIENCE, gone).await.is_ok(),
            "left: {:?}",
            left()
        );
    }
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Agents first: with them goes everything that they started.
        self.kill_agents();
    }
}

async fn control(
    State(lines): State<Lines>,
    Path(id): Path<SessionId>,
    mut request: Request,
) -> Response {
    let secret = AgentSecrets::new([1; 32]).of(id);
    assert_eq!(
        request.headers()["authorization"],
        format!("Bearer {secret}")
    );
    assert_eq!(request.headers()["upgrade"], PROTOCOL);
    let line = lines.of(id);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (reader, mut writer) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        let mut says = line.says.subscribe();
        line.calls.send_modify(|calls| *calls += 1);
        let mut lines = BufReader::new(reader).lines();
        loop {
            tokio::select! {
                said = says.recv() => {
                    let Ok(Some(message)) = said else { return };
                    let text = serde_json::to_string(&message).unwrap() + "\n";
                    if writer.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                heard = lines.next_line() => {
                    let Ok(Some(heard)) = heard else { return };
                    let status: AgentStatus = serde_json::from_str(&heard).unwrap();
                    // There is no other.
                    if let AgentPhase::Asks { .. } = status.phase {
                        let _ = line.says.send(Some(ServerMessage::Begin));
                    }
                    line.heard.send_replace(Some(status));
                }
            }
        }
    });
    let headers = [("connection", "upgrade"), ("upgrade", PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}
