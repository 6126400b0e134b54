//! A session's app as plain processes of the host: started, told, killed, proven gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use dwell_core::time::Monotonic;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::cgroup::Cgroups;
use super::init::{self, App, Order};
use crate::failpoint::{self, Point};

/// The processes of a session, with the first one between them and the agent.
pub struct Processes {
    first: Option<Pid>,
    in_namespace: bool,
    cgroups: Cgroups,
    socket: UnixStream,
    was_asked_to_kill: bool,
    kill_at: Option<Monotonic>,
}

/// What the agent reads from processes that were started.
pub struct Outputs {
    /// Where the first process speaks, a [`init::Word`] a line.
    pub words: UnixStream,
    /// The app's standard output.
    pub stdout: OwnedFd,
    /// The app's standard error.
    pub stderr: OwnedFd,
}

impl Processes {
    /// Start the app, with as much between it and the host as the host allows.
    ///
    /// # Errors
    /// When not even its first process can be started.
    pub fn start(mut app: App, cgroups: Cgroups) -> io::Result<(Self, Outputs)> {
        app.cgroup_doors = cgroups.doors().collect();
        let (socket, theirs) = UnixStream::pair()?;
        let (stdout, app_stdout) = io::pipe()?;
        let (stderr, app_stderr) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("dwell")
            .args(["agent", "init"])
            .env(init::MARK, app.session.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(app_stdout)
            .stderr(app_stderr)
            .process_group(0);
        let (in_namespace, child) = spawn_in_namespace(&mut command);
        // Dropping the command closes our ends of what is now the app's alone.
        drop(command);
        let first = i32::try_from(child?.id())
            .map(Pid::from_raw)
            .map_err(io::Error::other)?;
        init::send_app(&socket, &app)?;
        let words = socket.try_clone()?;
        let tree = Self {
            first: Some(first),
            in_namespace,
            cgroups,
            socket,
            was_asked_to_kill: false,
            kill_at: None,
        };
        Ok((
            tree,
            Outputs {
                words,
                stdout: stdout.into(),
                stderr: stderr.into(),
            },
        ))
    }

    /// What the session has to do without, for people.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        let namespace = (!self.in_namespace).then_some(
            "This host lets the agent make no PID namespace; processes are found by descent alone",
        );
        namespace
            .into_iter()
            .chain(self.cgroups.missing.iter().map(String::as_str))
    }

    /// TERM to every process.
    pub fn terminate(&self) {
        failpoint::cross(Point::AgentBeforeTerminate);
        self.say(Order::Terminate);
    }

    /// KILL to every process at this moment, should we be paused or stuck then.
    pub fn kill_at_latest(&mut self, moment: Option<Monotonic>) {
        if self.kill_at != moment {
            self.kill_at = moment;
            self.say(Order::KillAt(moment.unwrap_or(Monotonic(u64::MAX))));
        }
    }

    /// KILL to every process.
    pub fn kill(&mut self) {
        failpoint::cross(Point::AgentBeforeKill);
        self.cgroups.kill();
        match self.first {
            // The kernel kills the whole namespace with its first process.
            Some(first) if self.in_namespace => {
                let _ = kill(first, Signal::SIGKILL);
            }
            Some(_) if !std::mem::replace(&mut self.was_asked_to_kill, true) => {
                self.say(Order::Kill);
            }
            // The first process was killed, and what it had is ours now; or it was
            // asked before and is paused.
            Some(_) | None => {
                for pid in init::descendants(getpid()) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
    }

    /// Take note of what has ended. Says whether the first process just did.
    pub fn reap(&mut self) -> bool {
        let mut first_ended = false;
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            match status {
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => {
                    if self.first == Some(pid) {
                        self.first = None;
                        first_ended = true;
                    }
                }
                WaitStatus::StillAlive => break,
                WaitStatus::Stopped(..)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_) => {}
            }
        }
        first_ended
    }

    /// Is the last process gone? The first one is reaped only after all others of
    /// its namespace are; without a namespace, none is left when we have no child
    /// and the cgroup no process.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let no_child = || waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD);
        self.first.is_none() && (self.in_namespace || no_child()) && self.cgroups.are_empty()
    }

    /// Leave nothing of it on the host.
    pub fn remove(&self) {
        self.cgroups.remove();
    }

    fn say(&self, order: Order) {
        // It goes in whole: there is never much in the socket.
        let _ = nix::unistd::write(self.socket.as_fd(), &order.to_bytes());
    }
}

/// Spawn `command` as process 1 of a PID namespace, or plainly where that is not
/// allowed. Says which. The agent itself stays where it is.
fn spawn_in_namespace(command: &mut Command) -> (bool, io::Result<std::process::Child>) {
    let Ok(own) = File::open("/proc/self/ns/pid") else {
        return (false, command.spawn());
    };
    if unshare(CloneFlags::CLONE_NEWPID).is_err() {
        return (false, command.spawn());
    }
    let child = command.spawn();
    // Else no thread could be made any more. It was ours a moment ago.
    if let Err(error) = setns(own, CloneFlags::CLONE_NEWPID) {
        eprintln!("dwell agent: the way back to its PID namespace is barred: {error}");
    }
    (true, child)
}
