//! Containers: made, started, looked at, removed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, DeviceMapping, DeviceRequest, HostConfig,
    HostConfigLogConfig,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions,
};
use dwell_core::id::SessionId;
use dwell_core::lease::Exit;
use dwell_core::machine;

use super::settings::{EngineSettings, GpuPassing};
use super::{Engine, Network, is_missing};
use crate::agent::spec::AppLimits;

/// Whose session a container is.
const SESSION_LABEL: &str = "dwell.session";
/// Whose server's: the directory that its sessions are kept in.
const SESSIONS_LABEL: &str = "dwell.sessions";
/// Where the session's files are inside.
const FILES: &str = "/workspace";
/// How long the engine may take to notice that a container has ended.
const NOTICE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// The most that a status above 128 stands for.
const LAST_SIGNAL: i32 = 64;

/// What a container is made of.
pub struct Parts<'a> {
    /// The session.
    pub session: SessionId,
    /// The directory that it is kept in, with others.
    pub sessions: &'a Path,
    /// What the machine says.
    pub container: &'a machine::Container,
    /// The app's words.
    pub words: Vec<String>,
    /// What is added to the image's environment.
    pub environment: Vec<String>,
    /// Where it starts; with its files when there is none.
    pub workdir: Option<&'a str>,
    /// The session's files on this host.
    pub files: &'a Path,
    /// The GPU, as CUDA names it.
    pub visible_device: &'a str,
    /// Where it is.
    pub network: &'a Network,
    /// What it may use.
    pub limits: AppLimits,
}

/// A container that is there.
pub struct Left {
    /// The engine's id of it.
    pub id: String,
    /// Its session.
    pub session: SessionId,
}

/// What is told of a container that was started.
pub struct Started {
    /// The host's id of its first process.
    pub pid: i32,
    /// Where it is reached.
    pub address: IpAddr,
}

impl Engine {
    /// Make a container, and start nothing. With its id comes what it has to do without.
    ///
    /// # Errors
    /// A sentence, when it cannot be made.
    pub async fn create(
        &self,
        parts: &Parts<'_>,
        settings: &EngineSettings,
    ) -> Result<(String, Vec<String>), String> {
        let mut body = body(parts, settings);
        let name = container_name(parts.session);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let mut missing = Vec::new();
        let mut made = self
            .docker
            .create_container(Some(options.clone()), body.clone())
            .await;
        // Few storage drivers can limit what is written.
        if let (Err(error), Some(host)) = (&made, &mut body.host_config)
            && host.storage_opt.take().is_some()
        {
            missing.push(format!(
                "The limit on disk is not in force: {}",
                self.sentence(error)
            ));
            made = self.docker.create_container(Some(options), body).await;
        }
        match made {
            Ok(made) => Ok((made.id, missing)),
            Err(error) => Err(format!(
                "No container could be made: {}",
                self.sentence(&error)
            )),
        }
    }

    /// Start a container; `None` if it has ended by now.
    ///
    /// # Errors
    /// A sentence, when it does not start.
    pub async fn start(&self, id: &str, network: &Network) -> Result<Option<Started>, String> {
        let failed = |why: String| format!("The container could not be started: {why}");
        let options: Option<StartContainerOptions> = None;
        let started = self.docker.start_container(id, options).await;
        started.map_err(|error| failed(self.sentence(&error)))?;
        let container = self.inspect(id).await;
        let container = container.map_err(|error| failed(self.sentence(&error)))?;
        let state = container.state.unwrap_or_default();
        let pid = state.pid.and_then(|pid| i32::try_from(pid).ok());
        let networks = container.network_settings.and_then(|it| it.networks);
        let endpoint = networks.and_then(|mut all| all.remove(&network.name));
        let address = endpoint
            .and_then(|endpoint| endpoint.ip_address)
            .and_then(|address| address.parse().ok());
        match (pid, address) {
            (Some(pid), Some(address)) if pid > 0 => Ok(Some(Started { pid, address })),
            _ if state.running == Some(false) => Ok(None),
            _ => Err(failed("the engine does not say where it runs".to_owned())),
        }
    }

    /// How a container ended that has just done so.
    pub async fn exit(&self, id: &str) -> Exit {
        let began = Instant::now();
        while began.elapsed() < NOTICE_WITHIN {
            match self.inspect(id).await {
                Ok(container) => {
                    let state = container.state.unwrap_or_default();
                    // Podman says that it does not run before it knows how it ended.
                    let finished_at = state.finished_at.as_deref().unwrap_or("0001");
                    if state.running == Some(false) && !finished_at.starts_with("0001") {
                        return exit(&state);
                    }
                }
                Err(error) if is_missing(&error) => return Exit::Removed,
                // It may be about to come back.
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
        Exit::Unseen
    }

    /// Whether a container runs.
    ///
    /// # Errors
    /// When the engine does not say.
    pub(super) async fn is_running(&self, id: &str) -> Result<bool, Error> {
        match self.inspect(id).await {
            Ok(container) => Ok(container.state.and_then(|it| it.running).unwrap_or(false)),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Remove a container, whatever it does.
    ///
    /// # Errors
    /// A sentence, when it cannot be removed.
    pub async fn remove(&self, id: &str) -> Result<(), String> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true);
        match self
            .docker
            .remove_container(id, Some(options.build()))
            .await
        {
            Ok(()) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(self.sentence(&error)),
        }
    }

    /// The containers of the sessions in `sessions`, whether they run or not.
    ///
    /// # Errors
    /// A sentence, when the engine does not say.
    pub async fn containers(&self, sessions: &Path) -> Result<Vec<Left>, String> {
        let mark = format!("{SESSIONS_LABEL}={}", sessions.display());
        let filters = HashMap::from([("label", vec![mark])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters);
        let all = self.docker.list_containers(Some(options.build())).await;
        let all = all.map_err(|error| self.sentence(&error))?.into_iter();
        let left = all.filter_map(|container| {
            Some(Left {
                id: container.id?,
                session: container.labels?.get(SESSION_LABEL)?.parse().ok()?,
            })
        });
        Ok(left.collect())
    }

    async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, Error> {
        let began = Instant::now();
        loop {
            let options: Option<InspectContainerOptions> = None;
            match self.docker.inspect_container(id, options).await {
                // For a moment Podman says that it is `stopped`, a word that Docker has not.
                Err(Error::JsonDataError { .. }) if began.elapsed() < NOTICE_WITHIN => {
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
                answer => return answer,
            }
        }
    }
}

/// What the engine calls a session's container.
pub(super) fn container_name(session: SessionId) -> String {
    format!("dwell-{session}")
}

fn exit(state: &bollard::models::ContainerState) -> Exit {
    let status = state.exit_code.and_then(|code| i32::try_from(code).ok());
    match status {
        _ if state.oom_killed == Some(true) => Exit::OutOfMemory,
        // As shells write it.
        Some(status) if (129..=128 + LAST_SIGNAL).contains(&status) => Exit::Signal(status - 128),
        Some(status) => Exit::Status(status),
        None => Exit::Unseen,
    }
}

fn body(parts: &Parts<'_>, settings: &EngineSettings) -> ContainerCreateBody {
    let limits = parts.limits;
    let whole = |number: Option<u64>| number.and_then(|it| i64::try_from(it).ok());
    let memory = whole(limits.memory_mib.map(|mib| mib.saturating_mul(1 << 20)));
    let (devices, device_requests) = gpu(parts.visible_device, settings.gpus);
    let log = [
        ("max-size", format!("{}m", limits.log_mib.max(1))),
        // Else what is not read yet would go with the first.
        ("max-file", "2".to_owned()),
    ];
    let labels = [
        (SESSION_LABEL, parts.session.to_string()),
        (SESSIONS_LABEL, parts.sessions.display().to_string()),
    ];
    ContainerCreateBody {
        image: Some(parts.container.image.clone()),
        entrypoint: Some(parts.words.clone()),
        cmd: Some(Vec::new()),
        env: Some(parts.environment.clone()),
        working_dir: Some(parts.workdir.unwrap_or(FILES).to_owned()),
        labels: Some(owned(labels)),
        host_config: Some(HostConfig {
            binds: Some(vec![format!("{}:{FILES}", parts.files.display())]),
            network_mode: Some(parts.network.name.clone()),
            memory,
            // No swap besides.
            memory_swap: memory,
            pids_limit: whole(limits.pids),
            nano_cpus: whole(
                settings
                    .cpu_millis
                    .map(|millis| millis.saturating_mul(1_000_000)),
            ),
            storage_opt: settings
                .disk_mib
                .map(|mib| owned([("size", format!("{mib}M"))])),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(parts.container.capabilities.clone()),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            readonly_rootfs: Some(parts.container.read_only),
            tmpfs: parts
                .container
                .read_only
                .then(|| owned([("/tmp", "rw,nosuid,nodev,mode=1777".to_owned())])),
            devices,
            device_requests,
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(owned(log)),
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// A GPU that NVML found is known by its UUID. One that was only declared is none that
/// could be passed; the app is told of it all the same.
fn gpu(
    visible_device: &str,
    passing: GpuPassing,
) -> (Option<Vec<DeviceMapping>>, Option<Vec<DeviceRequest>>) {
    let is_real = ["GPU-", "MIG-"]
        .iter()
        .any(|kind| visible_device.starts_with(kind));
    let request = |driver: &str, id: String| DeviceRequest {
        driver: Some(driver.to_owned()),
        device_ids: Some(vec![id]),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    };
    match passing {
        _ if !is_real => (None, None),
        GpuPassing::DeviceRequests => (
            None,
            Some(vec![request("nvidia", visible_device.to_owned())]),
        ),
        GpuPassing::Cdi => {
            let name = format!("nvidia.com/gpu={visible_device}");
            (None, Some(vec![request("cdi", name)]))
        }
    }
}

fn owned<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
