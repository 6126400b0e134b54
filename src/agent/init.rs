//! The session's first process: `dwell agent init`.
//!
//! It stands between the agent and the app, so that every process of the session
//! has an ancestor that outlives it: process 1 of the session's PID namespace where
//! the host allows one, else a subreaper. It starts the app, reaps what the app
//! leaves behind, and ends everything when the agent says so or is gone. Its end is
//! the proof that the tree is gone.
//!
//! It also watches over the agent: it knows when all must be gone at the latest, and
//! sees to it by its own timer should the agent be paused or stuck.
//!
//! It talks to the agent over its standard input, a socket: an [`Order`] in, one line
//! out. Its standard output and error are the app's. No runtime, no threads: an
//! idle one costs next to nothing.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::lease::Exit;
use dwell_core::time::Monotonic;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

use crate::agent::{cgroup, signals};
use crate::clock;
use crate::failpoint::{self, Point};

/// What the agent tells this process to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send TERM to every process of the session.
    Terminate,
    /// Kill every process of the session.
    Kill,
    /// Kill every process of the session at this moment, unless told otherwise by then.
    KillAt(Monotonic),
    /// To a keeper: the engine is asked to start the container now.
    ContainerIsAwaited,
    /// To a keeper: the container's first process is this one.
    ContainerRuns(i32),
    /// To a keeper: the container was not started after all.
    ContainerIsNotThere,
}

impl Order {
    /// How long each is.
    pub const BYTES: usize = 9;

    /// As it is sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let (what, number) = match self {
            Self::Terminate => (b'T', 0),
            Self::Kill => (b'K', 0),
            Self::KillAt(at) => (b'A', at.0),
            Self::ContainerIsAwaited => (b'C', 0),
            Self::ContainerRuns(pid) => (b'R', u64::try_from(pid).unwrap_or(0)),
            Self::ContainerIsNotThere => (b'N', 0),
        };
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        [what, a, b, c, d, e, f, g, h]
    }

    /// What was sent.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [what, number @ ..] = bytes;
        let number = u64::from_le_bytes(number);
        match what {
            b'T' => Some(Self::Terminate),
            b'K' => Some(Self::Kill),
            b'A' => Some(Self::KillAt(Monotonic(number))),
            b'C' => Some(Self::ContainerIsAwaited),
            b'R' => i32::try_from(number).ok().map(Self::ContainerRuns),
            b'N' => Some(Self::ContainerIsNotThere),
            _ => None,
        }
    }
}

/// The variable in a first process's environment that says whose it is. The app does
/// not see it.
pub const MARK: &str = "DWELL_FIRST_PROCESS_OF";

/// What is to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct App {
    /// The session.
    pub session: SessionId,
    /// The program's path.
    pub program: PathBuf,
    /// All its words, its name the first.
    pub words: Vec<String>,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// Where it starts.
    pub directory: PathBuf,
    /// Doors of the cgroups that it is in.
    pub cgroup_doors: Vec<PathBuf>,
}

/// What this process says to the agent, one JSON line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The app's own process ended.
    AppExited(Exit),
    /// The app could not be started; the sentence says why.
    NotStarted(String),
    /// Something that the session has to do without.
    Missing(String),
    /// The agent let the last moment pass: every process was killed in its place.
    KilledInYourPlace {
        /// When the last one was gone.
        gone_at: Monotonic,
    },
}

/// Be the first process of a session until all others are gone.
#[must_use]
pub fn main() -> ExitCode {
    // SAFETY: standard input is open, is the socket that the agent made for us, and
    // nothing else in this process uses it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    // It fails for no signal that there is.
    let _ = signals::ignore_all();
    // Not among our words: anyone may read those, and there are secrets in it.
    match read_app(&socket) {
        Ok(app) => Init { socket, app: None }.run(&app),
        Err(error) => {
            eprintln!("dwell agent init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_app(mut socket: &UnixStream) -> std::io::Result<App> {
    let mut length = [0; 8];
    socket.read_exact(&mut length)?;
    let mut app = Vec::new();
    socket
        .take(u64::from_le_bytes(length))
        .read_to_end(&mut app)?;
    Ok(serde_json::from_slice(&app)?)
}

/// Hand `app` to a session's first process at the other end of `socket`.
///
/// # Errors
/// When it is gone.
pub fn send_app(mut socket: &UnixStream, app: &App) -> std::io::Result<()> {
    let app = serde_json::to_vec(app)?;
    socket.write_all(&u64::try_from(app.len()).unwrap_or(0).to_le_bytes())?;
    socket.write_all(&app)
}

struct Init {
    socket: UnixStream,
    app: Option<Pid>,
}

impl Init {
    fn run(mut self, app: &App) -> ExitCode {
        if is_first_of_namespace() {
            // If the agent dies, the kernel kills us and the whole namespace with us.
            // Without one we must outlive it, to end what is below us.
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
        }
        let _ = prctl::set_child_subreaper(true);
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        let watched = children.thread_block().and_then(|()| {
            SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        });
        let signals = match watched {
            Ok(signals) => signals,
            Err(error) => {
                self.say(&Word::NotStarted(format!(
                    "Signals cannot be watched: {error}"
                )));
                return ExitCode::FAILURE;
            }
        };
        if let Err(error) = cgroup::enter(app.cgroup_doors.iter().cloned()) {
            self.say(&Word::Missing(format!(
                "The session's cgroup did not let it in: {error}"
            )));
        }
        let last_moment = TimerFd::new(
            // Runs on while the host sleeps, as the lease does.
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        );
        let last_moment = match last_moment {
            Ok(timer) => timer,
            Err(error) => {
                self.say(&Word::NotStarted(format!("No timer can be had: {error}")));
                return ExitCode::FAILURE;
            }
        };
        if is_first_of_namespace()
            && let Err(error) = own_proc()
        {
            self.say(&Word::Missing(format!(
                "The session has no /proc of its own: {error}"
            )));
        }
        failpoint::cross(Point::InitBeforeApp);
        self.start(app);
        failpoint::cross(Point::InitAfterApp);
        loop {
            self.reap();
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(last_moment.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return self.kill_all(),
            }
            let [said, _, is_late] = fds.map(|fd| fd.any().unwrap_or(false));
            while let Ok(Some(_)) = signals.read_signal() {}
            if said {
                match self.hear() {
                    Some(Order::Terminate) => self.terminate_all(),
                    Some(Order::KillAt(at)) => set(&last_moment, at),
                    Some(
                        Order::ContainerIsAwaited
                        | Order::ContainerRuns(_)
                        | Order::ContainerIsNotThere,
                    ) => {}
                    // The agent is gone, or wants it so.
                    Some(Order::Kill) | None => return self.kill_all(),
                }
            } else if is_late {
                let code = self.kill_all();
                self.say(&Word::KilledInYourPlace {
                    gone_at: clock::monotonic(),
                });
                return code;
            }
        }
    }

    fn start(&mut self, app: &App) {
        let mut words = app.words.iter();
        let mut command = Command::new(&app.program);
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command
            .args(words)
            .env_clear()
            .envs(&app.environment)
            .current_dir(&app.directory)
            .stdin(Stdio::null())
            .process_group(0);
        match signals::as_usual(&mut command).spawn() {
            Ok(child) => self.app = i32::try_from(child.id()).ok().map(Pid::from_raw),
            Err(error) => {
                let name = app.words.first().map_or("", String::as_str);
                self.say(&Word::NotStarted(format!(
                    "The program {name} could not be started: {error}"
                )));
            }
        }
        // What the app writes is read until nobody can write any more; we never do.
        let _ = nix::unistd::dup2_stdout(null());
        let _ = nix::unistd::dup2_stderr(null());
    }

    fn say(&mut self, word: &Word) {
        if let Ok(mut line) = serde_json::to_vec(word) {
            line.push(b'\n');
            let _ = self.socket.write_all(&line);
        }
    }

    /// What the agent said; `None` when it is gone.
    fn hear(&mut self) -> Option<Order> {
        let mut order = [0; Order::BYTES];
        self.socket.read_exact(&mut order).ok()?;
        Order::from_bytes(order)
    }

    /// Take note of every process that has ended.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (pid, exit) = match status {
                WaitStatus::Exited(pid, status) => (pid, Exit::Status(status)),
                WaitStatus::Signaled(pid, signal, _) => (pid, Exit::Signal(signal as i32)),
                WaitStatus::StillAlive => return,
                WaitStatus::Stopped(..)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_) => continue,
            };
            if self.app == Some(pid) {
                self.app = None;
                self.say(&Word::AppExited(exit));
            }
        }
    }

    fn terminate_all(&self) {
        if is_first_of_namespace() {
            // Everyone in the namespace but ourselves.
            let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
        } else {
            for pid in descendants(getpid()) {
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
    }

    /// Kill all, wait until all are gone, and go.
    fn kill_all(&mut self) -> ExitCode {
        loop {
            if is_first_of_namespace() {
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            } else {
                for pid in descendants(getpid()) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            // Orphans come to us one by one; when there is nobody to wait for,
            // nobody is left.
            if waitpid(None, None) == Err(Errno::ECHILD) {
                return ExitCode::SUCCESS;
            }
        }
    }
}

/// Have `timer` fire at `moment`, or at once if that is past.
pub fn set(timer: &TimerFd, moment: Monotonic) {
    // At 0 it would never fire.
    let at = TimeSpec::from_duration(Duration::from_millis(moment.0.max(1)));
    // It cannot fail with a timer that is open and a time that is one.
    let _ = timer.set(
        Expiration::OneShot(at),
        TimerSetTimeFlags::TFD_TIMER_ABSTIME,
    );
}

fn is_first_of_namespace() -> bool {
    getpid() == Pid::from_raw(1)
}

/// A `/proc` that shows the session's own processes, seen by nobody else.
fn own_proc() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)
}

#[expect(clippy::expect_used, reason = "/dev/null is everywhere")]
fn null() -> std::fs::File {
    std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .expect("/dev/null")
}

/// Every process below `root`, by who started whom.
#[must_use]
pub fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    for entry in processes.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before it may hold anything, parentheses too.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut waiting = vec![root.as_raw()];
    while let Some(parent) = waiting.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(Pid::from_raw(child));
            waiting.push(child);
        }
    }
    found
}
