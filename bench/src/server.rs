//! The server that is measured: the real binary, in a directory of its own.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Result;
use crate::at_once::at_once;
use crate::http::Connection;

/// More than is asked of it.
const LIMITS: &str = "[limits]
sessions_per_machine = 1000000
sessions_per_owner = 1000000
";

/// Variables of an environment.
type Environment = Vec<(&'static str, String)>;

pub struct Server {
    dwell: PathBuf,
    /// What it finds in its environment besides ours.
    environment: Environment,
    dir: TempDir,
    child: Child,
    address: String,
    key: String,
}

/// A directory for a server's data, on the disk that the build is on: what is in
/// memory alone would not be durable.
pub fn data_dir(dwell: &Path) -> Result<TempDir> {
    let beside = dwell.parent().ok_or("the binary is in no directory")?;
    Ok(tempfile::Builder::new()
        .prefix("bench-data-")
        .tempdir_in(beside)?)
}

impl Server {
    /// With so many slots for sessions.
    pub fn start(dwell: &Path, dir: TempDir, slots: u32) -> Result<Self> {
        Self::start_at("127.0.0.1:0", dwell, dir, slots, "")
    }

    /// The same, with its records in that store, which other servers may share.
    pub fn start_on(store: &str, dwell: &Path, dir: TempDir, slots: u32) -> Result<Self> {
        let sessions = dir.path().join("sessions");
        let config = format!(
            "store = \"{store}\"\n{LIMITS}[gpus]\nCPU = {slots}\n\
             [[launcher]]\nkind = \"local\"\nsessions_dir = {sessions:?}\n"
        );
        Self::start_told("127.0.0.1:0", dwell, dir, &config, Vec::new())
    }

    /// One whose sessions are jobs of the cluster that this table of a launcher speaks of.
    pub fn start_for(
        launcher: &str,
        listen: &str,
        dwell: &Path,
        environment: impl Into<Environment>,
    ) -> Result<Self> {
        // Sessions are private where others reach the server, unless it is told otherwise.
        let config = format!("access = \"link\"\n{LIMITS}[[launcher]]\n{launcher}");
        Self::start_told(listen, dwell, data_dir(dwell)?, &config, environment.into())
    }

    /// Another one beside it, which follows.
    pub fn another(&self) -> Result<Self> {
        let config = std::fs::read_to_string(config_file(self.dir()))?;
        let dir = data_dir(&self.dwell)?;
        let environment = self.environment.clone();
        let mut server = Self::start_told("127.0.0.1:0", &self.dwell, dir, &config, environment)?;
        server.key.clone_from(&self.key);
        Ok(server)
    }

    /// The same, listening there, and with more tables in its configuration.
    pub fn start_at(
        listen: &str,
        dwell: &Path,
        dir: TempDir,
        slots: u32,
        more: &str,
    ) -> Result<Self> {
        let config = format!("{LIMITS}[gpus]\nCPU = {slots}\n{more}");
        Self::start_told(listen, dwell, dir, &config, Vec::new())
    }

    fn start_told(
        listen: &str,
        dwell: &Path,
        dir: TempDir,
        config: &str,
        environment: Environment,
    ) -> Result<Self> {
        std::fs::write(config_file(dir.path()), config)?;
        let mut child = launch(dwell, &environment, dir.path(), listen, Stdio::piped())?;
        let stderr = child.stderr.take().ok_or("it has no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let address = loop {
            let line = lines.next().ok_or("the server did not start")??;
            if let Some((_, url)) = line.split_once("listening on http://") {
                break url.trim().to_owned();
            }
        };
        // Nobody waits for what it says from now on, but it must be able to.
        std::thread::spawn(move || lines.map_while(std::result::Result::ok).for_each(drop));
        // Only the first server of a store makes one.
        let key = std::fs::read_to_string(dir.path().join("admin.key")).unwrap_or_default();
        Ok(Self {
            dwell: dwell.to_owned(),
            environment,
            dir,
            child,
            address,
            key: key.trim().to_owned(),
        })
    }

    /// Kill it, and start it again as it was. Returns when it was started, without
    /// waiting for it to answer.
    pub fn kill_and_restart(&mut self) -> Result<Instant> {
        self.child.kill()?;
        self.child.wait()?;
        let began = Instant::now();
        let (dwell, environment) = (&self.dwell, &self.environment);
        self.child = launch(dwell, environment, self.dir(), &self.address, Stdio::null())?;
        Ok(began)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn connect(&self) -> io::Result<Connection> {
        Connection::open(&self.address, &self.key)
    }

    /// Put sessions into the queue of a server whose slots are taken. The id of the
    /// first.
    pub fn queue(&self, sessions: u32, command: &[String]) -> Result<String> {
        const CLIENTS: u32 = 64;
        let create = |api: &mut Connection| -> Result<String> {
            text(&create(api, command, json!({}))?, "session_id")
        };
        let first = create(&mut self.connect()?)?;
        at_once((0..CLIENTS).collect(), |client| {
            let mut api = self.connect()?;
            (1..sessions)
                .filter(|number| number % CLIENTS == client)
                .try_for_each(|_| create(&mut api).map(drop))
        })?;
        Ok(first)
    }

    /// The agents of its sessions.
    pub fn agents(&self) -> Result<Vec<u32>> {
        let sessions = self.dir.path().join("sessions").display().to_string();
        let mut agents = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&cmdline);
            if words.contains("\0agent\0") && words.contains(&sessions) {
                let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
                agents.extend::<Option<u32>>(pid);
            }
        }
        Ok(agents)
    }
}

impl Drop for Server {
    /// Nothing of it stays, whatever came of the measuring.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while let Some(agents) = self.agents().ok().filter(|agents| !agents.is_empty()) {
            for agent in agents {
                // It ends its session first.
                let _ = kill(Pid::from_raw(agent.cast_signed()), Signal::SIGTERM);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("dwell.toml")
}

fn launch(
    dwell: &Path,
    environment: &[(&str, String)],
    dir: &Path,
    listen: &str,
    stderr: Stdio,
) -> io::Result<Child> {
    Command::new(dwell)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .args(["serve", "--listen", listen, "--data-dir"])
        .arg(dir)
        .arg("--config")
        .arg(config_file(dir))
        .stderr(stderr)
        .spawn()
}

/// Ask for a session of `command`, with what else `body` says; the answer.
fn create(api: &mut Connection, command: &[String], mut body: Value) -> Result<Value> {
    body["command"] = json!(command);
    body["gpu"] = json!("CPU");
    let answer = api.send("POST", "/session/dynamic", &body.to_string())?;
    Ok(serde_json::from_slice(&answer.body)?)
}

/// A session that its server says to run.
pub struct Session {
    pub id: String,
    /// `host:port`.
    pub address: String,
}

impl Session {
    /// Create one and wait until its app answers.
    pub fn create(api: &mut Connection, command: &[String]) -> Result<Self> {
        Self::create_with(api, command, json!({}))
    }

    /// The same, with what else `body` says.
    pub fn create_with(api: &mut Connection, command: &[String], mut body: Value) -> Result<Self> {
        body["wait_for_server"] = json!(true);
        let created = create(api, command, body)?;
        let url = text(&created, "url")?;
        let (_, address) = url.split_once("://").ok_or("the URL has no scheme")?;
        Ok(Self {
            id: text(&created, "session_id")?,
            address: address.trim_end_matches('/').to_owned(),
        })
    }

    /// End it and wait until nothing of it is left.
    pub fn end(self, api: &mut Connection) -> Result<()> {
        let path = format!("/session/{}?wait_for_shutdown=true", self.id);
        match api.send("DELETE", &path, "")?.status {
            200 => Ok(()),
            status => Err(format!("a session could not be ended: {status}").into()),
        }
    }
}

/// What a field of an answer says.
pub fn text(answer: &Value, field: &str) -> Result<String> {
    let says = answer.get(field).and_then(Value::as_str);
    Ok(says
        .ok_or_else(|| format!("no {field} in {answer}"))?
        .to_owned())
}

/// A program beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}
