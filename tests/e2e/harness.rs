//! A server of the real binary in a directory of its own, and a client of its API.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than anything here takes; a test that waits for this has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const DWELL: &str = env!("CARGO_BIN_EXE_dwell");

/// Enough of everything.
pub const ROOMY: &str = "[gpus]\nCPU = 300\n[limits]\nsessions_per_machine = 300\n";

/// A test app of `tests/apps`, as words.
pub fn app(name: &str) -> Value {
    json!(["python3", "-S", here(&format!("tests/apps/{name}"))])
}

pub fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The Python with the clients that `make setup` installed.
pub fn venv_program(name: &str) -> PathBuf {
    let program = here(".venv/bin").join(name);
    assert!(
        program.exists(),
        "{} is not there; run `make setup`",
        program.display()
    );
    program
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn detail(&self) -> String {
        self.json()["detail"]
            .as_str()
            .unwrap_or_else(|| panic!("no detail: {self:?}"))
            .to_owned()
    }
}

/// Someone who has a key.
#[derive(Clone)]
pub struct Api {
    pub url: String,
    pub key: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Api {
    pub fn new(url: &str, key: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            url: url.to_owned(),
            key: key.to_owned(),
            client,
        }
    }

    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let answer = self.try_send(method, path, body).await;
        answer.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, for when the server may die before it answers.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let failed = |error: &dyn std::error::Error| format!("{path}: {error}");
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{}{path}", self.url)
        };
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap();
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| failed(&error))?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await;
        let bytes = body.map_err(|error| failed(&error))?.to_bytes();
        Ok(Answer {
            status,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, "").await
    }

    /// A session of this command, its id.
    pub async fn create(&self, command: Value) -> String {
        self.create_with(json!({"command": command, "timeout": 5}))
            .await
    }

    pub async fn create_with(&self, body: Value) -> String {
        let answer = self.post("/session/dynamic", body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["session_id"].as_str().unwrap().to_owned()
    }

    pub async fn session(&self, id: &str) -> Value {
        let answer = self.get(&format!("/session/{id}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// The session once it is so.
    pub async fn until(&self, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let session = self.session(id).await;
            if is_so(&session) {
                return session;
            }
            assert!(began.elapsed() < PATIENCE, "still {session}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn running(&self, id: &str) -> Value {
        let session = self
            .until(id, |s| s["status"] == "running" || s["status"] == "ended")
            .await;
        assert_eq!(session["status"], "running", "{session}");
        session
    }

    pub async fn ended(&self, id: &str) -> Value {
        self.until(id, |session| session["status"] == "ended").await
    }

    pub async fn stop(&self, id: &str) -> Value {
        assert_eq!(self.delete(&format!("/session/{id}")).await.status, 200);
        self.ended(id).await
    }

    pub async fn machine(&self, body: Value) -> String {
        let answer = self.post("/machine/serverless", body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }
}

/// A server.
pub struct Server {
    pub dir: PathBuf,
    pub api: Api,
    /// None once it was taken over.
    child: Option<Child>,
    pub config: String,
    pub listen: String,
    /// What its own command line is put behind, if not itself.
    enter: Vec<String>,
    _owned: Option<TempDir>,
}

impl Server {
    pub fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self::start_in(dir.path(), config);
        server.owns(dir);
        server
    }

    pub fn start_in(dir: &Path, config: &str) -> Self {
        Self::spawn(dir, config, "127.0.0.1:0", &[])
    }

    /// As `dwell serve` with these arguments besides.
    pub fn spawn(dir: &Path, config: &str, listen: &str, more: &[&str]) -> Self {
        Self::try_start_in(dir, config, listen, more, &[]).unwrap()
    }

    /// A server with this in its environment too; an error if it dies before it listens.
    pub fn try_start_in(
        dir: &Path,
        config: &str,
        listen: &str,
        more: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self, String> {
        Self::try_start_behind(&[], dir, config, listen, more, environment)
    }

    /// The same, with its command line put behind `enter`, a program that becomes it.
    pub fn try_start_behind(
        enter: &[String],
        dir: &Path,
        config: &str,
        listen: &str,
        more: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self, String> {
        std::fs::create_dir_all(dir).unwrap();
        let file = dir.join("dwell.toml");
        std::fs::write(&file, config).unwrap();
        let words = [enter, &[DWELL.to_owned()]].concat();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--listen", listen, "--data-dir"])
            .arg(dir)
            .arg("--config")
            .arg(&file)
            .args(more)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.join("stdout")).unwrap())
            .stderr(Stdio::piped())
            .env_remove("DWELL_URL")
            .env_remove("DWELL_API_KEY")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (said, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // Shown when a test fails.
                eprintln!("server: {line}");
                let _ = said.send(line);
            }
        });
        let began = Instant::now();
        let mut last = String::new();
        let url = loop {
            let line = heard.recv_timeout(PATIENCE.saturating_sub(began.elapsed()));
            let Ok(line) = line else {
                let _ = child.kill();
                let exit = child.wait();
                return Err(format!("the server does not listen: {exit:?}: {last}"));
            };
            line.clone_into(&mut last);
            if let Some((_, url)) = line.split_once("listening on ") {
                break url.trim().to_owned();
            }
        };
        // One that follows another has none of its own.
        let key = std::fs::read_to_string(dir.join("admin.key")).unwrap_or_default();
        Ok(Self {
            dir: dir.to_owned(),
            api: Api::new(&url, key.trim()),
            child: Some(child),
            config: config.to_owned(),
            listen: url.trim_start_matches("http://").to_owned(),
            enter: enter.to_vec(),
            _owned: None,
        })
    }

    /// Its directory goes with it.
    pub fn owns(&mut self, dir: TempDir) {
        self._owned = Some(dir);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// As when the power goes, for the server alone.
    pub fn kill(&mut self) {
        let child = self.child.as_mut().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// On the same directory and address, as after a crash.
    pub fn restart(&mut self) {
        let listen = self.listen.clone();
        let owned = self._owned.take();
        let (dir, config) = (self.dir.clone(), self.config.clone());
        let again = Self::try_start_behind(&self.enter, &dir, &config, &listen, &[], &[]);
        let mut again = again.unwrap();
        again._owned = owned;
        *self = again;
    }

    /// The same, told otherwise from now on.
    pub fn restart_with(&mut self, config: &str) {
        config.clone_into(&mut self.config);
        self.restart();
    }

    /// Another server takes over; what is left of this one is returned.
    pub fn is_taken_over(&mut self) -> Child {
        let (dir, config) = (self.dir.clone(), self.config.clone());
        let mut successor = Self::spawn(&dir, &config, &self.listen, &["--takeover"]);
        assert_eq!(successor.listen, self.listen);
        std::mem::replace(&mut self.child, successor.child.take()).unwrap()
    }

    pub fn terminate(&mut self) -> std::process::ExitStatus {
        signal(self.pid(), nix::sys::signal::Signal::SIGTERM);
        self.exits()
    }

    /// Until it has gone by itself.
    pub fn exits(&mut self) -> std::process::ExitStatus {
        self.child.as_mut().unwrap().wait().unwrap()
    }

    /// Agents of this server.
    pub fn agents(&self) -> Vec<u32> {
        agents_in(&self.dir.join("sessions"))
    }

    /// The agent of one session.
    pub fn agent_of(&self, session: &str) -> Vec<u32> {
        agents_in(&self.dir.join("sessions").join(session))
    }

    /// Nothing of these sessions is left, nor any agent.
    pub async fn nothing_is_left(&self, sessions: &[String]) {
        let began = Instant::now();
        loop {
            let mut left: Vec<String> = self.agents().iter().map(u32::to_string).collect();
            left.extend(app_processes(sessions).iter().map(u32::to_string));
            for hierarchy in ["unified", "memory", "pids", "."] {
                let place = Path::new("/sys/fs/cgroup").join(hierarchy).join("dwell");
                let dirs = sessions
                    .iter()
                    .map(|id| place.join(id))
                    .filter(|dir| dir.exists());
                left.extend(dirs.map(|dir| dir.display().to_string()));
            }
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "left: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else {
            return;
        };
        let _ = child.kill();
        let _ = child.wait();
        if self._owned.is_some() {
            for agent in self.agents() {
                signal(agent, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

/// The processes of these sessions' apps, whoever their parents are.
pub fn app_processes(sessions: &[String]) -> Vec<u32> {
    let marks: Vec<_> = sessions
        .iter()
        .map(|id| format!("DWELL_SESSION_ID={id}"))
        .collect();
    processes(|_, environment| marks.iter().any(|mark| environment.contains(mark)))
}

/// The agents of the sessions in this directory, or of the one whose it is.
pub fn agents_in(dir: &Path) -> Vec<u32> {
    let dir = dir.display().to_string();
    processes(|words, _| words.contains("agent") && words.contains(&dir))
}

pub fn processes(mut is_one: impl FnMut(&str, &str) -> bool) -> Vec<u32> {
    let read = |pid: u32, name: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_one(&read(*pid, "cmdline"), &read(*pid, "environ")))
        .collect()
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    let _ = nix::sys::signal::kill(pid, signal);
}

/// How much memory a process has taken.
pub mod memory {
    /// The most since that was last forgotten.
    pub fn most_kib(pid: u32) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.unwrap().parse().unwrap()
    }

    /// From now on; returned is what it has now.
    pub fn forget_most(pid: u32) -> u64 {
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        most_kib(pid)
    }
}
