//! The config file: its keys, and what is right for each.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use dwell_core::gpu::GpuType;
use dwell_core::limits::Limits;
use dwell_core::machine::Access;
use dwell_core::pricing::{HourlyRate, Prices};
use dwell_core::time::Millis;
use toml::de::DeTable;

use super::reader::{Entry, Source, Table};
use super::{
    AcmeSays, ConfigError, check_host, parse_access, parse_domain, parse_listen, parse_origin,
    parse_ports, parse_store,
};
use crate::acme::{parse_directory, parse_email, parse_name};
use crate::agent::spec::{AppLimits, ServerAt};
use crate::engine::{EngineSettings, GpuPassing, Subnets};
use crate::launcher::local::Manner;
use crate::session_urls::Domain;
use crate::store::StoreAt;

/// What the file says; what it does not say of limits, prices and GPUs is as by
/// default.
#[derive(Default)]
pub struct FileSays {
    pub listen: Option<SocketAddr>,
    pub data_dir: Option<PathBuf>,
    pub store: Option<StoreAt>,
    pub session_ports: Option<RangeInclusive<u16>>,
    pub session_host: Option<String>,
    pub domain: Option<Domain>,
    pub advertise_url: Option<String>,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub acme: AcmeSays,
    pub access: Option<Access>,
    pub launcher: Manner,
    pub limits: Limits,
    pub app_limits: AppLimits,
    pub gpus: Vec<(GpuType, u32)>,
    pub prices: Prices,
}

impl FileSays {
    /// What `source` says.
    pub fn read(source: Source<'_>) -> Result<Self, ConfigError> {
        let parsed = DeTable::parse(source.text).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            source.error(&at, error.message().replace('\n', ", "))
        })?;
        let mut root = Table::root(source, &parsed);
        let here = source.file.parent().unwrap_or(Path::new(""));
        let text = |entry: Option<Entry<'_>>, check: fn(&str) -> Result<(), String>| {
            entry
                .map(|entry| entry.parse(|text| check(text).map(|()| text.to_owned())))
                .transpose()
        };
        let launcher = match root.take("launcher") {
            Some(launchers) => launcher(&launchers, here)?,
            None => Manner::default(),
        };
        let mut tls = root.take_table("tls")?;
        let mut tls_file = |key| -> Result<Option<PathBuf>, ConfigError> {
            Ok(text(tls.take(key), check_path)?.map(|path| here.join(path)))
        };
        let (tls_certificate, tls_key) = (tls_file("certificate")?, tls_file("key")?);
        tls.finish()?;
        let says = Self {
            listen: root
                .take("listen")
                .map(|entry| entry.parse(parse_listen))
                .transpose()?,
            // Relative to the file, which does not depend on where one stands.
            data_dir: text(root.take("data_dir"), check_path)?.map(|path| here.join(path)),
            store: root
                .take("store")
                .map(|entry| entry.parse(parse_store))
                .transpose()?,
            session_ports: root
                .take("session_ports")
                .map(|entry| entry.parse(parse_ports))
                .transpose()?,
            session_host: text(root.take("session_host"), check_host)?,
            advertise_url: root
                .take("advertise_url")
                .map(|entry| entry.parse(parse_origin))
                .transpose()?,
            domain: root
                .take("domain")
                .map(|entry| entry.parse(parse_domain))
                .transpose()?,
            tls_certificate,
            tls_key,
            acme: acme(root.take_table("acme")?, here)?,
            access: root
                .take("access")
                .map(|entry| entry.parse(parse_access))
                .transpose()?,
            launcher,
            limits: limits(root.take_table("limits")?)?,
            app_limits: app_limits(root.take_table("session")?)?,
            gpus: gpus(root.take_table("gpus")?)?,
            prices: prices(root.take_table("prices")?)?,
        };
        root.finish()?;
        Ok(says)
    }
}

fn acme(mut table: Table<'_>, here: &Path) -> Result<AcmeSays, ConfigError> {
    let names = match table.take("names") {
        None => Vec::new(),
        Some(entry) => {
            let names = entry.words()?.into_iter();
            let names: Result<_, _> = names.map(|name| parse_name(&name)).collect();
            names.map_err(|sentence| entry.error(&sentence))?
        }
    };
    let mut text = |key, parse: fn(&str) -> Result<String, String>| {
        let entry = table.take(key);
        entry.map(|entry| entry.parse(parse)).transpose()
    };
    let says = AcmeSays {
        names,
        email: text("email", parse_email)?,
        directory: text("directory", parse_directory)?,
        authority: text("ca", |text| check_path(text).map(|()| text.to_owned()))?
            .map(|path| here.join(path)),
    };
    table.finish()?;
    Ok(says)
}

fn limits(mut table: Table<'_>) -> Result<Limits, ConfigError> {
    /// So many of anything are enough for whoever writes a file by hand.
    const MANY: u32 = 10_000_000;
    /// A year.
    const LONGEST_MINUTES: u32 = 366 * 24 * 60;
    let default = Limits::default();
    let mut whole = |key, range, default: u32| match table.take(key) {
        Some(entry) => entry.whole(range),
        None => Ok(default),
    };
    let sessions_per_machine = whole(
        "sessions_per_machine",
        1..=MANY,
        default.sessions_per_machine,
    )?;
    let sessions_per_owner = whole("sessions_per_owner", 1..=MANY, default.sessions_per_owner)?;
    let machines_per_owner = whole("machines_per_owner", 1..=MANY, default.machines_per_owner)?;
    let keys_per_owner = whole("keys_per_owner", 1..=MANY, default.keys_per_owner)?;
    let shares_per_session = whole("shares_per_session", 1..=MANY, default.shares_per_session)?;
    let timeout_max_minutes = whole(
        "timeout_max_minutes",
        1..=LONGEST_MINUTES,
        default.timeout_max_minutes,
    )?;
    let timeout_default_minutes = whole(
        "timeout_default_minutes",
        1..=timeout_max_minutes,
        default.timeout_default_minutes.min(timeout_max_minutes),
    )?;
    let mut span = |key, unit: Unit, default: Millis| match table.take(key) {
        Some(entry) => unit.span(&entry),
        None => Ok(default),
    };
    let limits = Limits {
        sessions_per_machine,
        sessions_per_owner,
        machines_per_owner,
        keys_per_owner,
        shares_per_session,
        timeout_max_minutes,
        timeout_default_minutes,
        start_limit: span("start_minutes", MINUTES, default.start_limit)?,
        grace: span("grace_seconds", SECONDS, default.grace)?,
        timeout_grace: span("timeout_grace_seconds", SECONDS, default.timeout_grace)?,
        heartbeat: span("heartbeat_seconds", SECONDS, default.heartbeat)?,
        relaunch_after: span("relaunch_after_seconds", SECONDS, default.relaunch_after)?,
        lost_after: span("lost_after_seconds", SECONDS, default.lost_after)?,
        retention: span("retention_days", DAYS, default.retention)?,
    };
    if limits.heartbeat >= limits.relaunch_after || limits.relaunch_after >= limits.lost_after {
        return Err(table.error(&format!(
            "heartbeat_seconds ({}) must be below relaunch_after_seconds ({}), and that below \
             lost_after_seconds ({})",
            limits.heartbeat, limits.relaunch_after, limits.lost_after
        )));
    }
    table.finish()?;
    Ok(limits)
}

/// A unit that spans are written in.
struct Unit {
    millis: f64,
    most: f64,
}

const SECONDS: Unit = Unit {
    millis: 1e3,
    most: 86_400.0,
};
const MINUTES: Unit = Unit {
    millis: 60e3,
    most: 1_440.0,
};
const DAYS: Unit = Unit {
    millis: 86_400e3,
    most: 36_500.0,
};

impl Unit {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within range"
    )]
    fn span(&self, entry: &Entry<'_>) -> Result<Millis, ConfigError> {
        // A thousandth of a second is the least there is.
        let number = entry.number(0.001..=self.most)?;
        Ok(Millis((number * self.millis).round() as u64))
    }
}

fn app_limits(mut table: Table<'_>) -> Result<AppLimits, ConfigError> {
    /// A pebibyte.
    const MOST_MIB: u32 = 1 << 30;
    /// As many as Linux can count.
    const MOST_PIDS: u32 = 1 << 22;
    let default = AppLimits::default();
    let mut whole = |key, range| table.take(key).map(|entry| entry.whole(range)).transpose();
    let memory_mib = whole("memory_mib", 0..=MOST_MIB)?;
    let pids_max = whole("pids_max", 0..=MOST_PIDS)?;
    let log_mib = whole("log_mib", 1..=MOST_MIB)?;
    table.finish()?;
    // 0 says that there is to be no limit.
    let limit = |said: Option<u32>, default: Option<u64>| match said {
        None => default,
        Some(0) => None,
        Some(most) => Some(u64::from(most)),
    };
    Ok(AppLimits {
        memory_mib: limit(memory_mib, default.memory_mib),
        pids: limit(pids_max, default.pids),
        log_mib: log_mib.map_or(default.log_mib, u64::from),
    })
}

fn gpus(table: Table<'_>) -> Result<Vec<(GpuType, u32)>, ConfigError> {
    /// Of one type on one host.
    const MOST: u32 = 10_000;
    let entries = table.take_all().into_iter();
    entries
        .map(|(name, entry)| Ok((gpu_type(name, &entry)?, entry.whole(0..=MOST)?)))
        .collect()
}

fn prices(table: Table<'_>) -> Result<Prices, ConfigError> {
    let entries = table.take_all().into_iter();
    let rates = entries.map(|(name, entry)| {
        let dollars = entry.number(0.0..=1e6)?;
        let rate = HourlyRate::from_dollars(dollars)
            .ok_or_else(|| entry.error(&format!("{dollars} is no price")))?;
        Ok((gpu_type(name, &entry)?, rate))
    });
    rates.collect::<Result<_, _>>().map(Prices)
}

fn gpu_type(name: &str, entry: &Entry<'_>) -> Result<GpuType, ConfigError> {
    if name.trim().is_empty() || name.trim() != name {
        return Err(entry.error("is no name of a GPU type"));
    }
    Ok(GpuType(name.to_owned()))
}

/// Which launcher a table is about.
enum Kind {
    Local,
    /// The default socket, if `DOCKER_HOST` names none.
    Engine(&'static str),
}

fn launcher(entry: &Entry<'_>, here: &Path) -> Result<Manner, ConfigError> {
    let (mut manner, mut engine_settings) = (None, None);
    for mut launcher in entry.tables()? {
        let kind = launcher
            .take("kind")
            .ok_or_else(|| launcher.error("must have a kind; \"local\" is one"))?;
        let kind = kind.parse(|kind| match kind {
            "local" => Ok(Kind::Local),
            "docker" => Ok(Kind::Engine("unix:///var/run/docker.sock")),
            "podman" => Ok(Kind::Engine("unix:///run/podman/podman.sock")),
            "slurm" | "kubernetes" => Err(format!(
                "\"{kind}\" is not there yet; use \"local\" or \"docker\", or no [[launcher]] at all"
            )),
            other => Err(format!(
                "there is no launcher \"{other}\"; use \"local\", \"docker\" or \"podman\""
            )),
        })?;
        if let Kind::Engine(socket) = kind {
            let this = engine(&mut launcher, socket)?;
            if engine_settings.replace(this).is_some() {
                return Err(launcher.error("is a second container engine; there can be one"));
            }
            launcher.finish()?;
            continue;
        }
        let start_with = launcher.take("start_with").map(|entry| entry.words());
        let url = launcher
            .take("server_url")
            .map(|entry| entry.parse(parse_origin));
        let (start_with, url) = (start_with.transpose()?, url.transpose()?);
        let sessions_dir = match launcher.take("sessions_dir") {
            Some(entry) => Some(entry.parse(|text| check_path(text).map(|()| here.join(text)))?),
            None => None,
        };
        let certificate = match launcher.take("server_certificate") {
            Some(entry) if url.is_none() => {
                return Err(entry.error("says whom to trust at server_url; set that too"));
            }
            Some(entry) => Some(entry.parse(|text| check_path(text).map(|()| here.join(text)))?),
            None => None,
        };
        let this = Manner {
            start_with: start_with.unwrap_or_default(),
            server: url.map(|url| ServerAt::Elsewhere { url, certificate }),
            sessions_dir,
            engine: None,
        };
        if manner.replace(this).is_some() {
            return Err(launcher.error("is a second one of its kind; there can be one yet"));
        }
        launcher.finish()?;
    }
    Ok(Manner {
        engine: engine_settings,
        ..manner.unwrap_or_default()
    })
}

/// What a table says of the engine that runs containers.
fn engine(table: &mut Table<'_>, socket: &str) -> Result<EngineSettings, ConfigError> {
    /// So many cores are enough for anyone.
    const MOST_CORES: f64 = 1e4;
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
        Some(entry) => entry.parse(check_network)?,
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
    let cores = table.take("cpus").map(|it| it.number(0.01..=MOST_CORES));
    let disk_mib = table.take("disk_mib").map(|it| it.whole(1..=MOST_MIB));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within range"
    )]
    let cpu_millis = cores.transpose()?.map(|cores| (cores * 1e3).round() as u64);
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

fn check_network(text: &str) -> Result<String, String> {
    let is_plain = |text: &str| {
        text.bytes()
            .all(|it| it.is_ascii_alphanumeric() || it == b'-')
    };
    if text.is_empty() || text.len() > 40 || !is_plain(text) {
        return Err(format!(
            "\"{text}\" is no name of letters, digits and hyphens"
        ));
    }
    Ok(text.to_owned())
}

fn check_path(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must name a directory".to_owned());
    }
    Ok(())
}
