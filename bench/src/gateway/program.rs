//! A proxy that runs in the foreground.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::Result;
use crate::http::Connection;
use crate::processes::families;

/// How long one has for ending by itself.
const GRACE: Duration = Duration::from_secs(2);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Ended when dropped, with all its processes and its files.
pub struct Program {
    child: Child,
    _dir: TempDir,
}

impl Program {
    /// Start `program` with arguments, in which `{config}` and `{dir}` stand for the
    /// paths of its configuration and of a directory of its own, and wait until it
    /// answers at that address.
    pub fn start(program: &Path, arguments: &[&str], config: &str, address: &str) -> Result<Self> {
        let mut started = Self::spawn(program, arguments, config)?;
        let ask = || Connection::open(address, "")?.get("/");
        while !ask().is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = started.child.try_wait()? {
                return Err(format!("{} ended: {status}", program.display()).into());
            }
            std::thread::sleep(ASK_AGAIN_AFTER);
        }
        Ok(started)
    }

    /// The same, without waiting.
    pub fn spawn(program: &Path, arguments: &[&str], config: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("dwell-bench-")?;
        let file = dir.path().join("config");
        let directory = dir.path().display().to_string();
        std::fs::write(&file, config.replace("{dir}", &directory))?;
        let file = file.display().to_string();
        let child = Command::new(program)
            .args(
                arguments
                    .iter()
                    .map(|word| word.replace("{config}", &file).replace("{dir}", &directory)),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { child, _dir: dir })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let signal = |pid: u32, signal| {
            // Gone already: all the better.
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        };
        let all = families(&[self.pid()]).unwrap_or_default();
        signal(self.pid(), Signal::SIGTERM);
        let told = Instant::now();
        while told.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            all.into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
            let _ = self.child.wait();
        }
    }
}
