//! The command line. Each command is a small client of the API like any other;
//! `serve` and `run` may be the server too.

mod args;
mod doctor;
mod follow;
mod gpus;
mod interrupts;
mod keys;
mod machines;
mod output;
mod progress;
mod resolve;
mod run;
mod serve;
mod sessions;
mod share;
mod store;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use output::{Failure, print};

/// Interactive sessions on GPUs: a URL, a deadline and a true bill
#[derive(Parser)]
#[command(
    name = "dwell",
    version,
    after_help = "Examples:
  dwell run -- python3 -m http.server {port}    a session, now
  dwell serve                                   a server for others
  dwell ls                                      what is open

Each command has examples of its own: dwell help COMMAND.
Exit codes: 0 done, 1 failed, 2 usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Run(run::RunArgs),
    Up(run::UpArgs),
    Ls(sessions::LsArgs),
    Show(sessions::ShowArgs),
    Logs(sessions::LogsArgs),
    Extend(sessions::ExtendArgs),
    Snapshot(sessions::SnapshotArgs),
    Stop(sessions::StopArgs),
    Share(share::ShareArgs),
    Usage(usage::UsageArgs),
    Gpus(gpus::GpusArgs),
    Machines(machines::MachinesArgs),
    Keys(keys::KeysArgs),
    Store(store::StoreArgs),
    Doctor(doctor::DoctorArgs),
    Completions(CompletionsArgs),
}

/// Print the completions for a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:
  source <(dwell completions bash)
  dwell completions zsh > ~/.zfunc/_dwell
  dwell completions fish > ~/.config/fish/completions/dwell.fish")]
struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Do what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help is an "error" too, with exit code 0. If it cannot be shown there
            // is nobody to tell.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|why| Failure::new(format!("the runtime cannot be started: {why}")))
        .and_then(|runtime| {
            let outcome = runtime.block_on(obey(command));
            // Whatever still goes on in the background is not worth waiting for.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

async fn obey(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::serve(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Up(args) => run::up(args).await,
        Command::Ls(args) => sessions::ls(args).await,
        Command::Show(args) => sessions::show(args).await,
        Command::Logs(args) => sessions::logs(args).await,
        Command::Extend(args) => sessions::extend(args).await,
        Command::Snapshot(args) => sessions::snapshot(args).await,
        Command::Stop(args) => sessions::stop(args).await,
        Command::Share(args) => share::share(args).await,
        Command::Usage(args) => usage::usage(args).await,
        Command::Gpus(args) => gpus::gpus(args).await,
        Command::Machines(args) => machines::machines(args).await,
        Command::Keys(args) => keys::keys(args).await,
        Command::Store(args) => store::store(args).await,
        Command::Doctor(args) => doctor::doctor(args).await,
        Command::Completions(args) => completions(&args),
    }
}

fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "dwell", &mut script);
    print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            let leaf = command.get_subcommands().next().is_none();
            if leaf {
                let examples = command.get_after_help().map(ToString::to_string);
                let name = command.get_name();
                assert!(
                    examples.is_some_and(|text| text.starts_with("Example")),
                    "`{name}` has no examples"
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
