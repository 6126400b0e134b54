//! Agents as plain processes of the server's own host.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_trait::async_trait;
use dwell_core::control_plane::{Launch, LaunchOutcome};
use dwell_core::session::Place;
use dwell_core::time::Millis;
use nix::sys::signal::Signal;

use tokio::process::Command;

use super::Launcher;
use crate::agent::journal::Holder;
use crate::agent::spec::{AgentSpec, AppLimits, ServerAt};
use crate::data_dir::{DataDir, SessionsDir};
use crate::engine::EngineSettings;
use crate::failpoint::{self, Point};
use crate::keys::AgentSecrets;

/// Starts agents beside the server.
#[derive(Clone)]
pub struct Local {
    executable: PathBuf,
    /// What the agent's own command line is put behind.
    start_with: Vec<String>,
    server: ServerAt,
    sessions: SessionsDir,
    secrets: AgentSecrets,
    heartbeat: Millis,
    limits: AppLimits,
    engine: Option<EngineSettings>,
}

/// How agents are started, where not simply beside the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// A program and its words, which the agent's own are put behind: it runs them
    /// somewhere, as `ip netns exec NAME` does.
    pub start_with: Vec<String>,
    /// Where agents find the server, if they cannot be reached from it.
    pub server: Option<ServerAt>,
    /// Where sessions' directories are, if not in the data directory: where all servers
    /// that share a database reach them.
    pub sessions_dir: Option<PathBuf>,
    /// What runs the containers of machines that name an image.
    pub engine: Option<EngineSettings>,
}

impl Manner {
    /// Where sessions' directories are.
    #[must_use]
    pub fn sessions(&self, data_dir: &DataDir) -> SessionsDir {
        match &self.sessions_dir {
            Some(dir) => SessionsDir(dir.clone()),
            None => data_dir.sessions(),
        }
    }
}

impl Local {
    /// Agents of the server that has `data_dir`.
    #[must_use]
    pub fn new(
        data_dir: &DataDir,
        manner: Manner,
        secrets: AgentSecrets,
        heartbeat: Millis,
        limits: AppLimits,
    ) -> Self {
        // Still the same file when the one on disk has been replaced by a newer one, and
        // for whatever program it is put behind.
        let executable = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
        let sessions = manner.sessions(data_dir);
        // Whichever server leads: it need not be the one that launches.
        let is_shared = manner.sessions_dir.is_some();
        let this_host = ServerAt::ThisHost {
            server_file: if is_shared {
                sessions.leader_file()
            } else {
                data_dir.server_file()
            },
            is_shared,
        };
        let Manner {
            start_with,
            server,
            engine,
            ..
        } = manner;
        let server = server.unwrap_or(this_host);
        Self {
            executable,
            start_with,
            server,
            sessions,
            secrets,
            heartbeat,
            limits,
            engine,
        }
    }

    /// The same, with this program for an agent.
    #[must_use]
    pub fn with_executable(self, executable: PathBuf) -> Self {
        Self { executable, ..self }
    }

    fn start(&self, launch: Launch) -> io::Result<LaunchOutcome> {
        let dir = self.sessions.of(launch.session);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.path())?;
        let holder = Holder::of(&dir)?;
        if holder != Holder::Nobody {
            // It was not heard of: if somebody paused it, it goes on.
            holder.signal(Signal::SIGCONT);
            return Ok(LaunchOutcome::AlreadyRunning);
        }
        let visible_device = match launch.placement.place {
            Place::Host { visible_device, .. } => visible_device,
            Place::Job { launcher } => {
                let why = format!("its place is a job of {launcher}, which this is not");
                return Err(io::Error::other(why));
            }
        };
        let is_container = launch.recipe.container.is_some();
        let spec = AgentSpec {
            session: launch.session,
            secret: self.secrets.of(launch.session),
            server: self.server.clone(),
            recipe: launch.recipe,
            visible_device: Some(visible_device),
            terms: launch.terms,
            may_begin: launch.may_begin,
            heartbeat: self.heartbeat,
            limits: self.limits,
            engine: is_container.then(|| self.engine.clone()).flatten(),
            is_in_job: false,
        };
        failpoint::cross(Point::LauncherBeforeSpec);
        write_atomically(&dir.agent_spec(), &serde_json::to_vec(&spec)?)?;
        failpoint::cross(Point::LauncherAfterSpec);
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(dir.agent_log())?;
        let mut command = match self.start_with.split_first() {
            None => {
                let mut command = Command::new(&self.executable);
                command.arg0("dwell");
                command
            }
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.executable);
                command
            }
        };
        let child = command
            .arg("agent")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // What a terminal sends to the server's group does not reach it.
            .process_group(0)
            .spawn()?;
        failpoint::cross(Point::LauncherAfterSpawn);
        // It is no child in any other way: the runtime takes its status when it goes.
        drop(child);
        Ok(LaunchOutcome::Started)
    }
}

#[async_trait]
impl Launcher for Local {
    async fn launch(&self, launch: Launch) -> LaunchOutcome {
        let local = self.clone();
        let started = tokio::task::spawn_blocking(move || local.start(launch)).await;
        match started {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => LaunchOutcome::Failed(format!("No agent could be started: {error}")),
            Err(error) => LaunchOutcome::Failed(format!("No agent could be started: {error}")),
        }
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(draft, path)
}
