//! Connections on which nothing is said for long: who is gone is noticed, and what
//! stands in between does not forget them.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

/// When a quiet connection's other end is asked whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes {
    /// First after this long without a word, in seconds.
    pub idle_seconds: u32,
    /// Then every so often, in seconds.
    pub interval_seconds: u32,
    /// So many times without an answer, and it is gone.
    pub count: u32,
}

/// What an agent and its server keep open: what stands in between may forget a quiet
/// connection after half a minute, and may itself be gone for about as long.
pub const CHANNEL: Probes = Probes {
    idle_seconds: 10,
    interval_seconds: 5,
    count: 4,
};

/// How long a visitor may read nothing, who has paused a download. The kernel does not tell
/// that from one who is gone; the gateway does, and waits as long.
const READS_WITHIN: Duration = Duration::from_secs(600);

/// Have the kernel see to a connection so.
///
/// # Errors
/// When it is none.
pub fn keep_alive(socket: &impl AsFd, probes: Probes) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &probes.idle_seconds)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &probes.interval_seconds)?;
    setsockopt(socket, sockopt::TcpKeepCount, &probes.count)?;
    Ok(())
}

/// The same, and what was said and is not confirmed in as long a time counts as no answer.
///
/// # Errors
/// When it is none.
pub fn expect_answers(socket: &impl AsFd, probes: Probes) -> io::Result<()> {
    keep_alive(socket, probes)?;
    let gone_after = probes.idle_seconds + probes.interval_seconds * probes.count;
    answers_within(socket, Duration::from_secs(gone_after.into()))
}

/// Of a connection that [`expect_answers`]: something passes through it to a visitor now, who
/// may be slow to read.
///
/// # Errors
/// When it is none.
pub fn wait_for_readers(socket: &impl AsFd) -> io::Result<()> {
    answers_within(socket, READS_WITHIN)
}

fn answers_within(socket: &impl AsFd, limit: Duration) -> io::Result<()> {
    let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpUserTimeout, &limit)?;
    Ok(())
}
