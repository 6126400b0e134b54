//! What an engine is, and what it can do.

use std::path::PathBuf;

use super::Engine;

/// Whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// Docker Engine.
    Docker,
    /// Podman.
    Podman,
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Whose it is.
    pub make: Make,
    /// Its version, such as 29.1.3.
    pub version: String,
    /// The newest version of Docker's API that it speaks, such as 1.52.
    pub api: String,
    /// Whether it can limit a container's memory.
    pub limits_memory: bool,
    /// … its processes.
    pub limits_processes: bool,
    /// … the cores that it has.
    pub limits_cores: bool,
    /// How many cores there are, where that is said. Docker makes no container that may
    /// have more.
    pub cores: Option<u64>,
    /// What keeps its containers' files.
    pub storage: Storage,
    /// Whether it has a runtime of NVIDIA's.
    pub has_nvidia_runtime: bool,
    /// Where it looks for what CDI can pass; nowhere when it passes nothing by CDI, or does
    /// not say.
    pub cdi_dirs: Vec<PathBuf>,
}

/// What keeps containers' files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// As the engine calls it, such as overlay2.
    pub driver: String,
    /// What it is upon, where that is said.
    pub filesystem: Option<String>,
    /// Where that is.
    pub dir: PathBuf,
}

impl Engine {
    /// What it says of itself.
    ///
    /// # Errors
    /// A sentence, when it does not say.
    pub async fn about(&self) -> Result<About, String> {
        let version = self.docker.version().await;
        let version = version.map_err(|why| self.sentence(&why))?;
        let info = self.docker.info().await;
        let info = info.map_err(|why| self.sentence(&why))?;
        let mut components = version.components.iter().flatten();
        let is_podman = components.any(|component| component.name.contains("Podman"));
        let status = info.driver_status.unwrap_or_default();
        let filesystem = status.into_iter().find_map(|line| {
            let [name, value] = <[String; 2]>::try_from(line).ok()?;
            (name == "Backing Filesystem").then_some(value)
        });
        let can = |said: Option<bool>| said == Some(true);
        Ok(About {
            make: if is_podman {
                Make::Podman
            } else {
                Make::Docker
            },
            version: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            limits_memory: can(info.memory_limit),
            limits_processes: can(info.pids_limit),
            limits_cores: can(info.cpu_cfs_quota),
            cores: info.ncpu.and_then(|cores| u64::try_from(cores).ok()),
            storage: Storage {
                driver: info.driver.unwrap_or_default(),
                filesystem,
                dir: info.docker_root_dir.unwrap_or_default().into(),
            },
            has_nvidia_runtime: info.runtimes.is_some_and(|all| all.contains_key("nvidia")),
            cdi_dirs: info
                .cdi_spec_dirs
                .unwrap_or_default()
                .into_iter()
                .map(PathBuf::from)
                .collect(),
        })
    }
}
