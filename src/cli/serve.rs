//! `dwell serve`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::Args;

use super::args::AccessArg;
use super::interrupts::Interrupts;
use super::output::Failure;
use crate::config::{Config, Flags, check_host, parse_listen, parse_ports};
use crate::server::{Server, ShutdownMode};
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
    /// Session URLs under this domain; not there yet
    #[arg(long, env = "DWELL_DOMAIN", value_name = "DOMAIN")]
    domain: Option<String>,
    /// Where records are kept; only sqlite is there yet [default: sqlite]
    #[arg(long, env = "DWELL_STORE", value_name = "URL")]
    store: Option<String>,
    /// How the log is written
    #[arg(
        long,
        env = "DWELL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

fn host(text: &str) -> Result<String, String> {
    check_host(text).map(|()| text.to_owned())
}

/// Serve until told to end.
pub async fn serve(args: ServeArgs) -> Result<(), Failure> {
    telemetry::start(args.log_format, "info")?;
    let flags = Flags {
        listen: args.listen,
        data_dir: args.data_dir,
        session_ports: args.session_ports,
        session_host: args.session_host,
        access: args.access.map(Into::into),
        domain: args.domain,
        store: args.store,
    };
    let config = Config::load(args.config.as_deref(), flags)?;
    let interrupts = Interrupts::listen()?;
    let server = Server::start(config).await?;
    interrupts.at_least(1).await;
    tracing::info!("shutting down; sessions go on");
    tokio::select! {
        () = server.shutdown(ShutdownMode::LeaveSessions) => {}
        () = interrupts.at_least(2) => {}
    }
    Ok(())
}
