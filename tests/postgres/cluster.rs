//! Postgres servers of the tests' own, each in a directory of its own and reached by a
//! socket in it. What a test process started is stopped and removed when that process has
//! ended, however it did.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use nix::unistd::{Uid, User, chown};
use tempfile::TempDir;

/// Where nothing else is said.
const USUAL_PORT: u16 = 5432;

/// Faster, and lost only if the machine itself dies.
const FOR_TESTS: &str = "fsync = off
full_page_writes = off
listen_addresses = ''
max_connections = 400
wal_level = replica
";

/// Ann needs a password.
const WHO_MAY_COME: &str = "local all ann scram-sha-256
local all all trust
local replication all trust
";

/// A server.
pub struct Cluster {
    /// What others must not see while it goes.
    dir: PathBuf,
    /// Names its socket, whether it listens on a network or not.
    port: u16,
    /// Stops it and removes all when its input ends, which is at our end at the latest.
    keeper: Child,
    databases: AtomicU32,
}

impl Cluster {
    /// The one that all tests of this process may use, with a database each.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Cluster> = LazyLock::new(Cluster::start);
        &SHARED
    }

    /// One that may be stopped, killed and broken.
    pub fn start() -> Self {
        Self::start_in(&std::env::temp_dir(), FOR_TESTS)
    }

    /// One in a directory there, with this configuration.
    pub fn start_in(parent: &Path, configuration: &str) -> Self {
        let cluster = Self::new(parent, USUAL_PORT);
        cluster.init(configuration, WHO_MAY_COME);
        cluster.up();
        cluster
    }

    /// One that is reached by network as well, at this port, and only encrypted. It shows
    /// this certificate, of which it has the key, both in PEM.
    pub fn start_encrypted(port: u16, certificate: &str, key: &str) -> Self {
        let cluster = Self::new(&std::env::temp_dir(), port);
        let configuration = format!("{FOR_TESTS}listen_addresses = '127.0.0.1'\nssl = on\n");
        let who = format!("{WHO_MAY_COME}hostssl all all 127.0.0.1/32 trust\n");
        cluster.init(&configuration, &who);
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let file = cluster.data().join(name);
            std::fs::write(&file, pem).unwrap();
            let user = other_user();
            let (user, group) = (user.as_ref().map(|it| it.uid), user.map(|it| it.gid));
            chown(&file, user, group).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        }
        cluster.up();
        cluster
    }

    fn init(&self, configuration: &str, who_may_come: &str) {
        let how = ["-A", "trust", "-U", "dwell", "-E", "UTF8", "-N"];
        self.program("initdb", &how);
        self.configure(configuration);
        std::fs::write(self.data().join("pg_hba.conf"), who_may_come).unwrap();
    }

    /// A standby of this one, which follows it.
    pub fn standby(&self) -> Self {
        let standby = Self::new(&std::env::temp_dir(), USUAL_PORT);
        let from = self.dir.display().to_string();
        let into = standby.data().display().to_string();
        standby.run(
            "pg_basebackup",
            &[
                "-h", &from, "-U", "dwell", "-D", &into, "-R", "-c", "fast", "-X", "stream",
            ],
        );
        standby.up();
        standby
    }

    fn new(parent: &Path, port: u16) -> Self {
        let dir = as_postgres_may_write(tempfile::tempdir_in(parent).unwrap());
        let mut keeper = command("/bin/sh");
        let stop = format!(
            "read -r _; {} -D '{dir}/data' -m immediate stop; rm -rf '{dir}'",
            program("pg_ctl").display(),
            dir = dir.display()
        );
        let keeper = keeper
            .args(["-c", &stop])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What is typed to end the tests is not for it.
            .process_group(0)
            .spawn()
            .unwrap();
        Self {
            dir,
            port,
            keeper,
            databases: AtomicU32::new(0),
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where its socket is.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!(".s.PGSQL.{}", self.port))
    }

    /// More lines for its configuration, good from its next start on.
    pub fn configure(&self, lines: &str) {
        let file = self.data().join("postgresql.conf");
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str(lines);
        std::fs::write(&file, text).unwrap();
    }

    pub fn up(&self) {
        let options = format!("-k {} -p {}", self.dir.display(), self.port);
        let log = self.dir.join("log").display().to_string();
        self.program("pg_ctl", &["-w", "-o", &options, "-l", &log, "start"]);
    }

    /// As when its host loses power.
    pub fn down(&self) {
        self.program("pg_ctl", &["-w", "-m", "immediate", "stop"]);
    }

    /// A program of Postgres's, told of the data.
    pub fn program(&self, name: &str, arguments: &[&str]) {
        let data = self.data().display().to_string();
        self.run(name, &[&["-D", data.as_str()], arguments].concat());
    }

    fn run(&self, name: &str, arguments: &[&str]) {
        let said = command(program(name))
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            // A server that it starts would keep a pipe open.
            .stdout(std::fs::File::create(self.dir.join("stdout")).unwrap())
            .stderr(std::fs::File::create(self.dir.join("stderr")).unwrap())
            .status()
            .unwrap();
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let stderr = std::fs::read_to_string(self.dir.join("stderr")).unwrap();
        assert!(
            said.success(),
            "{name} {arguments:?}: {said}\n{stderr}{log}"
        );
    }

    /// `psql`, which prints what it is answered and nothing else.
    fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new(program("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-U", "dwell", "-d", database, "-p"])
            .arg(self.port.to_string())
            .arg("-h")
            .arg(&self.dir);
        psql
    }

    /// Does it take connections?
    pub fn answers(&self, database: &str) -> bool {
        let asked = self.psql(database).args(["-c", "SELECT 1"]).output();
        asked.unwrap().status.success()
    }

    /// Another session, in which this is done, and which stays until it is dropped.
    pub fn meanwhile(&self, database: &str, sql: &str) -> Meanwhile {
        let mut psql = self.psql(database);
        let mut psql = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = psql.stdin.take().unwrap();
        writeln!(stdin, "{sql};\n\\echo done").unwrap();
        let mut done = String::new();
        let stdout = psql.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut done).unwrap();
        assert_eq!(done, "done\n");
        Meanwhile {
            psql,
            stdin: Some(stdin),
        }
    }

    /// What `psql` prints of this.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let said = self.psql(database).args(["-c", sql]).output().unwrap();
        let stderr = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "{sql}: {stderr}");
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    }

    /// A database that nobody else has; its name.
    pub fn database(&self) -> String {
        // Of a template one copy is made at a time.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("dwell_{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Where that database is.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://dwell@localhost:{}/{database}?host={}",
            self.port,
            self.dir.display()
        )
    }
}

/// See [`Cluster::meanwhile`].
pub struct Meanwhile {
    psql: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.psql.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Postgres refuses to run as root.
fn other_user() -> Option<User> {
    if !Uid::effective().is_root() {
        return None;
    }
    let user = User::from_name("postgres").unwrap();
    assert!(
        user.is_some(),
        "there is no user postgres; is Postgres installed? `make setup-postgres`"
    );
    user
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = other_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn as_postgres_may_write(dir: TempDir) -> PathBuf {
    if let Some(user) = other_user() {
        chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
    }
    dir.keep()
}

/// A program of the newest Postgres that is installed. Debian keeps them apart.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter();
    let newest = versions
        .flatten()
        .flatten()
        .filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok())
        .max();
    match newest {
        Some(version) => Path::new("/usr/lib/postgresql").join(format!("{version}/bin/{name}")),
        None => PathBuf::from(name),
    }
}
