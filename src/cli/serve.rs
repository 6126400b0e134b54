//! `dwell serve`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::Args;

use super::args::{AccessArg, StoreArg};
use super::interrupts::Interrupts;
use super::output::Failure;
use crate::acme::{parse_directory, parse_email, parse_name};
use crate::config::{
    AcmeSays, Config, Flags, check_host, parse_domain, parse_listen, parse_origin, parse_ports,
};
use crate::server::{Server, ShutdownMode};
use crate::session_urls::Domain;
use crate::takeover::Inheritance;
use crate::telemetry::{self, LogFormat};

/// Serve: the API, the session URLs, and everything that sessions need
///
/// Runs until it is told to end by Ctrl-C or TERM. Sessions go on without it and are
/// there when it is back.
#[derive(Args)]
#[command(after_help = "Examples:
  dwell serve
  dwell serve --listen 0.0.0.0:8080 --session-host gpu.lab
  dwell serve --data-dir /srv/dwell --config /etc/dwell.toml
  dwell serve --listen 0.0.0.0:443 --domain gpu.example.com \\
              --tls-certificate fullchain.pem --tls-key privkey.pem
  dwell serve --listen 0.0.0.0:443 --acme-name gpu.example.com
  PGPASSFILE=/etc/dwell.pgpass dwell serve --store postgres://dwell@db.example.com/dwell
  dwell serve --takeover            # an upgrade in place
  DWELL_LOG=debug dwell serve")]
pub struct ServeArgs {
    /// Where to listen; port 0 takes one that is free [default: 127.0.0.1:8080]
    #[arg(long, env = "DWELL_LISTEN", value_name = "ADDRESS:PORT", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
    /// Where everything is kept [default: ~/.local/share/dwell]
    #[arg(long, env = "DWELL_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The config file
    #[arg(long, env = "DWELL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ports of session URLs [default: 20000-29999]
    #[arg(long, env = "DWELL_SESSION_PORTS", value_name = "FIRST-LAST", value_parser = parse_ports)]
    session_ports: Option<RangeInclusive<u16>>,
    /// The host in session URLs [default: the address that is listened on]
    #[arg(long, env = "DWELL_SESSION_HOST", value_name = "HOST", value_parser = host)]
    session_host: Option<String>,
    /// Who may use session URLs [default: link on a loopback address, else private]
    #[arg(long, env = "DWELL_ACCESS", value_name = "WHO")]
    access: Option<AccessArg>,
    /// Give each session a name of its own under this domain, in place of a port. Its DNS
    /// must lead *.DOMAIN here. With https:// before it, it is what visitors reach at a
    /// proxy in front of this server
    #[arg(long, env = "DWELL_DOMAIN", value_name = "DOMAIN", value_parser = parse_domain)]
    domain: Option<Domain>,
    /// Speak HTTPS by the certificate in this PEM file, chain included; it is read again
    /// when it changes
    #[arg(
        long,
        env = "DWELL_TLS_CERTIFICATE",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_certificate: Option<PathBuf>,
    /// The key of that certificate
    #[arg(
        long,
        env = "DWELL_TLS_KEY",
        value_name = "FILE",
        requires = "tls_certificate"
    )]
    tls_key: Option<PathBuf>,
    /// Get a certificate for this name by ACME and renew it in time; may be given more than
    /// once. Port 443 of the name must lead here. By it you agree to the authority's terms
    #[arg(
        long = "acme-name",
        env = "DWELL_ACME_NAMES",
        value_name = "NAME",
        value_parser = parse_name,
        value_delimiter = ','
    )]
    acme_names: Vec<String>,
    /// Whom the ACME authority may write to
    #[arg(long, env = "DWELL_ACME_EMAIL", value_name = "ADDRESS", value_parser = parse_email)]
    acme_email: Option<String>,
    /// The ACME authority's directory [default: Let's Encrypt's]
    #[arg(long, env = "DWELL_ACME_DIRECTORY", value_name = "URL", value_parser = parse_directory)]
    acme_directory: Option<String>,
    /// The certificate that the ACME authority's own server is known by, or those who vouch
    /// for it, PEM [default: the web's]
    #[arg(long, env = "DWELL_ACME_CA", value_name = "FILE")]
    acme_ca: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArg,
    /// Where other servers of the same Postgres database reach this one [default: where it
    /// listens]
    #[arg(long, env = "DWELL_ADVERTISE_URL", value_name = "URL", value_parser = parse_origin)]
    advertise_url: Option<String>,
    /// Take over from the server that has the data directory, and start as usual if none
    /// has. It hands over its addresses and exits when what is open there has ended; no
    /// request is refused, and WebSockets and downloads go on
    #[arg(long)]
    takeover: bool,
    /// When told to end, end all sessions first
    #[arg(long, env = "DWELL_STOP_SESSIONS")]
    stop_sessions: bool,
    /// How the log is written
    #[arg(
        long,
        env = "DWELL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
    /// Say on stdout who asks for what through session URLs, one JSON object a request
    #[arg(long, env = "DWELL_ACCESS_LOG")]
    access_log: bool,
}

fn host(text: &str) -> Result<String, String> {
    check_host(text).map(|()| text.to_owned())
}

/// Serve until told to end.
pub async fn serve(args: ServeArgs) -> Result<(), Failure> {
    telemetry::start(args.log_format, "info", args.access_log)?;
    let flags = Flags {
        listen: args.listen,
        data_dir: args.data_dir,
        session_ports: args.session_ports,
        session_host: args.session_host,
        access: args.access.map(Into::into),
        advertise_url: args.advertise_url,
        domain: args.domain,
        tls_certificate: args.tls_certificate,
        tls_key: args.tls_key,
        acme: AcmeSays {
            names: args.acme_names,
            email: args.acme_email,
            directory: args.acme_directory,
            authority: args.acme_ca,
        },
        store: args.store.said(),
    };
    let config = Config::load(args.config.as_deref(), flags)?;
    let interrupts = Interrupts::listen()?;
    let mode = if args.stop_sessions {
        ShutdownMode::EndSessions
    } else {
        ShutdownMode::LeaveSessions
    };
    let (mut listeners, mut serving) = (None, None);
    if args.takeover && config.data_dir.is_held() {
        let (given, to_say) = take_over(&config).await?.accept();
        (listeners, serving) = (Some(given), Some(to_say));
    }
    loop {
        let server = Server::start(config.clone(), listeners.take()).await?;
        server.loaded().await?;
        if let Some(serving) = serving.take() {
            serving.say();
        }
        tokio::select! {
            () = interrupts.at_least(1) => return shut_down(server, mode, &interrupts).await,
            successor = server.asked_to_give_way() => {
                tracing::info!("another server takes over");
                let (finishing, back) = server.give_way(successor).await?;
                listeners = back;
                if listeners.is_none() {
                    tracing::info!("it has taken over; finishing what is open here");
                    tokio::select! {
                        () = finishing.finish() => {}
                        () = interrupts.at_least(1) => {}
                    }
                    return Ok(());
                }
                tokio::spawn(finishing.finish());
            }
        }
    }
}

/// Have the server that holds the data directory give way.
async fn take_over(config: &Config) -> Result<Inheritance, Failure> {
    let data_dir = config.data_dir.clone();
    let asked = tokio::task::spawn_blocking(move || Inheritance::ask(&data_dir)).await;
    let inheritance = asked.map_err(|error| Failure::new(error.to_string()))?;
    let inheritance = inheritance.map_err(|error| Failure::new(error.to_string()))?;
    if let Ok(address) = inheritance.listeners.api.local_addr()
        && config.listen.port() != 0
        && config.listen != address
    {
        tracing::warn!(
            "going on at {address}; --listen {} counts from the next start without --takeover",
            config.listen
        );
    }
    Ok(inheritance)
}

async fn shut_down(
    server: Server,
    mode: ShutdownMode,
    interrupts: &Interrupts,
) -> Result<(), Failure> {
    match mode {
        ShutdownMode::LeaveSessions => tracing::info!("shutting down; sessions go on"),
        ShutdownMode::EndSessions => tracing::info!("ending all sessions, then shutting down"),
    }
    tokio::select! {
        () = server.shutdown(mode) => {}
        () = interrupts.at_least(2) => {}
    }
    Ok(())
}
