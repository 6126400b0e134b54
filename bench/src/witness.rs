//! When sessions really were gone, whatever their server says: the kernel is asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use dwell::clock;
use dwell_core::time::Monotonic;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::Result;

/// Longer than any session here.
const PATIENCE: Timespec = Timespec {
    tv_sec: 180,
    tv_nsec: 0,
};
/// The event that says that another app calls.
const CALL: u64 = u64::MAX;

/// What was seen of one session.
pub struct Seen {
    pub session: String,
    /// When its app was first called, to answer at once.
    pub answered: Monotonic,
    /// When the last of its processes was gone.
    pub gone: Monotonic,
}

/// Watch what calls at `socket`, until that many sessions have called and are gone.
pub fn watch(socket: &Path, sessions: usize) -> Result<JoinHandle<Result<Vec<Seen>>>> {
    let witness = Witness {
        calls: UnixListener::bind(socket)?,
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        alive: HashMap::new(),
        seen: Vec::new(),
    };
    Ok(std::thread::spawn(move || witness.run(sessions)))
}

struct Witness {
    calls: UnixListener,
    epoll: OwnedFd,
    /// By event: what can be read from as soon as what it stands for is gone. Two for
    /// each of those seen.
    alive: HashMap<u64, OwnedFd>,
    seen: Vec<Seen>,
}

impl Witness {
    fn run(mut self, sessions: usize) -> Result<Vec<Seen>> {
        self.expect(CALL, &self.calls)?;
        let mut events = Vec::with_capacity(64);
        while self.seen.len() < sessions || !self.alive.is_empty() {
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&PATIENCE))?;
            let now = clock::monotonic();
            if events.is_empty() {
                let (seen, alive) = (self.seen.len(), self.alive.len().div_ceil(2));
                return Err(format!("{seen} of {sessions} sessions began, {alive} live on").into());
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    CALL => self.answer_call()?,
                    gone => {
                        // Closed, and so no longer waited for.
                        self.alive.remove(&gone);
                        if let Some(seen) = self.seen.get_mut(usize::try_from(gone / 2)?) {
                            seen.gone = now;
                        }
                    }
                }
            }
        }
        Ok(self.seen)
    }

    fn answer_call(&mut self) -> Result<()> {
        let (app, _) = self.calls.accept()?;
        let mut line = String::new();
        let mut app = BufReader::new(app);
        app.read_line(&mut line)?;
        let (session, answered) = line.trim().split_once(' ').ok_or("an app said nothing")?;
        let answered = Monotonic(answered.parse()?);
        let app = app.into_inner();
        let first_process = first_process(&app)?;
        let event = 2 * u64::try_from(self.seen.len())?;
        self.expect(event, &app)?;
        self.expect(event + 1, &first_process)?;
        self.alive.insert(event, app.into());
        self.alive.insert(event + 1, first_process);
        self.seen.push(Seen {
            session: session.to_owned(),
            answered,
            gone: answered,
        });
        Ok(())
    }

    fn expect(&self, event: u64, of: &impl std::os::fd::AsFd) -> Result<()> {
        let data = epoll::EventData::new_u64(event);
        Ok(epoll::add(&self.epoll, of, data, epoll::EventFlags::IN)?)
    }
}

/// The process that started the app: the first of the session and the last to go,
/// since it reaps all others.
fn first_process(app: &UnixStream) -> Result<OwnedFd> {
    let app = socket_peercred(app)?.pid;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", app.as_raw_nonzero()))?;
    // After the name, which may hold anything: the state, then the parent.
    let parent = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok())
        .and_then(Pid::from_raw)
        .ok_or("the app has no parent")?;
    Ok(pidfd_open(parent, PidfdFlags::empty())?)
}
