//! The slurmrestd of a cluster, and what a server is told to ask it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, slurm};
use super::host::Host;
use super::servers::Manner;
use crate::harness::{DWELL, PATIENCE};

pub struct Restd {
    host: Host,
    port: u16,
    token: PathBuf,
}

/// That of the cluster which all tests of this process may use.
pub fn restd() -> &'static Restd {
    static SHARED: OnceLock<Restd> = OnceLock::new();
    SHARED.get_or_init(|| Restd::of(slurm()))
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

impl Restd {
    /// One that knows its users by their tokens, as it does where it is reached by network.
    pub fn of(cluster: &Cluster) -> Self {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        drop(held);
        let address = format!("127.0.0.1:{port}");
        // It declines to be root, but is to read what this checkout has wherever that is.
        let daemon = [
            &["env", "SLURM_JWT=daemon", "setpriv"][..],
            &["--reuid=65534", "--regid=65534", "--clear-groups"],
            &[
                "--inh-caps=+dac_read_search",
                "--ambient-caps=+dac_read_search",
            ],
            &[
                "slurmrestd",
                "-a",
                "rest_auth/jwt",
                "-s",
                plugin(),
                &address,
            ],
        ];
        let host = Host::new(&cluster.file(""), port, &daemon.concat());
        let token = cluster.file("token");
        let said = cluster.command(&["scontrol", "token", "username=root", "lifespan=3600"]);
        std::fs::write(&token, said).unwrap();
        let restd = Self { host, port, token };
        restd.comes_back();
        restd
    }

    /// What is said of it in a `[[launcher]]`.
    pub fn launcher(&self) -> String {
        let Self { port, token, .. } = self;
        format!(
            "slurmrestd = \"http://127.0.0.1:{port}\"\nuser = \"root\"\ntoken_file = {token:?}\n"
        )
    }

    pub fn kill(&self) {
        self.host.order("kill");
    }

    pub fn comes_back(&self) {
        self.host.order("start");
        let began = Instant::now();
        while !self.host.answers() {
            assert!(began.elapsed() < PATIENCE, "no slurmrestd");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As by default, but by this.
    pub fn manner(&self) -> Manner {
        Manner {
            launcher: format!(
                "moves_time_limits = true\nagent = \"{DWELL}\"\n{}",
                self.launcher()
            ),
            // Slurm's own commands are of no use to it.
            environment: vec![("PATH", "/nowhere".to_owned())],
            ..Manner::default()
        }
    }
}
