//! The command line as people and scripts meet it: the real binary, against a small
//! API of our own where it needs one.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that cannot go on fails the test that called it"
)]

mod fake;
mod flow;
mod words;

use std::process::{Command, Output, Stdio};

/// A home of its own for each test, and the binary in it.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// `dwell` with `words`, in an environment that says nothing else.
    fn dwell(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwell"));
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn said(command: &mut Command) -> Said {
    command.output().unwrap().into()
}
