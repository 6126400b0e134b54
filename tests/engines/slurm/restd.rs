//! The slurmrestd of a cluster, and what a server is told to ask it.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, slurm};
use super::host::Host;
use super::servers::Manner;
use crate::harness::{DWELL, PATIENCE};

pub struct Restd {
    host: Host,
    /// What is said of it in a `[[launcher]]`.
    pub launcher: String,
}

/// One whose every user is nobody, on a Unix socket. It takes nobody from another PID
/// namespace.
pub struct SocketRestd {
    process: Child,
    socket: PathBuf,
}

/// That of the cluster which all tests of this process may use.
pub fn restd() -> &'static Restd {
    static SHARED: OnceLock<Restd> = OnceLock::new();
    SHARED.get_or_init(|| Restd::of(slurm()))
}

/// What it is instead of root, which it declines to be.
const NOBODY: u32 = 65_534;

/// It is to read what this checkout has, wherever that is.
fn command(who: &str, address: &str) -> Vec<String> {
    let words = format!(
        "setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups \
         --inh-caps=+dac_read_search --ambient-caps=+dac_read_search \
         slurmrestd -a {who} -s {} {address}",
        plugin()
    );
    words.split_whitespace().map(str::to_owned).collect()
}

/// What it is to serve: all that it has would need an accounting database. Slurm 23 has one
/// plugin for all versions of the API, and earlier ones had one for each.
fn plugin() -> &'static str {
    let said = Command::new("slurmrestd").arg("-V").output();
    let said = said.expect("`make test-slurm` installs slurmrestd");
    let said = String::from_utf8(said.stdout).unwrap();
    let version = said.split_whitespace().last().unwrap();
    let (major, _) = version.split_once('.').unwrap();
    if major.parse::<u32>().unwrap() < 23 {
        "openapi/v0.0.38"
    } else {
        "openapi/slurmctld"
    }
}

fn until(is_there: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < PATIENCE, "no slurmrestd");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Restd {
    /// One that knows its users by their tokens, as it does where it is reached by network.
    pub fn of(cluster: &Cluster) -> Self {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        drop(held);
        let token = cluster.file("token");
        let said = cluster.command(&["scontrol", "token", "username=root", "lifespan=3600"]);
        std::fs::write(&token, said).unwrap();
        let words = command("rest_auth/jwt", &address.to_string());
        let words = words.iter().map(String::as_str);
        let words: Vec<&str> = ["env", "SLURM_JWT=daemon"]
            .into_iter()
            .chain(words)
            .collect();
        let restd = Self {
            host: Host::new(&cluster.file(""), address.port(), &words),
            launcher: format!(
                "slurmrestd = \"http://{address}\"\nuser = \"root\"\ntoken_file = {token:?}\n"
            ),
        };
        restd.comes_back();
        restd
    }

    pub fn kill(&self) {
        self.host.order("kill");
    }

    pub fn comes_back(&self) {
        self.host.order("start");
        until(|| self.host.answers());
    }

    /// As by default, but by this.
    pub fn manner(&self) -> Manner {
        manner(&self.launcher)
    }
}

impl SocketRestd {
    pub fn of(cluster: &Cluster) -> Self {
        let dir = cluster.file("nobody");
        std::fs::create_dir(&dir).unwrap();
        chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let socket = dir.join("socket");
        let words = command("rest_auth/local", &format!("unix:{}", socket.display()));
        let mut process = Command::new(&words[0]);
        process.args(&words[1..]).envs(cluster.environment());
        let restd = Self {
            process: process
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
            socket,
        };
        until(|| UnixStream::connect(&restd.socket).is_ok());
        restd
    }

    pub fn manner(&self) -> Manner {
        let socket = self.socket.display();
        manner(&format!(
            "slurmrestd = \"unix://{socket}\"\nuser = \"nobody\"\n"
        ))
    }
}

impl Drop for SocketRestd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn manner(launcher: &str) -> Manner {
    Manner {
        launcher: format!("moves_time_limits = true\nagent = \"{DWELL}\"\n{launcher}"),
        // Slurm's own commands are of no use to it.
        environment: vec![("PATH", "/nowhere".to_owned())],
        ..Manner::default()
    }
}
