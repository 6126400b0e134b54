//! Machines: named, versioned recipes for what a session runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gpu::GpuType;
use crate::id::{MachineId, MachineVersionId};
use crate::owner::{Owner, UserId};
use crate::time::Timestamp;

/// What is started: words, or a line for `/bin/sh`. `{port}` in either stands for
/// the port to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AppCommand {
    /// A program and its arguments.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

impl AppCommand {
    /// Nothing to run?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Argv(words) => words.first().is_none_or(|word| word.trim().is_empty()),
            Self::Shell(line) => line.trim().is_empty(),
        }
    }

    /// The words to execute, with `port` in the place of `{port}`.
    #[must_use]
    pub fn words(&self, port: u16) -> Vec<String> {
        let fill = |text: &String| text.replace("{port}", &port.to_string());
        match self {
            Self::Argv(words) => words.iter().map(fill).collect(),
            Self::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), fill(line)],
        }
    }
}

/// Who may use a session's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Who has the link.
    Link,
    /// Who has a key of the session's owner.
    Private,
}

/// The container that a session's app runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The image, as the engine names it.
    pub image: String,
    /// Whether nothing can be written but the session's files and `/tmp`.
    pub read_only: bool,
    /// The capabilities that it keeps, without `CAP_`; all others are dropped.
    pub capabilities: Vec<String>,
}

/// What a session runs, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The app.
    pub command: AppCommand,
    /// The port of an app that cannot be told one.
    pub port: Option<u16>,
    /// Where it starts; a private directory when there is none.
    pub workdir: Option<String>,
    /// Added to the app's clean environment.
    pub environment: BTreeMap<String, String>,
    /// The GPU type of a session that names none.
    pub gpu: GpuType,
    /// The timeout of a session that names none.
    pub timeout_minutes: u32,
    /// The app is ready when this path answers anything below 500.
    pub ready_path: String,
    /// Who may use the URL; the server's default when there is none.
    pub access: Option<Access>,
    /// The container that it runs in; plain processes when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
}

/// One version of a machine's recipe. Versions never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineVersion {
    /// The version's own id.
    pub id: MachineVersionId,
    /// Its number within the machine, from 1 on.
    pub version: u32,
    /// What it runs.
    pub recipe: Recipe,
    /// Who made it.
    pub user_id: UserId,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A machine and the version that its next session runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The machine.
    pub id: MachineId,
    /// Whose it is.
    pub owner: Owner,
    /// Who made it.
    pub user_id: UserId,
    /// What people call it.
    pub name: String,
    /// The version in use, always the newest.
    pub current: MachineVersion,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its name or version last changed.
    pub updated_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_filled_into_words_and_lines() {
        let argv = AppCommand::Argv(vec!["app".into(), "--port={port}".into()]);
        assert_eq!(argv.words(81), ["app", "--port=81"]);
        let line = AppCommand::Shell("app -p {port} -q {port}".into());
        assert_eq!(line.words(81), ["/bin/sh", "-c", "app -p 81 -q 81"]);
    }
}
