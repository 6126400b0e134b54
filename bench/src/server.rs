//! The server that is measured: the real binary, in a directory of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Result;
use crate::http::Connection;

/// More than is asked of it.
const LIMITS: &str = "[limits]
sessions_per_machine = 1000000
sessions_per_owner = 1000000
";

pub struct Server {
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
        let config = dir.path().join("dwell.toml");
        std::fs::write(&config, format!("{LIMITS}[gpus]\nCPU = {slots}\n"))?;
        let mut child = Command::new(dwell)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path())
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()?;
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
        let key = std::fs::read_to_string(dir.path().join("admin.key"))?;
        Ok(Self {
            dir,
            child,
            address,
            key: key.trim().to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> Result<Connection> {
        Ok(Connection::open(&self.address, &self.key)?)
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
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// A session that its server says to run.
pub struct Session {
    id: String,
    /// `host:port`.
    pub address: String,
}

impl Session {
    /// Create one and wait until its app answers.
    pub fn create(api: &mut Connection, command: &[String]) -> Result<Self> {
        let body = json!({"command": command, "gpu": "CPU", "wait_for_server": true});
        let answer = api.send("POST", "/session/dynamic", &body.to_string())?;
        let created: Value = serde_json::from_slice(&answer.body)?;
        let text = |name: &str| {
            created
                .get(name)
                .and_then(Value::as_str)
                .ok_or_else(|| format!("{} {created}", answer.status))
        };
        Ok(Self {
            id: text("session_id")?.to_owned(),
            address: text("url")?.trim_start_matches("http://").to_owned(),
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

/// A program beside this one.
pub fn beside(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}
