//! The agent's memory past its own death.
//!
//! `journal.jsonl` has one line for each thing that cannot be taken back.
//! `agent.lock` is held while the agent lives. It says when it last did (the proof of
//! life that a session killed with its agent is billed by), and which process it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use dwell_core::protocol::{AgentPhase, AgentStatus};
use dwell_core::session::Ending;
use dwell_core::time::{Millis, Monotonic};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::data_dir::SessionDir;

/// A line of the journal. All times are of the host's clock since boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Entry {
    /// The GPU is held from now on and the app is about to be started.
    Began {
        /// When.
        at: Monotonic,
    },
    /// The app answered.
    Answered {
        /// When.
        at: Monotonic,
    },
    /// The last process is gone.
    Ended {
        /// What is to be reported.
        status: AgentStatus,
    },
}

/// What an earlier agent of the same session left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Past {
    /// There was none, or it started nothing.
    None,
    /// It ended its session, or died and its app with it: this is to be reported.
    Over(AgentStatus),
}

/// Digits of the proof of life, the first thing in the lock's file. After them and a space
/// comes the process id, and after another which boot of which host that is of.
const PROOF_BYTES: usize = 20;

/// Held while an agent lives.
pub struct Lock(Flock<File>);

/// Who has the lock of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No agent lives.
    Nobody,
    /// An agent, of this process id if it could put it down and is on this host.
    Agent(Option<Pid>),
}

impl Holder {
    /// Who has the lock of the session in `dir`.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub fn of(dir: &SessionDir) -> io::Result<Self> {
        let lock = match File::open(dir.agent_lock()) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Nobody),
            Err(error) => return Err(error),
        };
        // Shared, and given back at once: an agent that starts meanwhile asks again.
        match Flock::lock(lock, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(Self::Nobody),
            Err((lock, nix::errno::Errno::EWOULDBLOCK)) => {
                let text = io::read_to_string(lock).unwrap_or_default();
                let mut words = text.get(PROOF_BYTES..).unwrap_or("").split_whitespace();
                let pid = words.next().and_then(|pid| pid.parse().ok());
                // Several hosts may share the directory. Agents of old say nothing of it.
                let is_here = words.next().is_none_or(|boot| boot == this_boot());
                Ok(Self::Agent(pid.filter(|_| is_here).map(Pid::from_raw)))
            }
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Send this to the agent, if there is one and it is known which process it is.
    pub fn signal(self, signal: Signal) {
        if let Self::Agent(Some(pid)) = self {
            // It may be gone by now.
            let _ = kill(pid, signal);
        }
    }
}

/// What no other host has, nor this one after its next start.
fn this_boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

impl Lock {
    /// The lock, unless another agent lives.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn take(dir: &SessionDir) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.agent_lock())?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                // For want of space it goes unsaid; the lock is what counts.
                let pid = format!(" {:<10} {}\n", std::process::id(), this_boot());
                let _ = lock.write_all_at(pid.as_bytes(), PROOF_BYTES as u64);
                Ok(Some(Self(lock)))
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// The agent lives now.
    ///
    /// # Errors
    /// When the file cannot be written. The session is none the worse for it.
    pub fn prove_life(&self, now: Monotonic) -> io::Result<()> {
        self.0.write_all_at(format!("{:020}", now.0).as_bytes(), 0)
    }

    /// The end is in the journal: no proof of life is needed any more.
    pub fn retire(&self, dir: &SessionDir) {
        // If it stays, it is found to be nobody's.
        let _ = std::fs::remove_file(dir.agent_lock());
    }

    fn last_proof(&self) -> Option<Monotonic> {
        let mut digits = [0; PROOF_BYTES];
        self.0.read_exact_at(&mut digits, 0).ok()?;
        std::str::from_utf8(&digits)
            .ok()?
            .parse()
            .ok()
            .map(Monotonic)
    }
}

/// The journal, open for writing.
pub struct Journal {
    file: File,
    /// A line was begun and could not be finished.
    is_torn: bool,
}

impl Journal {
    /// The journal of `dir`, and what its earlier agent left.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(dir: &SessionDir, lock: &Lock) -> io::Result<(Self, Past)> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(dir.journal())?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        file.write_all(before_next(&text))?;
        let past = past(&entries(&text), lock.last_proof());
        let journal = Self {
            file,
            is_torn: false,
        };
        Ok((journal, past))
    }

    /// Put this down.
    ///
    /// # Errors
    /// When it cannot be written. The session goes on all the same.
    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = entry.line()?;
        if self.is_torn {
            line.insert(0, b'\n');
        }
        let written = self.file.write_all(&line);
        self.is_torn = written.is_err();
        written
    }
}

impl Entry {
    /// The entry as it is written.
    ///
    /// # Errors
    /// When it cannot be said in JSON.
    pub fn line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// What the text of a journal says. A line that a crash cut short says nothing.
#[must_use]
pub fn entries(text: &[u8]) -> Vec<Entry> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}

/// What goes between the text of a journal and the next entry, so that this one has a
/// line of its own.
#[must_use]
pub fn before_next(text: &[u8]) -> &'static [u8] {
    if text.is_empty() || text.ends_with(b"\n") {
        b""
    } else {
        b"\n"
    }
}

/// What an agent that left these entries has to be reported as, `last_proof` being when
/// it last did prove to live.
#[must_use]
pub fn past(entries: &[Entry], last_proof: Option<Monotonic>) -> Past {
    let mut began = None;
    let mut answered = None;
    for entry in entries {
        match entry {
            Entry::Ended { status } => return Past::Over(status.clone()),
            Entry::Began { at } => began = Some(*at),
            Entry::Answered { at } => answered = Some(*at),
        }
    }
    let Some(began) = began else {
        return Past::None;
    };
    let last_proof = last_proof.unwrap_or(began).max(answered.unwrap_or(began));
    Past::Over(AgentStatus {
        held_ms: last_proof.since(began),
        granted_ms: Millis::ZERO,
        phase: AgentPhase::Ended {
            ending: Ending::failed("Its agent was killed, and the app with it".to_owned()),
            running_ms: answered.map(|answered| last_proof.since(answered)),
        },
    })
}

/// What is to be reported where an earlier agent is known to have been, and its
/// journal is not.
pub fn nothing_is_left() -> AgentStatus {
    AgentStatus {
        held_ms: Millis::ZERO,
        granted_ms: Millis::ZERO,
        phase: AgentPhase::Ended {
            ending: Ending::failed("What its host kept of it was lost".to_owned()),
            running_ms: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session_dir() -> (tempfile::TempDir, SessionDir) {
        let dir = tempfile::tempdir().unwrap();
        let session = SessionDir(dir.path().to_owned());
        (dir, session)
    }

    #[test]
    fn a_second_agent_does_not_get_the_lock() {
        let (_dir, session) = session_dir();
        let lock = Lock::take(&session).unwrap();
        assert!(lock.is_some());
        assert!(Lock::take(&session).unwrap().is_none());
        let us = i32::try_from(std::process::id()).unwrap();
        let holder = Holder::Agent(Some(Pid::from_raw(us)));
        assert_eq!(Holder::of(&session).unwrap(), holder);
        // A process of another host is not ours to signal.
        let elsewhere = format!("{:020} {us:<10} another\n", 0);
        std::fs::write(session.agent_lock(), elsewhere).unwrap();
        assert_eq!(Holder::of(&session).unwrap(), Holder::Agent(None));
        drop(lock);
        assert_eq!(Holder::of(&session).unwrap(), Holder::Nobody);
        assert!(Lock::take(&session).unwrap().is_some());
    }

    #[test]
    fn an_agent_that_was_killed_is_billed_to_its_last_proof_of_life() {
        let (_dir, session) = session_dir();
        let lock = Lock::take(&session).unwrap().unwrap();
        let (mut journal, past) = Journal::open(&session, &lock).unwrap();
        assert_eq!(past, Past::None);
        journal
            .write(&Entry::Began {
                at: Monotonic(1_000),
            })
            .unwrap();
        journal
            .write(&Entry::Answered {
                at: Monotonic(1_500),
            })
            .unwrap();
        lock.prove_life(Monotonic(9_000)).unwrap();

        let (_, past) = Journal::open(&session, &lock).unwrap();
        let Past::Over(status) = past else { panic!() };
        assert_eq!(status.held_ms, Millis(8_000));
        let AgentPhase::Ended { running_ms, .. } = status.phase else {
            panic!()
        };
        assert_eq!(running_ms, Some(Millis(7_500)));
    }

    #[test]
    fn a_torn_tail_costs_nothing_but_itself() {
        let (_dir, session) = session_dir();
        let lock = Lock::take(&session).unwrap().unwrap();
        std::fs::write(
            session.journal(),
            b"{\"event\":\"began\",\"at\":5}\n{\"event\":\"answ",
        )
        .unwrap();
        let (mut journal, past) = Journal::open(&session, &lock).unwrap();
        assert!(matches!(past, Past::Over(_)));
        let status = AgentStatus {
            held_ms: Millis(7),
            granted_ms: Millis(8),
            phase: AgentPhase::Ended {
                ending: Ending::failed("x".into()),
                running_ms: None,
            },
        };
        journal
            .write(&Entry::Ended {
                status: status.clone(),
            })
            .unwrap();
        assert_eq!(
            Journal::open(&session, &lock).unwrap().1,
            Past::Over(status)
        );
    }

    #[test]
    fn an_entry_that_lost_only_its_line_end_and_the_next_one_are_both_read() {
        let (_dir, session) = session_dir();
        let lock = Lock::take(&session).unwrap().unwrap();
        std::fs::write(session.journal(), b"{\"event\":\"began\",\"at\":5}").unwrap();
        let (mut journal, _) = Journal::open(&session, &lock).unwrap();
        let answered = Entry::Answered { at: Monotonic(6) };
        journal.write(&answered).unwrap();
        let text = std::fs::read(session.journal()).unwrap();
        let began = Entry::Began { at: Monotonic(5) };
        assert_eq!(entries(&text), [began, answered]);
    }
}
