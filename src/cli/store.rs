//! `dwell store`: what is on record, as a whole.

use std::io::{IsTerminal, stderr};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{Failure, print};
use crate::store::copy::{Place, copy};

/// What is on record, as a whole
#[derive(Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Copy(CopyArgs),
}

/// Copy all that is on record into an empty store, of the same kind or another
///
/// All of it or nothing: it is written in one transaction, and read back and compared
/// before that counts. No server may run on either. Sessions' directories, logs and
/// admin.key stay in the data directory.
#[derive(Args)]
#[command(after_help = "Examples:
  dwell store copy ~/.local/share/dwell postgres://dwell@db.example.com/dwell
  dwell store copy postgres://dwell@db.example.com/dwell backup.db")]
struct CopyArgs {
    /// A data directory, an SQLite file, or postgres://USER@HOST/DATABASE. Others can see
    /// a command line: give a password by PGPASSWORD or PGPASSFILE
    #[arg(value_name = "FROM")]
    from: String,
    /// The same; nothing may be on record there
    #[arg(value_name = "TO")]
    to: String,
}

/// Do what is asked about stores.
pub async fn store(args: StoreArgs) -> Result<(), Failure> {
    let Action::Copy(CopyArgs { from, to }) = args.action;
    let place = |text: &str| Place::parse(text).map_err(Failure::new);
    let (from, to) = (place(&from)?, place(&to)?);
    let bar = stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{wide_bar} {percent} % {eta}");
        let bar = ProgressBar::new(0);
        style.map_or(bar.clone(), |style| bar.with_style(style))
    });
    let mut show = |done, all| {
        if let Some(bar) = &bar {
            bar.set_length(all);
            bar.set_position(done);
        }
    };
    let copied = copy(&from, &to, &mut show).await;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let rows = copied.map_err(|error| Failure::new(error.0))?;
    print(&format!(
        "{rows} rows of {from} are in {to}, and are the same"
    ))
}
