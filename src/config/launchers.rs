//! The `[[launcher]]` tables: where sessions are put, in the order of preference.

use std::path::{Path, PathBuf};

use dwell_core::job::LauncherName;
use dwell_core::time::Millis;

use super::file::{MINUTES, SECONDS, check_path, gpu_type};
use super::reader::{Entry, Table};
use super::{ConfigError, PlaceConfig, parse_origin};
use crate::agent::spec::ServerAt;
use crate::engine::{EngineSettings, GpuPassing, Subnets};
use crate::launcher::cluster::{ClusterEngine, ClusterSettings};
use crate::launcher::kubernetes::KubernetesSettings;
use crate::launcher::local::Manner;
use crate::launcher::slurm::rest::{RestAddress, RestSettings};
use crate::launcher::slurm::{ContainersBy, SlurmSettings};

/// What the tables say.
#[derive(Default)]
pub struct LaunchersSay {
    /// How agents are started on this host.
    pub host: Manner,
    /// In the order of preference. None at all is this host alone.
    pub places: Vec<PlaceConfig>,
}

/// A cluster, and the engine that it has.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// What is said of it whichever engine it has.
    pub settings: ClusterSettings,
    /// What is said of its engine.
    pub engine: ClusterEngine,
}

/// What the launcher of this host is called.
const HOST: &str = "local";

/// Which launcher a table is about.
enum Kind {
    Local,
    Slurm,
    Kubernetes,
    /// The default socket, if `DOCKER_HOST` names none.
    Engine(&'static str),
}

impl LaunchersSay {
    /// What the tables say; paths are relative to `here`.
    pub fn read(entry: &Entry<'_>, here: &Path) -> Result<Self, ConfigError> {
        let mut says = Self::default();
        let (mut manner, mut engine_settings) = (None, None);
        for mut launcher in entry.tables()? {
            let kind = launcher
                .take("kind")
                .ok_or_else(|| launcher.error("must have a kind; \"local\" is one"))?;
            let kind = kind.parse(|kind| match kind {
                "local" => Ok(Kind::Local),
                "docker" => Ok(Kind::Engine("unix:///var/run/docker.sock")),
                "podman" => Ok(Kind::Engine("unix:///run/podman/podman.sock")),
                "slurm" => Ok(Kind::Slurm),
                "kubernetes" => Ok(Kind::Kubernetes),
                other => Err(format!(
                    "there is no launcher \"{other}\"; use \"local\", \"docker\", \"podman\", \
                     \"slurm\" or \"kubernetes\""
                )),
            })?;
            match kind {
                Kind::Kubernetes => {
                    let this = cluster(&mut launcher, "kubernetes", here, kubernetes)?;
                    says.put_in_cluster(this, &launcher)?;
                }
                Kind::Slurm => {
                    let this = cluster(&mut launcher, "slurm", here, slurm)?;
                    says.put_in_cluster(this, &launcher)?;
                }
                Kind::Engine(socket) => {
                    let this = engine(&mut launcher, socket)?;
                    if engine_settings.replace(this).is_some() {
                        return Err(
                            launcher.error("is a second container engine; there can be one")
                        );
                    }
                    says.put_on_host();
                }
                Kind::Local => {
                    let this = local(&mut launcher, here)?;
                    if manner.replace(this).is_some() {
                        return Err(
                            launcher.error("is a second one of its kind; there can be one yet")
                        );
                    }
                    says.put_on_host();
                }
            }
            launcher.finish()?;
        }
        says.host = Manner {
            engine: engine_settings,
            ..manner.unwrap_or_default()
        };
        Ok(says)
    }

    fn put_in_cluster(
        &mut self,
        cluster: ClusterConfig,
        table: &Table<'_>,
    ) -> Result<(), ConfigError> {
        let name = &cluster.settings.name;
        let is_there = |place: &PlaceConfig| match place {
            PlaceConfig::Host => false,
            PlaceConfig::Cluster(other) => other.settings.name == *name,
        };
        if name.0 == HOST || self.places.iter().any(is_there) {
            let sentence = format!("there is a launcher \"{name}\" already; name this another");
            return Err(table.error(&sentence));
        }
        self.places.push(PlaceConfig::Cluster(Box::new(cluster)));
        Ok(())
    }

    fn put_on_host(&mut self) {
        let is_there = |place: &PlaceConfig| matches!(place, PlaceConfig::Host);
        if !self.places.iter().any(is_there) {
            self.places.push(PlaceConfig::Host);
        }
    }
}

fn local(launcher: &mut Table<'_>, here: &Path) -> Result<Manner, ConfigError> {
    let start_with = launcher.take("start_with").map(|entry| entry.words());
    let url = launcher
        .take("server_url")
        .map(|entry| entry.parse(parse_origin));
    let (start_with, url) = (start_with.transpose()?, url.transpose()?);
    let sessions_dir = path(launcher, "sessions_dir", here)?;
    let certificate = match launcher.take("server_certificate") {
        Some(entry) if url.is_none() => {
            return Err(entry.error("says whom to trust at server_url; set that too"));
        }
        Some(entry) => Some(entry.parse(|text| check_path(text).map(|()| here.join(text)))?),
        None => None,
    };
    Ok(Manner {
        start_with: start_with.unwrap_or_default(),
        server: url.map(|url| ServerAt::Elsewhere { url, certificate }),
        sessions_dir,
        engine: None,
    })
}

fn path(
    table: &mut Table<'_>,
    key: &'static str,
    here: &Path,
) -> Result<Option<PathBuf>, ConfigError> {
    let entry = table.take(key);
    let path = entry.map(|entry| entry.parse(|text| check_path(text).map(|()| here.join(text))));
    path.transpose()
}

/// What a table says of a cluster, whichever engine it has; `engine` is what it says of
/// that.
fn cluster(
    table: &mut Table<'_>,
    kind: &str,
    here: &Path,
    engine: fn(&mut Table<'_>, &Path) -> Result<ClusterEngine, ConfigError>,
) -> Result<ClusterConfig, ConfigError> {
    /// More jobs than any engine has.
    const MOST_JOBS: u32 = 1_000_000;
    let name = match table.take("name") {
        Some(entry) => entry.parse(check_name)?,
        None => kind.to_owned(),
    };
    let mut gpus = std::collections::BTreeMap::new();
    for (name, entry) in table.take_table("gpus")?.take_all() {
        let word = entry.parse(|word| match word.trim() {
            "" => Err("must be the engine's word for the type".to_owned()),
            word => Ok(word.to_owned()),
        })?;
        gpus.insert(gpu_type(name, &entry)?, word);
    }
    if gpus.is_empty() {
        return Err(table.error(
            "must say which types of GPU it has, and the engine's word for each, like gpus = { \
             \"A10G\" = \"gpu:a10g\" }",
        ));
    }
    let jobs_max = table.take("jobs_max").map(|it| it.whole(1..=MOST_JOBS));
    let server_url = table.take("server_url").map(|it| it.parse(parse_origin));
    let server_certificate = match table.take("server_certificate") {
        Some(entry) => Some(entry.parse(|text| {
            check_path(text)?;
            let path = here.join(text);
            std::fs::read_to_string(&path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))
        })?),
        None => None,
    };
    let look_every = match table.take("look_seconds") {
        Some(entry) => SECONDS.span(&entry)?,
        None => Millis::from_seconds(3),
    };
    let settings = ClusterSettings {
        name: LauncherName(name),
        gpus,
        jobs_max: jobs_max.transpose()?,
        server_url: server_url.transpose()?,
        server_certificate,
        look_every,
    };
    Ok(ClusterConfig {
        settings,
        engine: engine(table, here)?,
    })
}

/// What a table says of Slurm.
fn slurm(table: &mut Table<'_>, here: &Path) -> Result<ClusterEngine, ConfigError> {
    /// More than any node has.
    const MOST_CPUS: u32 = 100_000;
    /// A pebibyte.
    const MOST_MIB: u32 = 1 << 30;
    let mut word = |key| {
        table
            .take(key)
            .map(|entry| entry.parse(check_word))
            .transpose()
    };
    let (partition, account) = (word("partition")?, word("account")?);
    let (qos, output, agent) = (word("qos")?, word("output")?, word("agent")?);
    let containers = match table.take("containers") {
        Some(entry) => Some(entry.parse(|text| match text {
            "pyxis" => Ok(ContainersBy::Pyxis),
            "apptainer" => Ok(ContainersBy::Apptainer),
            other => Err(format!(
                "\"{other}\" is neither \"pyxis\" nor \"apptainer\""
            )),
        })?),
        None => None,
    };
    let cpus = table.take("cpus").map(|it| it.whole(1..=MOST_CPUS));
    let memory_mib = table.take("memory_mib").map(|it| it.whole(1..=MOST_MIB));
    let options = table.take("options");
    let moves = table.take("moves_time_limits").map(|entry| entry.truth());
    let rest = slurmrestd(table, here)?;
    if let (Some(options), Some(_)) = (&options, &rest) {
        return Err(options.error("is of sbatch; what slurmrestd is to be told besides is job"));
    }
    if rest.is_some() && containers == Some(ContainersBy::Pyxis) {
        return Err(table.error(
            "cannot have Pyxis run images, which is asked for by an option of sbatch; set \
             containers = \"apptainer\", or leave out slurmrestd",
        ));
    }
    let options = options.map(|entry| entry.words());
    Ok(ClusterEngine::Slurm(Box::new(SlurmSettings {
        partition,
        account,
        qos,
        output,
        agent,
        containers,
        cpus: cpus.transpose()?,
        memory_mib: memory_mib.transpose()?.map(u64::from),
        options: options.transpose()?.unwrap_or_default(),
        moves_time_limits: moves.transpose()?.unwrap_or_default(),
        rest,
    })))
}

/// What a table says of slurmrestd.
fn slurmrestd(table: &mut Table<'_>, here: &Path) -> Result<Option<RestSettings>, ConfigError> {
    /// Properties of jobs that are ours to set.
    const OURS: [&str; 3] = ["name", "array", "script"];
    let address = table.take("slurmrestd");
    let user = table.take("user").map(|entry| entry.parse(check_word));
    let token_file = path(table, "token_file", here)?;
    let certificate = path(table, "slurmrestd_certificate", here)?;
    let job = table.take("job");
    let job = job.map(|entry| {
        let properties = entry.table().and_then(|_| entry.json())?;
        match OURS.iter().find(|ours| properties.get(ours).is_some()) {
            Some(ours) => Err(entry.error(&format!("{ours} is not to be set"))),
            None => Ok(properties),
        }
    });
    let job = job.transpose()?;
    let user = user.transpose()?;
    let Some(address) = address else {
        if user.is_some() || token_file.is_some() || certificate.is_some() || job.is_some() {
            return Err(table.error(
                "says user, token_file, slurmrestd_certificate or job, which are for slurmrestd; \
                 set that too",
            ));
        }
        return Ok(None);
    };
    let own_name = || {
        let own = nix::unistd::User::from_uid(nix::unistd::geteuid());
        own.ok().flatten().map(|user| user.name)
    };
    let address_is = address.parse(rest_address)?;
    let is_secure =
        matches!(&address_is, RestAddress::Origin(origin) if origin.starts_with("https:"));
    if certificate.is_some() && !is_secure {
        return Err(table
            .error("says slurmrestd_certificate, and slurmrestd is not asked over https there"));
    }
    Ok(Some(RestSettings {
        user: user.or_else(own_name).ok_or_else(|| {
            address.error("needs to know whose jobs are ours, by name; set user too")
        })?,
        address: address_is,
        token_file,
        certificate,
        job: job.unwrap_or_else(|| serde_json::json!({})),
    }))
}

fn rest_address(text: &str) -> Result<RestAddress, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(RestAddress::Socket(path.into())),
        Some(_) => Err(format!(
            "\"{text}\" is no socket; write it like unix:///run/slurmrestd/slurmrestd.socket"
        )),
        None => parse_origin(text).map(RestAddress::Origin),
    }
}

/// What a table says of Kubernetes.
fn kubernetes(table: &mut Table<'_>, here: &Path) -> Result<ClusterEngine, ConfigError> {
    /// A user that no image is likely to know.
    const NOBODY_IN_PARTICULAR: u32 = 64_000;
    /// A pebibyte.
    const MOST_MIB: u32 = 1 << 30;
    let kubeconfig = path(table, "kubeconfig", here)?;
    let mut word = |key| {
        table
            .take(key)
            .map(|entry| entry.parse(check_word))
            .transpose()
    };
    let (context, namespace) = (word("context")?, word("namespace")?);
    let (image, agent_image, agent) = (word("image")?, word("agent_image")?, word("agent")?);
    let run_as_user = table.take("run_as_user").map(|it| it.whole(1..=u32::MAX));
    let cpu_millis = cpu_millis(table)?;
    let memory_mib = table.take("memory_mib").map(|it| it.whole(1..=MOST_MIB));
    let kept_for = table.take("ended_pods_minutes").map(|it| MINUTES.span(&it));
    let pod = table.take("pod").map(|entry| entry.json()).transpose()?;
    Ok(ClusterEngine::Kubernetes(Box::new(KubernetesSettings {
        kubeconfig,
        context,
        namespace,
        image,
        agent_image,
        agent,
        run_as_user: run_as_user.transpose()?.unwrap_or(NOBODY_IN_PARTICULAR),
        cpu_millis,
        memory_mib: memory_mib.transpose()?.map(u64::from),
        kept_for: kept_for.transpose()?.unwrap_or(Millis::from_minutes(5)),
        pod: pod.unwrap_or_else(|| serde_json::json!({})),
    })))
}

/// What a table says of `cpus`, in thousandths.
fn cpu_millis(table: &mut Table<'_>) -> Result<Option<u64>, ConfigError> {
    /// So many cores are enough for anyone.
    const MOST_CORES: f64 = 1e4;
    let cores = table.take("cpus").map(|it| it.number(0.01..=MOST_CORES));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within range"
    )]
    let millis = cores.transpose()?.map(|cores| (cores * 1e3).round() as u64);
    Ok(millis)
}

fn check_word(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.contains(['\n', '\0']) {
        return Err("must say something, in one line".to_owned());
    }
    Ok(text.to_owned())
}

fn check_name(text: &str) -> Result<String, String> {
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || it == b'-';
    if text.is_empty() || text.len() > 40 || !text.bytes().all(is_plain) {
        return Err(format!(
            "\"{text}\" is no name of letters, digits and hyphens"
        ));
    }
    Ok(text.to_owned())
}

/// What a table says of the engine that runs containers.
fn engine(table: &mut Table<'_>, socket: &str) -> Result<EngineSettings, ConfigError> {
    /// A pebibyte.
    const MOST_MIB: u32 = 1 << 30;
    let host = match table.take("host") {
        Some(entry) => entry.parse(check_socket)?,
        None => std::env::var("DOCKER_HOST")
            .ok()
            .filter(|host| check_socket(host).is_ok())
            .unwrap_or_else(|| socket.to_owned()),
    };
    let network = match table.take("network") {
        Some(entry) => entry.parse(check_name)?,
        None => "dwell".to_owned(),
    };
    let subnets = match table.take("subnets") {
        Some(entry) => entry.parse(Subnets::parse)?,
        None => Subnets::default(),
    };
    let gpus = match table.take("gpus") {
        Some(entry) => entry.parse(|text| match text {
            "cdi" => Ok(GpuPassing::Cdi),
            "device-requests" => Ok(GpuPassing::DeviceRequests),
            other => Err(format!(
                "\"{other}\" is neither \"cdi\" nor \"device-requests\""
            )),
        })?,
        None => GpuPassing::default(),
    };
    let pull_limit = match table.take("pull_minutes") {
        Some(entry) => MINUTES.span(&entry)?,
        None => Millis::from_minutes(30),
    };
    let cpu_millis = cpu_millis(table)?;
    let disk_mib = table.take("disk_mib").map(|it| it.whole(1..=MOST_MIB));
    Ok(EngineSettings {
        host,
        network,
        subnets,
        gpus,
        pull_limit,
        cpu_millis,
        disk_mib: disk_mib.transpose()?.map(u64::from),
    })
}

fn check_socket(text: &str) -> Result<String, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(text.to_owned()),
        Some(_) | None => Err(format!(
            "\"{text}\" is no socket of this host, where the engine must run; write it like \
             unix:///var/run/docker.sock"
        )),
    }
}
