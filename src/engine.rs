//! A container engine that speaks Docker's API: Docker Engine, or Podman.
//!
//! What is asked of it, and what its errors say as sentences. Nothing here keeps a
//! session's time or kills: that must not depend on whether an engine answers
//! ([`crate::agent`]).

mod container;
mod image;
mod network;
mod output;
mod settings;

use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};

pub use container::{Left, Parts};
pub use network::Network;
pub use settings::{EngineSettings, GpuPassing, Subnets};

/// How long the engine may take for anything but pulling, in seconds. Starting a
/// container on a busy host takes some.
const ANSWER_WITHIN_SECONDS: u64 = 60;
/// How long it may take to say what it is: a busy Podman takes seconds.
const GREET_WITHIN: Duration = Duration::from_secs(30);

/// An engine, connected.
pub struct Engine {
    docker: Docker,
    host: String,
}

impl Engine {
    /// The engine at `host`, `unix:///…`.
    ///
    /// # Errors
    /// A sentence, when none answers there.
    pub async fn connect(host: &str) -> Result<Self, String> {
        let silent = |why: &dyn std::fmt::Display| {
            format!("The container engine at {host} does not answer ({why}); see whether it runs")
        };
        let docker = Docker::connect_with_unix(host, ANSWER_WITHIN_SECONDS, API_DEFAULT_VERSION)
            .map_err(|why| silent(&why))?;
        match tokio::time::timeout(GREET_WITHIN, docker.negotiate_version()).await {
            Ok(Ok(docker)) => Ok(Self {
                docker,
                host: host.to_owned(),
            }),
            Ok(Err(why)) => Err(silent(&why)),
            Err(late) => Err(silent(&late)),
        }
    }

    /// What it is and what it can do, for people.
    ///
    /// # Errors
    /// A sentence, when it does not say.
    pub async fn abilities(&self) -> Result<String, String> {
        let version = self.version().await?;
        let info = self.docker.info().await;
        let info = info.map_err(|why| self.sentence(&why))?;
        let limits = [
            ("memory", info.memory_limit),
            ("processes", info.pids_limit),
            ("cores", info.cpu_cfs_quota),
        ];
        let limits = limits.into_iter().filter(|(_, can)| *can == Some(true));
        let limits: Vec<_> = limits.map(|(what, _)| what).collect();
        let has_nvidia = info.runtimes.is_some_and(|all| all.contains_key("nvidia"));
        let has_cdi = info.cdi_spec_dirs.is_some_and(|dirs| !dirs.is_empty());
        let gpus = match (has_cdi, has_nvidia) {
            (true, true) => "GPUs by CDI or device requests",
            (true, false) => "GPUs by CDI",
            (false, true) => "GPUs by device requests",
            (false, false) => "no GPUs",
        };
        let limits = if limits.is_empty() {
            "no limits".to_owned()
        } else {
            format!("limits on {}", limits.join(", "))
        };
        Ok(format!("{version} at {}; {limits}; {gpus}", self.host))
    }

    /// `Docker Engine 29.1 (API 1.52)`.
    async fn version(&self) -> Result<String, String> {
        let said = self.docker.version().await;
        let said = said.map_err(|why| self.sentence(&why))?;
        let component = |name: &str| {
            let mut components = said.components.iter().flatten();
            components.any(|component| component.name.contains(name))
        };
        let name = if component("Podman") {
            "Podman"
        } else {
            "Docker Engine"
        };
        let version = said.version.unwrap_or_default();
        let api = said.api_version.unwrap_or_default();
        Ok(format!("{name} {version} (API {api})"))
    }

    /// What an error of the engine's says to people.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all others are of the connection, which is all that people want to know"
    )]
    fn sentence(&self, error: &Error) -> String {
        match error {
            Error::DockerResponseServerError { message, .. }
            | Error::DockerStreamError { error: message } => {
                let message = message.trim();
                if message.contains("no space left on device") {
                    return format!(
                        "The disk of the container engine is full; remove images there that \
                         nobody needs ({message})"
                    );
                }
                message.to_owned()
            }
            Error::RequestTimeoutError => format!(
                "the container engine at {} did not answer within {ANSWER_WITHIN_SECONDS} s",
                self.host
            ),
            other => format!("the container engine at {} is gone ({other})", self.host),
        }
    }
}

/// Whether the engine says that there is no such thing.
fn is_missing(error: &Error) -> bool {
    matches!(
        error,
        Error::DockerResponseServerError {
            status_code: 404,
            ..
        }
    )
}
