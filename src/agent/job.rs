//! An agent in a job of a cluster's engine: what it is to do stands in its environment, and
//! nothing of it is on the node before or after.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::spec::{AgentSpec, ServerAt};
use crate::data_dir::SessionDir;

/// The environment variable that an agent in a job is told by.
pub const ASSIGNMENT: &str = "DWELL_AGENT";

/// The directory in which the job may keep the session's, if not the system's for what is
/// temporary.
pub const PARENT: &str = "DWELL_AGENT_DIR";

/// What an agent in a job is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// As for agents beside their server.
    pub spec: AgentSpec,
    /// Whom to trust at the server's address, in PEM.
    pub server_certificate: Option<String>,
}

/// Make the session's directory of what stands in the environment.
pub(super) fn unpack() -> io::Result<SessionDir> {
    let unfit = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let text = std::env::var(ASSIGNMENT).map_err(|_| {
        unfit(format!(
            "{ASSIGNMENT} is not set; launchers set it in the jobs that they submit"
        ))
    })?;
    let assignment: Assignment =
        serde_json::from_str(&text).map_err(|error| unfit(format!("{ASSIGNMENT}: {error}")))?;
    let parent = std::env::var_os(PARENT).map_or_else(std::env::temp_dir, PathBuf::from);
    let Assignment {
        mut spec,
        server_certificate,
    } = assignment;
    let dir = SessionDir(parent.join(format!("dwell-{}", spec.session)));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.path())?;
    if let (Some(pem), ServerAt::Elsewhere { certificate, .. }) =
        (server_certificate, &mut spec.server)
    {
        let path = dir.path().join("server.pem");
        write(&path, pem.as_bytes())?;
        *certificate = Some(path);
    }
    write(&dir.agent_spec(), &serde_json::to_vec(&spec)?)?;
    Ok(dir)
}

fn write(path: &std::path::Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(bytes)
}
