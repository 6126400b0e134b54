//! How a job comes by an agent: what the configuration names, what an earlier job left on
//! its node, or what the server hands out, which is known by its hash.

use super::cluster::Order;
use crate::agent::job::ASSIGNMENT;

/// The path of the agents that a server hands out; one's hash follows.
pub const PATH: &str = "/agent/v1/agents/";

/// What a job does when the configuration names no agent: the part that is the same for all.
const FIND_AGENT: &str = include_str!("find_agent.sh");

/// An agent that the server hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handout {
    /// Where, as the job's node reaches it.
    pub url: String,
    /// The SHA-256 of it, in lower-case hexadecimal.
    pub sha256: String,
}

impl Handout {
    /// The agent with this hash, of the server that nodes reach at `server_url`.
    #[must_use]
    pub fn of(server_url: &str, sha256: &str) -> Self {
        Self {
            url: format!("{server_url}{PATH}{sha256}"),
            sha256: sha256.to_owned(),
        }
    }
}

/// Why a job came to no agent: its exit status, what its script calls it, and a sentence.
const TROUBLES: [(i32, &str, &str); 5] = [
    (
        81,
        "NO_PROGRAM",
        "There is no program here to fetch the agent with, or to check it; install curl, wget or \
         python3, or put dwell-agent on the nodes and name it as agent of the [[launcher]]",
    ),
    (
        82,
        "NOT_FETCHED",
        "The agent could not be fetched from the server; see that nodes reach the server_url of \
         the [[launcher]], or put dwell-agent on the nodes and name it as agent there",
    ),
    (
        83,
        "WRONG_HASH",
        "What was fetched is not the agent that the server hands out; look at what stands between \
         the nodes and the server_url of the [[launcher]]",
    ),
    (
        84,
        "CANNOT_RUN",
        "The agent cannot be run here, perhaps because no program may where it lies, or because \
         it is for another kind of machine or system; put dwell-agent on the nodes and name it \
         as agent of the [[launcher]]",
    ),
    (
        85,
        "NO_DIRECTORY",
        "There is no directory here to keep the agent in; set TMPDIR or XDG_CACHE_HOME to one \
         that the job may write",
    ),
];

/// What it means that a job, whose script is [`script`]'s, ended with this exit status, if
/// it came to no agent.
#[must_use]
pub fn trouble(exit_status: i32) -> Option<&'static str> {
    let mut troubles = TROUBLES.iter();
    troubles
        .find(|(status, ..)| *status == exit_status)
        .map(|(.., sentence)| *sentence)
}

/// A script for any POSIX shell that finds the agent in a job and becomes it; with `fixed`
/// it is that file and no other, and with `within`, the words of a command which may name
/// the agent `$1`, it is run by that. It says on stderr what it does not find, and
/// [`trouble`] says what its exit status means then.
#[must_use]
pub fn script(order: &Order, fixed: Option<&str>, within: Option<&str>) -> String {
    use std::fmt::Write;
    let Handout { url, sha256 } = &order.agent;
    let mut script = String::from("#!/bin/sh\n");
    for (name, value) in [
        (ASSIGNMENT, order.assignment.as_str()),
        ("fixed", fixed.unwrap_or_default()),
        ("url", url),
        ("sha256", sha256),
    ] {
        // A String takes whatever is written.
        let _ = writeln!(script, "{name}={}", quoted(value));
    }
    let within = within.unwrap_or_default();
    let _ = writeln!(script, "run() {{\n  exec {within} \"$@\"\n}}");
    let mut sentences = String::new();
    for (status, name, sentence) in TROUBLES {
        let _ = writeln!(script, "{name}={status}");
        let _ = writeln!(sentences, "  {status}) say {} ;;", quoted(sentence));
    }
    let _ = writeln!(
        script,
        "fail() {{\n  case $1 in\n{sentences}  esac\n  exit \"$1\"\n}}"
    );
    script + FIND_AGENT
}

/// As one word for a shell, whatever is in it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
