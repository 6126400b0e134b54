//! The hosts of a cluster, which are PID namespaces of this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// A daemon, and processes that are gone when their host is.
pub struct Host {
    /// Where `slurm.conf` is.
    dir: PathBuf,
    daemon: Vec<String>,
    port: Option<u16>,
    first: Mutex<Option<First>>,
}

/// The first process of the namespace, told what to do with the daemon. When there is nobody
/// to tell it anything it ends, and all others with it.
struct First {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const FIRST: &str = r#"
while read -r order; do
  case $order in
    start) "$@" </dev/null >>log 2>&1 & daemon=$! ;;
    kill) kill -KILL $daemon; wait $daemon ;;
    pause) kill -STOP $daemon ;;
    resume) kill -CONT $daemon ;;
  esac
  echo done
done"#;

impl Host {
    /// One whose daemon is told to start later, and takes connections there.
    pub fn new(dir: &Path, port: impl Into<Option<u16>>, daemon: &[&str]) -> Self {
        let host = Self {
            dir: dir.to_owned(),
            daemon: daemon.iter().map(ToString::to_string).collect(),
            port: port.into(),
            first: Mutex::new(None),
        };
        host.boots();
        host
    }

    /// Its daemon does not start by itself.
    pub fn boots(&self) {
        let mut process = Command::new("unshare")
            .args(["--pid", "--mount-proc", "--fork", "--kill-child"])
            .args(["bash", "-c", FIRST, "first"])
            .args(&self.daemon)
            .current_dir(&self.dir)
            .env("SLURM_CONF", self.dir.join("slurm.conf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let first = First {
            orders: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        };
        *self.first.lock().unwrap() = Some(first);
    }

    /// What [`FIRST`] knows how to do.
    pub fn order(&self, what: &str) {
        let mut first = self.first.lock().unwrap();
        let first = first.as_mut().expect("a host that has power");
        writeln!(first.orders, "{what}").unwrap();
        let mut answer = String::new();
        first.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "{what}");
    }

    /// Does its daemon take connections?
    pub fn answers(&self) -> bool {
        let port = self.port.unwrap();
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    }

    /// As when it loses power; until nothing of it is left.
    pub fn dies(&self) {
        let first = self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut first) = first {
            drop(first.orders);
            let _ = first.process.wait();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.dies();
    }
}
