//! What the app sees: a clean environment and a directory of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::agent::job::{ASSIGNMENT, PARENT};
use crate::agent::spec::AgentSpec;

/// What an app needs of its host's environment to find programs, itself and its
/// language. Nothing else of the server's gets through; a job's environment is its own.
pub const PASSED: [&str; 9] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
];

/// What an agent in a job is told by, and nobody else is to know.
const OURS: [&str; 2] = [ASSIGNMENT, PARENT];

/// The app's environment.
#[must_use]
pub fn environment(spec: &AgentSpec, port: u16) -> BTreeMap<String, String> {
    let passes = |name: &str| {
        if spec.is_in_job {
            !OURS.contains(&name)
        } else {
            PASSED.contains(&name)
        }
    };
    let mut environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| passes(name))
        .collect();
    environment.extend(spec.recipe.environment.clone());
    environment.extend(of_session(spec, port));
    environment
}

/// What every app is told of its session, in a container or not.
pub fn of_session(spec: &AgentSpec, port: u16) -> impl Iterator<Item = (String, String)> {
    let visible_devices = spec.visible_device.as_ref();
    [
        Some(("PORT".to_owned(), port.to_string())),
        visible_devices.map(|device| ("CUDA_VISIBLE_DEVICES".to_owned(), device.clone())),
        Some(("DWELL_SESSION_ID".to_owned(), spec.session.to_string())),
    ]
    .into_iter()
    .flatten()
}

/// Where the program of that name is, as a shell would find it from `directory`.
///
/// # Errors
/// A sentence, when there is none that can be executed.
pub fn find_program(
    name: &str,
    environment: &BTreeMap<String, String>,
    directory: &Path,
) -> Result<PathBuf, String> {
    let is_program = |path: &Path| {
        path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
    };
    if name.contains('/') {
        let path = directory.join(name);
        return if is_program(&path) {
            Ok(path)
        } else {
            Err(format!(
                "The program {name} is not there or cannot be executed"
            ))
        };
    }
    let search = environment
        .get("PATH")
        .map_or("/usr/bin:/bin", String::as_str);
    std::env::split_paths(search)
        .map(|place| place.join(name))
        .find(|path| is_program(path))
        .ok_or_else(|| format!("The program {name} was not found on PATH ({search})"))
}
