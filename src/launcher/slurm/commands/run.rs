//! Running Slurm's commands, each with a limit on its time, and what their refusals mean.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::super::interface::SlurmError;
use crate::agent::environment;

/// How long a command may take. A controller that is busy makes its clients wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// By these Slurm's commands find the cluster. Its other variables are options that somebody
/// set for commands of their own (`SBATCH_PARTITION`, `SQUEUE_FORMAT`).
const FIND_THE_CLUSTER: [&str; 3] = ["SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS"];

/// Runs them.
#[derive(Clone, Debug)]
pub(super) struct Runner {
    answer_within: Duration,
    more: &'static [(&'static str, &'static str)],
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            answer_within: ANSWER_WITHIN,
            more: &[],
        }
    }
}

impl Runner {
    /// The same, with these in their environment.
    pub(super) const fn with(self, more: &'static [(&'static str, &'static str)]) -> Self {
        Self { more, ..self }
    }

    /// What `program` prints.
    pub(super) async fn run(&self, program: &str, words: &[String]) -> Result<String, SlurmError> {
        self.run_with(program, words, "").await
    }

    /// The same, `input` being what it reads.
    pub(super) async fn run_with(
        &self,
        program: &str,
        words: &[String],
        input: &str,
    ) -> Result<String, SlurmError> {
        let mut command = Command::new(program);
        command
            .args(words)
            .env_clear()
            .envs(own_environment())
            .envs(self.more.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|error| cannot_run(program, &error))?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (mut printed, mut said) = (Vec::new(), Vec::new());
        let talk = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // One that does not read it says why by itself.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let read = async {
                match stdout {
                    Some(mut stdout) => stdout.read_to_end(&mut printed).await.map(drop),
                    None => Ok(()),
                }
            };
            let hear = async {
                match stderr {
                    Some(mut stderr) => stderr.read_to_end(&mut said).await.map(drop),
                    None => Ok(()),
                }
            };
            let ((), read, heard) = tokio::join!(write, read, hear);
            read.and(heard)?;
            child.wait().await
        };
        let ended = timeout(self.answer_within, talk).await;
        let words = without_prefixes(&String::from_utf8_lossy(&said));
        match ended {
            Ok(Ok(status)) if status.success() => {
                Ok(String::from_utf8_lossy(&printed).into_owned())
            }
            Ok(Ok(status)) => Err(failure(program, status, words)),
            Ok(Err(error)) => Err(SlurmError::Unclear(format!("{program}: {error}"))),
            Err(_) => Err(SlurmError::Unclear(format!(
                "{program} did not end within {:?}: {words}",
                self.answer_within
            ))),
        }
    }
}

/// What every program needs, and what finds the cluster.
fn own_environment() -> impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)> {
    let is_kept = |name: &std::ffi::OsString| {
        name.to_str().is_some_and(|name| {
            environment::PASSED.contains(&name) || FIND_THE_CLUSTER.contains(&name)
        })
    };
    std::env::vars_os().filter(move |(name, _)| is_kept(name))
}

/// Nothing was asked for; it may be when this host has room for the program again.
fn cannot_run(program: &str, error: &io::Error) -> SlurmError {
    let is_not_there = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
    if is_not_there.contains(&error.kind()) {
        return SlurmError::Refused(format!(
            "{program} cannot be run ({error}); Slurm's commands must be on the server's PATH"
        ));
    }
    SlurmError::Unclear(format!("{program} cannot be run: {error}"))
}

fn failure(program: &str, status: ExitStatus, words: String) -> SlurmError {
    if words.is_empty() {
        SlurmError::Unclear(format!("{program} ended with {status}"))
    } else if status.code().is_none() {
        SlurmError::Unclear(words)
    } else {
        SlurmError::saying(words)
    }
}

/// What a command wrote, without what it puts before each line: `sbatch: error: `.
fn without_prefixes(stderr: &str) -> String {
    let lines = stderr.lines().map(|line| {
        let bare = line.trim();
        let bare = bare.split_once("error: ").map_or(bare, |(_, rest)| rest);
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
            without_prefixes(stderr),
            "invalid partition specified: nope; Invalid partition name specified"
        );
    }

    /// Each as Slurm said it.
    #[tokio::test]
    async fn a_refusal_is_one_thing_and_a_controller_that_does_not_answer_another() {
        let runner = Runner::default();
        for refusal in [
            "sbatch: error: Batch job submission failed: Invalid account",
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "sbatch: error: Memory specification can not be satisfied",
            "sbatch: error: Batch job submission failed: User's group not permitted to use this partition",
            "sbatch: unrecognized option '--bogus'",
            "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)",
        ] {
            let answer = runner.run("sh", &says(refusal)).await;
            assert!(matches!(answer, Err(SlurmError::Refused(_))), "{answer:?}");
        }
        for silence in [
            "squeue: error: Unable to contact slurm controller (connect failure)",
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            "Unexpected message received for job 1",
            "Job can not be altered now, try again later for job 1",
            "sbatch: error: Munge encode failed: Failed to access \"/run/munge\": No such file",
            "sbatch: error: Slurm job queue full, sleeping and retrying",
        ] {
            let answer = runner.run("sh", &says(silence)).await;
            assert!(matches!(answer, Err(SlurmError::Unclear(_))), "{answer:?}");
        }
        let silent = runner.run("sh", &shell("exit 7")).await;
        assert!(matches!(silent, Err(SlurmError::Unclear(_))), "{silent:?}");
        let killed = runner.run("sh", &shell("echo no >&2; kill -9 $$")).await;
        assert_eq!(killed, Err(SlurmError::Unclear("no".into())));
        let missing = runner.run("no-such-program", &[]).await.unwrap_err();
        assert!(missing.to_string().contains("PATH"), "{missing}");
        assert_eq!(runner.run_with("cat", &[], "in").await, Ok("in".into()));
    }

    /// `sbatch` retries for minutes where Slurm has no room for a job.
    #[tokio::test]
    async fn a_command_that_does_not_end_is_given_up_and_its_words_are_kept() {
        let runner = Runner {
            answer_within: Duration::from_millis(200),
            ..Runner::default()
        };
        let words = "Slurm temporarily unable to accept job, sleeping and retrying";
        let script = format!("echo 'sbatch: error: {words}' >&2; exec sleep 60");
        let Err(SlurmError::Unclear(said)) = runner.run("sh", &shell(&script)).await else {
            panic!("it is not unclear")
        };
        assert!(said.ends_with(words), "{said}");
    }

    #[tokio::test]
    async fn commands_see_neither_options_nor_secrets_of_whoever_started_the_server() {
        let runner = Runner::default().with(&[("SLURM_TIME_FORMAT", "%s")]);
        let seen = runner.run("env", &[]).await.unwrap();
        let names: Vec<_> = seen
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        assert!(names.contains(&("SLURM_TIME_FORMAT", "%s")), "{seen}");
        for (name, _) in names {
            let is_known = environment::PASSED.contains(&name)
                || FIND_THE_CLUSTER.contains(&name)
                || name == "SLURM_TIME_FORMAT";
            assert!(is_known, "{name}");
        }
    }

    fn shell(script: &str) -> [String; 2] {
        ["-c".to_owned(), script.to_owned()]
    }

    fn says(words: &str) -> [String; 2] {
        shell(&format!("cat >&2 <<'END'\n{words}\nEND\nexit 1"))
    }
}
