//! What a server is told to be: flags, `DWELL_…`, the config file, defaults; the
//! first of them that says something is right.

mod acme;
mod file;
mod launchers;
mod reader;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use axum::http::Uri;
use axum::http::uri::Authority;
use dwell_core::gpu::GpuType;
use dwell_core::limits::Limits;
use dwell_core::machine::Access;
use dwell_core::pricing::Prices;

use crate::acme::Acme;
use crate::agent::spec::AppLimits;
use crate::data_dir::DataDir;
use crate::launcher::local::Manner;
use crate::session_urls::{Domain, Origin, Scheme, is_domain_name};
use crate::store::StoreAt;
pub use acme::AcmeSays;
use acme::check_names;
use file::FileSays;
pub use launchers::ClusterConfig;
use reader::Source;

/// Where a server listens when nobody says otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Ports of session URLs when nobody says otherwise.
pub const DEFAULT_SESSION_PORTS: RangeInclusive<u16> = 20_000..=29_999;

/// What a server is configured to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where API, dashboard and agents are served.
    pub listen: SocketAddr,
    /// Where everything is kept; absolute.
    pub data_dir: DataDir,
    /// Where records are kept.
    pub store: StoreAt,
    /// Ports of session URLs.
    pub session_ports: RangeInclusive<u16>,
    /// The host of session URLs, as it stands in them.
    pub session_host: String,
    /// Where other servers that share the database reach this one, if not where it
    /// listens.
    pub advertise_url: Option<String>,
    /// The domain under which sessions have names; none, and they have ports.
    pub domain: Option<Domain>,
    /// What connections are encrypted by. Without it and `acme` they are not.
    pub tls: Option<TlsFiles>,
    /// What certificates are asked for.
    pub acme: Option<Acme>,
    /// Who may use a session URL, where the machine does not say.
    pub access: Access,
    /// What it allows and how long it waits.
    pub limits: Limits,
    /// Where sessions are put, in the order of preference.
    pub places: Vec<PlaceConfig>,
    /// How agents are started on this host.
    pub launcher: Manner,
    /// What each app may use.
    pub app_limits: AppLimits,
    /// How many GPUs of each type there are, as declared, in the file's order; a type
    /// that is not here is for NVML to find.
    pub declared_gpus: Vec<(GpuType, u32)>,
    /// What GPU time costs.
    pub prices: Prices,
}

/// Where sessions are put.
#[derive(Clone, Debug, PartialEq)]
pub enum PlaceConfig {
    /// On this host.
    Host,
    /// In jobs of a cluster.
    Cluster(Box<ClusterConfig>),
}

/// What flags and `DWELL_…` say. See [`Config`] for what each means.
#[derive(Clone, Default)]
#[expect(missing_docs, reason = "each is what it is in Config")]
pub struct Flags {
    pub listen: Option<SocketAddr>,
    pub data_dir: Option<PathBuf>,
    pub session_ports: Option<RangeInclusive<u16>>,
    pub session_host: Option<String>,
    pub access: Option<Access>,
    pub advertise_url: Option<String>,
    pub domain: Option<Domain>,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub acme: AcmeSays,
    pub store: Option<String>,
}

/// The certificate, with all that leads up to its root, and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Of what flags and file say together.
    fn of(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<Self>, ConfigError> {
        let missing = |there: &str, not_there: &str| ConfigError {
            place: None,
            sentence: format!("tls: there is a {there}, and no {not_there}; name both"),
        };
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some(Self { certificate, key })),
            (Some(_), None) => Err(missing("certificate", "key")),
            (None, Some(_)) => Err(missing("key", "certificate")),
        }
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file and the line, from 1 on; none where it is not one of a file.
    pub place: Option<(PathBuf, usize)>,
    /// The sentence; it names the key.
    pub sentence: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some((file, line)) => write!(f, "{}:{line}: {}", file.display(), self.sentence),
            None => f.write_str(&self.sentence),
        }
    }
}

impl Config {
    /// The configuration that `flags` and the file, if there is one, make.
    ///
    /// # Errors
    /// When the file cannot be read, or something in it or in the flags is not
    /// understood, out of range, or not there yet.
    pub fn load(file: Option<&Path>, flags: Flags) -> Result<Self, ConfigError> {
        match file {
            None => Self::resolve(FileSays::default(), flags),
            Some(file) => {
                let text = std::fs::read_to_string(file).map_err(|why| ConfigError {
                    place: None,
                    sentence: format!("cannot read the config file {}: {why}", file.display()),
                })?;
                Self::resolve(FileSays::read(Source { file, text: &text })?, flags)
            }
        }
    }

    fn resolve(file: FileSays, flags: Flags) -> Result<Self, ConfigError> {
        let wrong = |flag: &str, sentence: String| ConfigError {
            place: None,
            sentence: format!("--{flag}: {sentence}"),
        };
        let store = flags.store.as_deref().map(parse_store).transpose();
        let store = store.map_err(|sentence| wrong("store", sentence))?;
        let listen = flags.listen.or(file.listen).unwrap_or(DEFAULT_LISTEN);
        let session_ports = flags
            .session_ports
            .or(file.session_ports)
            .unwrap_or(DEFAULT_SESSION_PORTS);
        if session_ports.contains(&listen.port()) {
            return Err(ConfigError {
                place: None,
                sentence: format!(
                    "listen: port {} lies within session_ports {}-{}; choose another for one of them",
                    listen.port(),
                    session_ports.start(),
                    session_ports.end()
                ),
            });
        }
        let data_dir = flags
            .data_dir
            .or(file.data_dir)
            .unwrap_or_else(|| DataDir::default_for_user().0);
        let data_dir = std::path::absolute(&data_dir).map_err(|why| ConfigError {
            place: None,
            sentence: format!("data_dir: {} is no path: {why}", data_dir.display()),
        })?;
        let domain = flags.domain.or(file.domain);
        let tls = TlsFiles::of(
            flags.tls_certificate.or(file.tls_certificate),
            flags.tls_key.or(file.tls_key),
        )?;
        let acme = flags.acme.or(file.acme).resolve()?;
        let session_host = flags.session_host.or(file.session_host);
        if let Some(acme) = &acme {
            let has_files = tls.is_some();
            check_names(acme, domain.as_ref(), session_host.as_deref(), has_files).map_err(
                |sentence| ConfigError {
                    place: None,
                    sentence: format!("acme: {sentence}"),
                },
            )?;
        }
        let session_host = session_host.unwrap_or_else(|| match &acme {
            // URLs are of a name that there is a certificate for.
            Some(acme) if tls.is_none() => acme.names.first().cloned().unwrap_or_default(),
            Some(_) | None => host_of(listen.ip()),
        });
        let advertise_url = flags.advertise_url.or(file.advertise_url);
        let mut places = file.launchers.places;
        if places.is_empty() {
            places.push(PlaceConfig::Host);
        }
        // A name under the domain cannot be guessed; a port can.
        let access = if listen.ip().is_loopback() || domain.is_some() {
            Access::Link
        } else {
            Access::Private
        };
        Ok(Self {
            listen,
            data_dir: DataDir(data_dir),
            store: store.or(file.store).unwrap_or(StoreAt::DataDir),
            session_ports,
            session_host,
            advertise_url,
            domain,
            tls,
            acme,
            access: flags.access.or(file.access).unwrap_or(access),
            limits: file.limits,
            places,
            launcher: file.launchers.host,
            app_limits: file.app_limits,
            declared_gpus: file.gpus,
            prices: file.prices,
        })
    }
}

/// How clients name the host that listens on `ip`.
pub(crate) fn host_of(ip: IpAddr) -> String {
    match ip {
        // All addresses is none that a client could use: the name is the best guess.
        _ if ip.is_unspecified() => nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .filter(|name| check_host(name).is_ok())
            .unwrap_or_else(|| "localhost".to_owned()),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`. Port 0 takes one that is free.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.replacen("localhost:", "127.0.0.1:", 1)
        .parse()
        .map_err(|_| format!("\"{text}\" is no address with a port; write it like 127.0.0.1:8080"))
}

/// `20000-29999`, both included.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)))
        .ok_or_else(|| format!("\"{text}\" is no range of ports; write it like 20000-29999"))?;
    if first == 0 {
        return Err("port 0 cannot be part of a URL; start at 1 or above".to_owned());
    }
    if last < first {
        return Err(format!(
            "the range {first}-{last} is empty; the lower port goes first"
        ));
    }
    Ok(first..=last)
}

/// `link` or `private`.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_access(text: &str) -> Result<Access, String> {
    match text {
        "link" => Ok(Access::Link),
        "private" => Ok(Access::Private),
        other => Err(format!("\"{other}\" is neither \"link\" nor \"private\"")),
    }
}

/// A host as it may stand in a URL, without scheme, port and path.
///
/// # Errors
/// A sentence that says what it should be.
pub fn check_host(text: &str) -> Result<(), String> {
    let authority = text.parse::<Authority>();
    match authority {
        Ok(authority) if authority.host() == text => Ok(()),
        Ok(_) | Err(_) => Err(format!(
            "\"{text}\" is no host; write a name or an address, without scheme and port"
        )),
    }
}

/// `gpu.example.com`, or what visitors reach in front of the server:
/// `https://gpu.example.com`, with a port if it is not the usual one.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_domain(text: &str) -> Result<Domain, String> {
    let (scheme, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("http", rest)) => (Some(Scheme::Http), rest),
        Some(("https", rest)) => (Some(Scheme::Https), rest),
        Some((other, _)) => return Err(format!("\"{other}\" is neither http nor https")),
    };
    let wrong = || {
        format!(
            "\"{text}\" is no domain; write it like gpu.example.com, or like \
             https://gpu.example.com if that is what visitors reach in front of this server"
        )
    };
    let authority: Authority = rest.parse().map_err(|_| wrong())?;
    let name = authority.host().to_ascii_lowercase();
    let is_address = name.parse::<IpAddr>().is_ok();
    if is_address || !is_domain_name(&name) || rest.contains('@') {
        return Err(wrong());
    }
    let origin = match (scheme, authority.port_u16()) {
        (None, None) => None,
        (None, Some(_)) => return Err(wrong()),
        (Some(scheme), port) => Some(Origin {
            scheme,
            port: port.unwrap_or(scheme.default_port()),
        }),
    };
    Ok(Domain { name, origin })
}

/// `https://gpu.example.com`: where a server is reached.
///
/// # Errors
/// A sentence that says what it should be.
pub fn parse_origin(text: &str) -> Result<String, String> {
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|it| !it.as_str().contains('@'))
            && uri.path() == "/"
            && uri.query().is_none()
    });
    match uri {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err(format!(
            "\"{text}\" is no server's address; write it like https://gpu.example.com"
        )),
    }
}

/// `sqlite`, or `postgres://USER@HOST/DATABASE`.
///
/// # Errors
/// A sentence that says what it should be, and never shows a password.
pub fn parse_store(text: &str) -> Result<StoreAt, String> {
    match text {
        "sqlite" => Ok(StoreAt::DataDir),
        postgres if postgres.starts_with("postgres") => postgres.parse().map(StoreAt::Postgres),
        url if url.contains("://") => {
            Err("there is no such store; use \"sqlite\" or a postgres:// URL".to_owned())
        }
        other => Err(format!(
            "there is no store \"{other}\"; use \"sqlite\" or a postgres:// URL"
        )),
    }
}

#[cfg(test)]
mod tests;
