//! A Docker Engine of our own, and what a person does at it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::Result;
use crate::by_hand::free_address;

/// Longer than it takes to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The port inside.
const PORT: &str = "8080";

pub struct Dockerd {
    dir: TempDir,
    child: Child,
}

impl Dockerd {
    /// With all that it keeps in `dir`. It changes the network's rules as it likes: that
    /// should be one of its own.
    pub fn start(dir: TempDir) -> Result<Self> {
        let at = |name: &str| dir.path().join(name);
        let log = File::create(at("log"))?;
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .args(["--cgroup-parent", "/dwell-test", "--host"])
            .arg(host(dir.path()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let engine = Self { dir, child };
        let began = Instant::now();
        while let Err(why) = engine.docker(&["version"]) {
            if began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(engine.dir.path().join("log"))?;
                return Err(format!("{why}\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(engine)
    }

    /// As clients are told where it is.
    pub fn host(&self) -> String {
        host(self.dir.path())
    }

    /// Make an image of this tree.
    pub fn import(&self, tree: &Path, name: &str) -> Result<()> {
        let tar: PathBuf = self.dir.path().join("image.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(tree).arg("-cf").arg(&tar).arg(".");
        if !pack.status()?.success() {
            return Err("tar failed".into());
        }
        self.docker(&["import", &tar.display().to_string(), name])?;
        Ok(())
    }

    /// Make a network.
    pub fn create_network(&self, name: &str) -> Result<()> {
        self.docker(&["network", "create", name]).map(drop)
    }

    /// `docker run` of this image on this network, with a port of this host's that leads to
    /// the app's; `{port}` stands for that.
    pub fn run(&self, network: &str, image: &str, command: &[String]) -> Result<Run<'_>> {
        let address = free_address().ok_or("no port is free")?.to_string();
        let publish = format!("{address}:{PORT}");
        let command: Vec<_> = command
            .iter()
            .map(|word| word.replace("{port}", PORT))
            .collect();
        let mut words = vec!["run", "--detach", "--rm", "--network", network];
        words.extend(["--publish", &publish, image]);
        words.extend(command.iter().map(String::as_str));
        let id = self.docker(&words)?;
        Ok(Run {
            engine: self,
            id,
            address,
        })
    }

    fn docker(&self, words: &[&str]) -> Result<String> {
        let done = Command::new("docker")
            .args(["--host", &self.host()])
            .args(words)
            .stdin(Stdio::null())
            .output()?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into());
        }
        Ok(String::from_utf8(done.stdout)?.trim().to_owned())
    }
}

fn host(dir: &Path) -> String {
    format!("unix://{}", dir.join("engine.sock").display())
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // It takes what it has started along.
        let _ = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

/// A container that a person has started.
pub struct Run<'a> {
    engine: &'a Dockerd,
    id: String,
    /// `host:port`.
    pub address: String,
}

impl Run<'_> {
    pub fn end(self) -> Result<()> {
        self.engine.docker(&["stop", &self.id]).map(drop)
    }
}
