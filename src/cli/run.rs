//! `dwell run` and `dwell up`: a session is started and followed to its end.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dwell_core::machine::AppCommand;

use super::args::{AppArgs, JsonArg, ServerArgs};
use super::follow::{Follow, follow};
use super::interrupts::Interrupts;
use super::output::{Failure, note};
use super::resolve;
use crate::client::find::{Found, FoundBy, Wanted};
use crate::client::wire::NewSession;
use crate::client::{Client, ClientError};
use crate::config::{Config, DEFAULT_LISTEN, Flags};
use crate::server::{Server, ShutdownMode};
use crate::telemetry::{self, LogFormat};

/// How often to look whether the sessions of others have ended.
const LOOK: Duration = Duration::from_secs(1);

/// Run a command as a session: prints its URL, counts down, tells how it ended
///
/// In the command, {port} stands for the port that the app is to listen on; $PORT
/// has it too. Ctrl-C ends the session and waits for its end; a second one does not
/// wait. When no server is reachable and none was named, this serves by itself for
/// as long as the session runs.
#[derive(Args)]
#[command(after_help = "Examples:
  dwell run -- python3 -m http.server {port}
  dwell run --gpu A10G --timeout 60 -- python3 main.py --listen 127.0.0.1 --port {port}
  dwell run --workdir . --env MODE=demo -- ./app
  dwell run --detach -- jupyter lab --no-browser --port={port}")]
pub struct RunArgs {
    /// The app and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    app: AppArgs,
    /// The config file, for when this serves by itself
    #[arg(
        long,
        env = "DWELL_CONFIG",
        value_name = "FILE",
        help_heading = "Server"
    )]
    config: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Start a session of a machine: like `run`, with what the machine says
#[derive(Args)]
#[command(after_help = "Examples:
  dwell up lab
  dwell up lab --gpu H100 --timeout 120
  URL=$(dwell up lab --detach)")]
pub struct UpArgs {
    /// The machine's name, or its id
    machine: String,
    /// The GPU type [default: the machine's]
    #[arg(long, value_name = "TYPE")]
    gpu: Option<String>,
    /// How long it may run, in minutes [default: the machine's]
    #[arg(long, value_name = "MIN", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args, Clone, Copy)]
struct HowArgs {
    /// Leave once the app answers; the session goes on
    #[arg(long, short)]
    detach: bool,
    /// Show what the app writes, on stderr
    #[arg(long)]
    logs: bool,
    #[command(flatten)]
    json: JsonArg,
}

impl HowArgs {
    const fn follow(self) -> Follow {
        Follow {
            detach: self.detach,
            logs: self.logs,
            json: self.json.json,
        }
    }
}

/// Run a command as a session.
pub async fn run(args: RunArgs) -> Result<(), Failure> {
    let new = NewSession {
        machine_id: None,
        gpu: args.app.gpu.clone(),
        timeout: args.app.timeout,
        port: args.app.port,
        workdir: args.app.workdir()?,
        environment: args.app.environment(),
        ready_path: args.app.ready_path.clone(),
        access: args.app.access(),
        image: args.app.image.clone(),
        read_only: args.app.read_only.then_some(true),
        capabilities: args.app.capabilities(),
        command: Some(AppCommand::Argv(args.command)),
    };
    let interrupts = Interrupts::listen()?;
    let wanted = args.server.wanted();
    match reachable(&wanted).await? {
        Some(client) => follow(&client, &new, args.how.follow(), &interrupts).await,
        None if args.how.detach => Err(Failure::new(
            "no server is reachable, and one that this command started would end with it; \
             start one with `dwell serve` first",
        )),
        None => {
            let server = serve_here(&wanted, args.config).await?;
            let client = client_of(&server)?;
            let outcome = follow(&client, &new, args.how.follow(), &interrupts).await;
            // Whoever insists on leaving does not wait for any of this.
            if interrupts.so_far() < 2 {
                tokio::select! {
                    () = leave(server, &client, &interrupts) => {}
                    () = interrupts.at_least(2) => {}
                }
            }
            outcome
        }
    }
}

/// Serve no more; but first, until the sessions that others started here have ended.
async fn leave(server: Server, client: &Client, interrupts: &Interrupts) {
    let open = async || {
        let sessions = client.sessions(false).await;
        sessions.map_or(0, |sessions| sessions.value.len())
    };
    let others = open().await;
    if others > 0 {
        note(&format!(
            "other sessions are open here ({others}): serving until they end; Ctrl-C leaves them \
             to themselves"
        ));
        let asked = interrupts.so_far() + 1;
        let all_ended = async {
            while open().await > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = all_ended => {}
            () = interrupts.at_least(asked) => {}
        }
    }
    server.shutdown(ShutdownMode::LeaveSessions).await;
}

/// Start a session of a machine.
pub async fn up(args: UpArgs) -> Result<(), Failure> {
    let interrupts = Interrupts::listen()?;
    let client = args.server.client()?;
    let machine = resolve::machine(&client, &args.machine).await?;
    let new = NewSession {
        machine_id: Some(machine.id),
        gpu: args.gpu,
        timeout: args.timeout,
        ..NewSession::default()
    };
    follow(&client, &new, args.how.follow(), &interrupts).await
}

/// A client of the server that is meant, if one answers there. A server that was
/// named by its URL must.
async fn reachable(wanted: &Wanted) -> Result<Option<Client>, Failure> {
    let Ok(found) = wanted.find() else {
        return Ok(None);
    };
    let client = Client::new(&found)?;
    match (client.version().await, found.by) {
        (Ok(_), _) => Ok(Some(client)),
        // At the default address anything may listen: another program's answer is none.
        (
            Err(
                ClientError::Unreachable { .. }
                | ClientError::NotUnderstood { .. }
                | ClientError::Refused { .. },
            ),
            FoundBy::Default,
        ) => Ok(None),
        (Err(error), FoundBy::Url | FoundBy::DataDir) => Err(error.into()),
    }
}

/// A server in this process, on the data directory that is meant.
async fn serve_here(wanted: &Wanted, file: Option<PathBuf>) -> Result<Server, Failure> {
    telemetry::start(LogFormat::Text, "warn", false)?;
    let flags = Flags {
        data_dir: wanted.data_dir.clone(),
        ..Flags::default()
    };
    let mut config = Config::load(file.as_deref(), flags)?;
    if config.listen == DEFAULT_LISTEN && TcpListener::bind(DEFAULT_LISTEN).is_err() {
        // Nobody asked for this port; any other is as good.
        config.listen = SocketAddr::new(DEFAULT_LISTEN.ip(), 0);
    }
    let dir = config.data_dir.0.display().to_string();
    let server = Server::start(config, None).await?;
    server.loaded().await?;
    note(&format!(
        "no server is reachable: serving at {} for this session, data in {dir}",
        server.url()
    ));
    Ok(server)
}

fn client_of(server: &Server) -> Result<Client, ClientError> {
    Client::new(&Found {
        url: server.url().to_owned(),
        key: server.admin_key().map(ToOwned::to_owned),
        by: FoundBy::DataDir,
    })
}
