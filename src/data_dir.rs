//! The data directory: where everything is.
//!
//! ```text
//! DIR/
//!   lock            held by the server that has the directory
//!   server.json     where that server listens
//!   server.id       who that server is among those that share a database
//!   takeover.sock   where it can be asked to give way to another
//!   admin.key       the first key, mode 0600
//!   acme/CA/        account.json and NAME.pem (key and certificate), mode 0600
//!   agents/SHA256   agents that jobs of clusters were promised
//!   store.db        sessions, machines, keys, GPU events
//!   sessions/ID/    one session: see `SessionDir`
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::leadership::ServerId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// For how long a server that starts waits for the lock: [`DataDir::is_held`] holds
/// it for an instant.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// A data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir(pub PathBuf);

/// Why a data directory cannot be used. The sentence names it and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another server has it.
    #[error("the data directory {} is in use by another server{}; stop that one, or name another directory with --data-dir", dir.display(), holder(*pid))]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The server's process, where known.
        pid: Option<u32>,
    },
    /// The system does not allow it.
    #[error("cannot {doing} {}: {why}; name a data directory that you may write with --data-dir", path.display())]
    Io {
        /// What was tried: `write`, `read`, `make`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

/// Held by the server that has the data directory; given up when dropped, and by the
/// system when the server dies.
#[derive(Debug)]
pub struct DataDirLock {
    file: File,
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        // Closing is not enough: an agent that is being started may have the file too,
        // for the moment until it is another program.
        drop(self.file.unlock());
    }
}

/// What `server.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFile {
    /// Where the server listens, as a program on this host reaches it: a bare origin.
    pub url: String,
    /// Its process.
    pub pid: u32,
}

impl DataDir {
    /// Where data is when nobody says otherwise: `$XDG_DATA_HOME/dwell`, or
    /// `~/.local/share/dwell`, or `dwell` here for someone without a home.
    #[must_use]
    pub fn default_for_user() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let share = set("XDG_DATA_HOME")
            .map(PathBuf::from)
            // The XDG specification: a relative path is to be ignored.
            .filter(|path| path.is_absolute())
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".local/share")))
            .unwrap_or_default();
        Self(share.join("dwell"))
    }

    /// Make the directory, for its owner alone, and the one for sessions. Harmless if
    /// they are there.
    ///
    /// # Errors
    /// When they cannot be made or written.
    pub fn create(&self) -> Result<(), DataDirError> {
        make_private(&self.0)?;
        self.sessions().create()
    }

    /// Take the directory, which is there, for one server.
    ///
    /// # Errors
    /// [`DataDirError::Held`] when another server has it.
    pub fn hold(&self) -> Result<DataDirLock, DataDirError> {
        const PAUSE: Duration = Duration::from_millis(10);
        let path = self.lock();
        let file = open_lock(&path).map_err(|why| fault("write", &path, why))?;
        let mut waited = Duration::ZERO;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DataDirLock { file }),
                Err(TryLockError::WouldBlock) if waited < LOCK_PATIENCE => {
                    std::thread::sleep(PAUSE);
                    waited += PAUSE;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(DataDirError::Held {
                        dir: self.0.clone(),
                        pid: self.read_server_file().map(|server| server.pid),
                    });
                }
                Err(TryLockError::Error(why)) => return Err(fault("lock", &path, why)),
            }
        }
    }

    /// Does a server have the directory?
    #[must_use]
    pub fn is_held(&self) -> bool {
        File::open(self.lock()).is_ok_and(|file| {
            // Shared, so that many may look at once.
            matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
        })
    }

    /// What `server.json` says, if it is there and whole. It may be left over from a
    /// server that was killed: see [`DataDir::running_server`].
    #[must_use]
    pub fn read_server_file(&self) -> Option<ServerFile> {
        serde_json::from_slice(&fs::read(self.server_file()).ok()?).ok()
    }

    /// The server that has the directory, if one has and listens.
    #[must_use]
    pub fn running_server(&self) -> Option<ServerFile> {
        self.read_server_file().filter(|_| self.is_held())
    }

    /// Say where the server listens.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_server_file(&self, server: &ServerFile) -> Result<(), DataDirError> {
        let path = self.server_file();
        let json = serde_json::to_vec(server)
            .map_err(|why| fault("write", &path, io::Error::other(why)))?;
        write_atomically(&path, &json, 0o644).map_err(|why| fault("write", &path, why))
    }

    /// The server listens no more.
    pub fn remove_server_file(&self) {
        // If it stays, the lock still says that nobody listens.
        drop(fs::remove_file(self.server_file()));
    }

    /// The first key, if it is there and may be read.
    #[must_use]
    pub fn read_admin_key(&self) -> Option<String> {
        let key = fs::read_to_string(self.admin_key()).ok()?;
        Some(key.trim().to_owned()).filter(|key| !key.is_empty())
    }

    /// Keep the first key, for the directory's owner alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_admin_key(&self, key: &str) -> Result<(), DataDirError> {
        let path = self.admin_key();
        write_atomically(&path, format!("{key}\n").as_bytes(), 0o600)
            .map_err(|why| fault("write", &path, why))
    }

    /// Held while a server runs.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Where the running server listens.
    #[must_use]
    pub fn server_file(&self) -> PathBuf {
        self.0.join("server.json")
    }

    /// Where the running server can be asked to give way to another.
    #[must_use]
    pub fn takeover_socket(&self) -> PathBuf {
        self.0.join("takeover.sock")
    }

    /// The first key.
    #[must_use]
    pub fn admin_key(&self) -> PathBuf {
        self.0.join("admin.key")
    }

    /// What ACME authorities have given, by authority.
    #[must_use]
    pub fn acme(&self) -> PathBuf {
        self.0.join("acme")
    }

    /// The agents that jobs of clusters were promised, each named by its hash.
    #[must_use]
    pub fn agents(&self) -> PathBuf {
        self.0.join("agents")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.0.join("store.db")
    }

    /// The id of the server that has the directory, among others that share its records;
    /// made if it is not there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn server_id(&self) -> Result<ServerId, DataDirError> {
        let path = self.0.join("server.id");
        let known = fs::read_to_string(&path).unwrap_or_default();
        if !known.trim().is_empty() {
            return Ok(ServerId(known.trim().to_owned()));
        }
        let id = Uuid::new_v4().to_string();
        write_atomically(&path, format!("{id}\n").as_bytes(), 0o644)
            .map_err(|why| fault("write", &path, why))?;
        Ok(ServerId(id))
    }

    /// All sessions' directories, where they are not kept elsewhere.
    #[must_use]
    pub fn sessions(&self) -> SessionsDir {
        SessionsDir(self.0.join("sessions"))
    }

    /// One session's directory.
    #[must_use]
    pub fn session(&self, id: SessionId) -> SessionDir {
        self.sessions().of(id)
    }
}

/// Replace the file at `path` by one with `bytes`, whole or not at all, and on the
/// disk when this returns.
///
/// # Errors
/// What the system says.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let written = write_new(&beside, bytes, mode).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        drop(fs::remove_file(&beside));
    }
    written?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
}

fn fault(doing: &'static str, path: &Path, why: io::Error) -> DataDirError {
    DataDirError::Io {
        doing,
        path: path.to_owned(),
        why,
    }
}

/// Make a directory for its owner alone. Harmless if it is there.
fn make_private(dir: &Path) -> Result<(), DataDirError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|why| fault("make", dir, why))
}

/// Where all sessions' directories are: in the data directory, or, for several servers,
/// where all of these reach them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsDir(pub PathBuf);

impl SessionsDir {
    /// Make it, for its owner alone. Harmless if it is there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self) -> Result<(), DataDirError> {
        make_private(&self.0)
    }

    /// One session's.
    #[must_use]
    pub fn of(&self, id: SessionId) -> SessionDir {
        SessionDir(self.0.join(id.to_string()))
    }

    /// Where agents of several servers read which one leads, and where that is.
    #[must_use]
    pub fn leader_file(&self) -> PathBuf {
        self.0.join("leader.json")
    }
}

/// One session's directory on its host.
///
/// ```text
/// sessions/ID/
///   agent.json      what its agent was told (mode 0600)
///   agent.lock      held by the agent that lives
///   journal.jsonl   what the agent did and when: its memory past its own death
///   agent.log       what the agent itself had to say
///   log/            what the app wrote, in numbered segments
///   work/           the app's private directory, removed at the end
/// ```
#[derive(Clone, Debug)]
pub struct SessionDir(pub PathBuf);

impl SessionDir {
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where it is beside all others.
    #[must_use]
    pub fn sessions(&self) -> PathBuf {
        let above = self.0.parent();
        above.map_or_else(|| self.0.clone(), Path::to_owned)
    }

    /// What the agent was told.
    #[must_use]
    pub fn agent_spec(&self) -> PathBuf {
        self.0.join("agent.json")
    }

    /// Held by the agent that lives.
    #[must_use]
    pub fn agent_lock(&self) -> PathBuf {
        self.0.join("agent.lock")
    }

    /// The agent's journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }

    /// The agent's own words.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.0.join("agent.log")
    }

    /// The app's output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The app's private directory.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fresh() -> (tempfile::TempDir, DataDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir(parent.path().join("data"));
        dir.create().unwrap();
        (parent, dir)
    }

    #[test]
    fn two_servers_never_have_one_directory() {
        let (_parent, dir) = fresh();
        let held = dir.hold().unwrap();
        dir.write_server_file(&ServerFile {
            url: "http://127.0.0.1:1".into(),
            pid: 42,
        })
        .unwrap();
        let refused = dir.hold().unwrap_err().to_string();
        assert!(refused.contains("process 42"), "{refused}");
        assert!(refused.contains("--data-dir"), "{refused}");
        drop(held);
        dir.hold().unwrap();
    }

    #[test]
    fn a_server_file_left_by_a_dead_server_names_no_running_one() {
        let (_parent, dir) = fresh();
        let server = ServerFile {
            url: "http://127.0.0.1:1".into(),
            pid: 42,
        };
        dir.write_server_file(&server).unwrap();
        assert_eq!(dir.read_server_file(), Some(server.clone()));
        assert_eq!(dir.running_server(), None);
        let _held = dir.hold().unwrap();
        assert_eq!(dir.running_server(), Some(server));
    }

    #[test]
    fn who_looks_whether_a_server_runs_does_not_keep_one_from_starting() {
        let (_parent, dir) = fresh();
        dir.hold().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let _ = dir.is_held();
                }
            });
            for _ in 0..20 {
                dir.hold().unwrap();
            }
        });
    }

    #[test]
    fn the_admin_key_is_for_its_owner_alone() {
        let (_parent, dir) = fresh();
        assert_eq!(dir.read_admin_key(), None);
        dir.write_admin_key("dwell_secret").unwrap();
        assert_eq!(dir.read_admin_key().as_deref(), Some("dwell_secret"));
        let mode = fs::metadata(dir.admin_key()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = fs::metadata(&dir.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn what_was_there_stays_when_it_cannot_be_replaced() {
        let (parent, _) = fresh();
        let target = parent.path().join("taken");
        fs::create_dir(&target).unwrap();
        assert!(write_atomically(&target, b"new", 0o600).is_err());
        let left: Vec<_> = fs::read_dir(parent.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.iter().all(|name| name == "taken" || name == "data"));
    }
}
