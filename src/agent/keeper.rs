//! The keeper of a session that runs in a container: `dwell agent keep`.
//!
//! What a session's first process is to plain ones: it knows when all must be gone at
//! the latest, and kills the container by its own timer should the agent be paused or
//! stuck, and at once should the agent be dead. It asks no engine. The agent sees when
//! the keeper dies, and ends the session: neither of them alone keeps an app alive.
//!
//! The agent speaks to it as to a first process: an [`Order`] in, a [`Word`] out.

use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dwell_core::id::SessionId;
use dwell_core::time::Monotonic;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::unistd::getpid;

use super::init::{self, Order, Word};
use super::inside::Inside;
use super::{remains, signals};
use crate::clock;

/// For how long after its end a container is waited for that the engine was asked to
/// start, and of which nothing was heard.
const LATECOMERS_FOR: Duration = Duration::from_secs(10);
const KILL_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// What is known of the container.
enum Known {
    /// The engine was not asked to start it, or did not.
    NotThere,
    /// The engine was asked to start it.
    Awaited,
    /// It runs.
    Runs(Inside),
}

/// Keep the session whose container has this id until it is gone.
#[must_use]
pub fn main(container: &str) -> ExitCode {
    // SAFETY: standard input is open, is the socket that the agent made for us, and
    // nothing else in this process uses it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    // It fails for no signal that there is.
    let _ = signals::ignore_all();
    let session = std::env::var(init::MARK).ok();
    let Some(session) = session.and_then(|session| session.parse().ok()) else {
        eprintln!("dwell agent keep: the agent starts it");
        return ExitCode::from(2);
    };
    let last_moment = TimerFd::new(
        // Runs on while the host sleeps, as the lease does.
        ClockId::CLOCK_BOOTTIME,
        TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
    );
    match last_moment {
        Ok(last_moment) => {
            let keeper = Keeper {
                session,
                container,
                socket,
                last_moment,
                known: Known::NotThere,
            };
            keeper.run();
            ExitCode::SUCCESS
        }
        // The agent sees that we are gone.
        Err(error) => {
            eprintln!("dwell agent keep: no timer can be had: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Keeper<'a> {
    session: SessionId,
    container: &'a str,
    socket: UnixStream,
    last_moment: TimerFd,
    known: Known,
}

impl Keeper<'_> {
    fn run(mut self) {
        loop {
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.last_moment.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    self.kill_all();
                    return;
                }
            }
            let [said, is_late] = fds.map(|fd| fd.any().unwrap_or(false));
            if said {
                match self.hear() {
                    Some(Order::KillAt(at)) => init::set(&self.last_moment, at),
                    Some(Order::Kill) | None => {
                        self.kill_all();
                        return;
                    }
                    Some(other) => self.learn(other),
                }
            } else if is_late {
                let gone_at = self.kill_all();
                self.say(&Word::KilledInYourPlace { gone_at });
                return;
            }
        }
    }

    /// What the agent said; `None` when it is gone.
    fn hear(&mut self) -> Option<Order> {
        let mut order = [0; Order::BYTES];
        self.socket.read_exact(&mut order).ok()?;
        Order::from_bytes(order)
    }

    fn learn(&mut self, order: Order) {
        self.known = match order {
            Order::ContainerIsAwaited => Known::Awaited,
            // One that cannot be found has ended.
            Order::ContainerRuns(pid) => {
                Inside::open(pid, self.container).map_or(Known::NotThere, Known::Runs)
            }
            Order::ContainerIsNotThere => Known::NotThere,
            Order::Terminate | Order::Kill | Order::KillAt(_) => return,
        };
    }

    /// Where it runs may be told only now.
    fn hear_what_is_said_by_now(&mut self) {
        loop {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if !poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
                return;
            }
            match self.hear() {
                Some(order) => self.learn(order),
                None => return,
            }
        }
    }

    /// Kill all until all are gone. Says when the last one was.
    fn kill_all(&mut self) -> Monotonic {
        let began = Instant::now();
        let mut gone_at = clock::monotonic();
        loop {
            self.hear_what_is_said_by_now();
            let mut strays = remains::strays(self.session);
            // We are marked as the session's, too.
            strays.retain(|pid| *pid != getpid());
            for pid in &strays {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            let runs = match &self.known {
                Known::Runs(inside) => {
                    inside.kill();
                    !inside.is_gone()
                }
                Known::NotThere | Known::Awaited => false,
            };
            if runs || !strays.is_empty() {
                gone_at = clock::monotonic();
            } else if !matches!(self.known, Known::Awaited) || began.elapsed() >= LATECOMERS_FOR {
                return gone_at;
            }
            std::thread::sleep(KILL_AGAIN_AFTER);
        }
    }

    fn say(&mut self, word: &Word) {
        if let Ok(mut line) = serde_json::to_vec(word) {
            line.push(b'\n');
            let _ = self.socket.write_all(&line);
        }
    }
}
