//! A container engine that speaks Docker's API: Docker Engine, or Podman.
//!
//! What is asked of it, and what its errors say as sentences. Nothing here keeps a
//! session's time or kills: that must not depend on whether an engine answers
//! ([`crate::agent`]).

mod about;
mod container;
mod image;
mod network;
mod output;
mod settings;

use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};

pub use about::{About, Make, Storage};
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
