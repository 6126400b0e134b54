//! `dwell machines`: named recipes.

use clap::{Args, Subcommand};
use dwell_core::machine::{Access, AppCommand};

use super::args::{AppArgs, JsonArg, ServerArgs, command_line};
use super::output::{Failure, ago, note, pairs, print, short_ids, table};
use super::resolve;
use crate::client::wire::{MachineRow, MachineSpec};
use crate::clock;

/// Machines: named, versioned recipes for what sessions run
#[derive(Args)]
pub struct MachinesArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Create(CreateArgs),
    Ls(LsArgs),
    Show(ShowArgs),
    Update(UpdateArgs),
    Delete(DeleteArgs),
    Versions(VersionsArgs),
}

/// Make a machine; prints its id
#[derive(Args)]
#[command(after_help = "Examples:
  dwell machines create --name lab --gpu A10G --timeout 60 \\
    --command 'jupyter lab --no-browser --ip=127.0.0.1 --port={port}'
  dwell machines create --name files -- python3 -m http.server {port}")]
struct CreateArgs {
    /// What people will call it
    #[arg(long)]
    name: String,
    /// What its sessions run: a line for the shell
    #[arg(long, value_name = "CMD", required_unless_present = "argv")]
    command: Option<String>,
    /// What its sessions run: a program and its arguments, in the place of --command
    #[arg(last = true, conflicts_with = "command", value_name = "CMD")]
    argv: Vec<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// List machines
#[derive(Args)]
#[command(after_help = "Example:
  dwell machines ls")]
struct LsArgs {
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Show one machine
#[derive(Args)]
#[command(after_help = "Example:
  dwell machines show lab")]
struct ShowArgs {
    /// Its name, or its id
    machine: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Change a machine; what changes what it runs makes a new version
#[derive(Args)]
#[command(after_help = "Examples:
  dwell machines update lab --timeout 120
  dwell machines update lab --name big-lab --gpu H100")]
struct UpdateArgs {
    /// Its name, or its id
    machine: String,
    /// A new name
    #[arg(long)]
    name: Option<String>,
    /// What its sessions run: a line for the shell
    #[arg(long, value_name = "CMD")]
    command: Option<String>,
    /// What its sessions run: a program and its arguments, in the place of --command
    #[arg(last = true, conflicts_with = "command", value_name = "CMD")]
    argv: Vec<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// Delete a machine; its open sessions go on
#[derive(Args)]
#[command(after_help = "Example:
  dwell machines delete lab")]
struct DeleteArgs {
    /// Its name, or its id
    machine: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// List a machine's versions
#[derive(Args)]
#[command(after_help = "Example:
  dwell machines versions lab")]
struct VersionsArgs {
    /// Its name, or its id
    machine: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Do what is asked about machines.
pub async fn machines(args: MachinesArgs) -> Result<(), Failure> {
    match args.action {
        Action::Create(args) => create(args).await,
        Action::Ls(args) => ls(args).await,
        Action::Show(args) => show(args).await,
        Action::Update(args) => update(args).await,
        Action::Delete(args) => delete(args).await,
        Action::Versions(args) => versions(args).await,
    }
}

/// What is said of a machine; what is not said is `None`.
fn spec(
    name: Option<String>,
    command: Option<String>,
    argv: Vec<String>,
    app: &AppArgs,
) -> Result<MachineSpec, Failure> {
    let argv = (!argv.is_empty()).then_some(AppCommand::Argv(argv));
    Ok(MachineSpec {
        name,
        command: command.map(AppCommand::Shell).or(argv),
        port: app.port,
        workdir: app.workdir()?,
        environment: (!app.environment.is_empty()).then(|| app.environment()),
        gpu: app.gpu.clone(),
        timeout: app.timeout,
        ready_path: app.ready_path.clone(),
        access: app.access(),
        image: app.image.clone(),
        read_only: app.read_only.then_some(true),
        capabilities: app.capabilities(),
    })
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let spec = spec(Some(args.name), args.command, args.argv, &args.app)?;
    let answer = args.server.client()?.create_machine(&spec).await?;
    print(if args.json.json {
        &answer.json
    } else {
        &answer.value.id
    })
}

async fn ls(args: LsArgs) -> Result<(), Failure> {
    let answer = args.server.client()?.machines().await?;
    if args.json.json {
        return print(&answer.json);
    }
    let machines = answer.value;
    if machines.is_empty() {
        note("there are no machines; `dwell machines create` makes one");
        return Ok(());
    }
    let now = clock::wall();
    let chars = short_ids(machines.iter().map(|machine| machine.id.as_str()));
    let rows = machines.iter().map(|machine| {
        [
            machine.id.chars().take(chars).collect(),
            machine.name.clone(),
            version(machine.version),
            machine.gpu.clone().unwrap_or_default(),
            minutes(machine.timeout).unwrap_or_default(),
            ago(machine.updated_at, now),
            machine
                .command
                .as_ref()
                .map(command_line)
                .unwrap_or_default(),
        ]
    });
    print(&table(
        [
            "ID", "NAME", "VERSION", "GPU", "TIMEOUT", "CHANGED", "COMMAND",
        ],
        rows,
    ))
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::machine(&client, &args.machine).await?.id;
    let answer = client.machine(&id).await?;
    if args.json.json {
        return print(&answer.json);
    }
    print(&details(&answer.value))
}

fn details(machine: &MachineRow) -> String {
    let environment = machine.environment.as_ref().map(|environment| {
        let variables = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        variables.collect::<Vec<_>>().join(" ")
    });
    pairs([
        ("id", Some(machine.id.clone())),
        ("name", Some(machine.name.clone())),
        ("version", Some(version(machine.version))),
        ("command", machine.command.as_ref().map(command_line)),
        ("port", machine.port.map(|port| port.to_string())),
        ("workdir", machine.workdir.clone()),
        ("environment", environment.filter(|text| !text.is_empty())),
        ("gpu", machine.gpu.clone()),
        ("timeout", minutes(machine.timeout)),
        ("ready path", machine.ready_path.clone()),
        (
            "access",
            machine.access.map(|access| {
                match access {
                    Access::Link => "link",
                    Access::Private => "private",
                }
                .to_owned()
            }),
        ),
        ("image", machine.image.clone()),
        ("created", machine.created_at.map(clock::rfc3339)),
        ("changed", machine.updated_at.map(clock::rfc3339)),
    ])
}

async fn update(args: UpdateArgs) -> Result<(), Failure> {
    let patch = spec(args.name, args.command, args.argv, &args.app)?;
    if patch == MachineSpec::default() {
        return Err(Failure::new(
            "nothing to change was named; `dwell machines update --help` lists what can be",
        ));
    }
    let client = args.server.client()?;
    let id = resolve::machine(&client, &args.machine).await?.id;
    let answer = client.update_machine(&id, &patch).await?;
    if args.json.json {
        return print(&answer.json);
    }
    print(&format!("{id} version {}", version(answer.value.version)))
}

async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let machine = resolve::machine(&client, &args.machine).await?;
    let json = client.delete_machine(&machine.id).await?;
    if args.json.json {
        return print(&json);
    }
    print(&format!("{} deleted", machine.id))
}

async fn versions(args: VersionsArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::machine(&client, &args.machine).await?.id;
    let answer = client.versions(&id).await?;
    if args.json.json {
        return print(&answer.json);
    }
    let now = clock::wall();
    let rows = answer.value.iter().map(|row| {
        [
            version(row.version),
            row.id.clone(),
            row.gpu.clone().unwrap_or_default(),
            minutes(row.timeout).unwrap_or_default(),
            ago(row.created_at, now),
            row.command.as_ref().map(command_line).unwrap_or_default(),
        ]
    });
    print(&table(
        ["VERSION", "ID", "GPU", "TIMEOUT", "CREATED", "COMMAND"],
        rows,
    ))
}

fn version(number: Option<u32>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

fn minutes(minutes: Option<u32>) -> Option<String> {
    minutes.map(|minutes| format!("{minutes} min"))
}
