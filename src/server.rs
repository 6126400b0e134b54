//! server (STUB with the signatures that the command line uses; being written.)

use dwell_core::owner::Principal;

use crate::config::Config;
use crate::data_dir::DataDir;

/// Why a server could not start. One sentence, with the remedy.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// What happens to open sessions when a server shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// They go on by themselves.
    LeaveSessions,
    /// They are ended first.
    EndSessions,
}

/// A server that runs.
pub struct Server {
    url: String,
    admin_key: String,
}

impl Server {
    /// Open the data directory, recover, listen.
    ///
    /// # Errors
    /// One sentence.
    #[expect(clippy::unused_async, reason = "a stub")]
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Err(StartError(format!(
            "the server is not there yet; it would listen on {}",
            config.listen
        )))
    }

    /// Where it listens, as a program on this host reaches it: a bare origin.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The data directory's first key.
    #[must_use]
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// Stop listening, then `mode`, then leave the data directory.
    #[expect(clippy::unused_async, reason = "a stub")]
    pub async fn shutdown(self, mode: ShutdownMode) {
        let _ = mode;
    }
}

/// Make a key in the data directory that no server holds.
///
/// # Errors
/// One sentence.
pub async fn create_key_offline(
    data_dir: &DataDir,
    principal: Principal,
    name: &str,
) -> Result<String, StartError> {
    let _ = (data_dir, principal, name);
    Err(StartError("making keys offline is not there yet".into()))
}
