//! Slurm's commands, each with a limit on its time, and what their refusals mean.

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long a command may take. A controller that is busy makes its clients wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What Slurm says when it has not heard, or not answered: it may have done what it was
/// asked for.
const UNCLEAR: [&str; 8] = [
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Communication connection failure",
    "Connection refused",
    "Slurm backup controller in standby mode",
    "temporarily unable to accept job",
    "Resource temporarily unavailable",
];

/// Why a command did not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandError {
    /// Slurm says no, in these words.
    #[error("{0}")]
    Refused(String),
    /// It is not known what Slurm did.
    #[error("{0}")]
    Unclear(String),
}

/// Runs Slurm's commands.
#[derive(Clone, Debug, Default)]
pub(super) struct Commands;

impl Commands {
    /// What `program` prints.
    pub(super) async fn run(
        &self,
        program: &str,
        words: &[String],
    ) -> Result<String, CommandError> {
        self.run_with(program, words, "").await
    }

    /// The same, `input` being what it reads.
    pub(super) async fn run_with(
        &self,
        program: &str,
        words: &[String],
        input: &str,
    ) -> Result<String, CommandError> {
        let mut command = Command::new(program);
        command
            .args(words)
            // Moments are seconds since 1970, whatever the host's zone; words are English.
            .env("SLURM_TIME_FORMAT", "%s")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            CommandError::Refused(format!(
                "{program} cannot be run ({error}); Slurm's commands must be on the server's PATH"
            ))
        })?;
        let mut stdin = child.stdin.take();
        let talk = async {
            if let Some(mut stdin) = stdin.take() {
                // One that does not read it says why by itself.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = timeout(ANSWER_WITHIN, talk).await.map_err(|_| {
            CommandError::Unclear(format!("{program} did not end within {ANSWER_WITHIN:?}"))
        })?;
        let output =
            output.map_err(|error| CommandError::Unclear(format!("{program}: {error}")))?;
        outcome(program, &output)
    }
}

fn outcome(program: &str, output: &Output) -> Result<String, CommandError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = said(&String::from_utf8_lossy(&output.stderr));
    if words.is_empty() {
        let sentence = format!("{program} ended with {}", output.status);
        return Err(CommandError::Unclear(sentence));
    }
    if UNCLEAR.iter().any(|it| words.contains(it)) {
        return Err(CommandError::Unclear(words));
    }
    Err(CommandError::Refused(words))
}

/// What a command wrote, without what it puts before each line: `sbatch: error: `.
fn said(stderr: &str) -> String {
    let lines = stderr.lines().map(|line| {
        let bare = line.trim();
        let bare = bare.split_once(": error: ").map_or(bare, |(_, rest)| rest);
        bare.trim_start_matches("Batch job submission failed: ")
    });
    lines
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slurms_own_words_are_kept_and_its_prefixes_are_not() {
        let stderr = "sbatch: error: invalid partition specified: nope\n\
                      sbatch: error: Batch job submission failed: Invalid partition name specified\n";
        assert_eq!(
            said(stderr),
            "invalid partition specified: nope; Invalid partition name specified"
        );
    }

    #[tokio::test]
    async fn a_refusal_is_one_thing_and_a_controller_that_does_not_answer_another() {
        let shell = |script: &str| ["-c".to_owned(), script.to_owned()];
        let commands = Commands;
        let refused = shell("echo 'sbatch: error: Invalid account' >&2; exit 1");
        assert_eq!(
            commands.run("sh", &refused).await,
            Err(CommandError::Refused("Invalid account".into()))
        );
        let down = shell(
            "echo 'squeue: error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
        );
        assert_eq!(
            commands.run("sh", &down).await,
            Err(CommandError::Unclear(
                "Unable to contact slurm controller (connect failure)".into()
            ))
        );
        assert_eq!(commands.run_with("cat", &[], "in").await, Ok("in".into()));
        let silent = commands.run("sh", &shell("exit 7")).await;
        assert!(
            matches!(silent, Err(CommandError::Unclear(_))),
            "{silent:?}"
        );
        let missing = commands.run("no-such-program", &[]).await.unwrap_err();
        assert!(missing.to_string().contains("PATH"), "{missing}");
    }
}
