//! Arguments that several commands share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use dwell_core::machine::{Access, AppCommand};

use super::output::Failure;
use crate::client::Client;
use crate::client::find::Wanted;
use crate::config::parse_store;
use crate::store::StoreAt;

/// Which server, and by what key.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Where the server is; else the one on the data directory, else http://127.0.0.1:8080
    #[arg(long, env = "DWELL_URL", value_name = "URL", hide_env_values = true)]
    url: Option<String>,
    /// The API key; else the admin key of the data directory
    #[arg(
        long,
        env = "DWELL_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// The data directory whose server is meant [default: ~/.local/share/dwell]
    #[arg(
        long,
        env = "DWELL_DATA_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,
}

impl ServerArgs {
    /// What is said of the server. A variable that is set to nothing says nothing.
    pub fn wanted(&self) -> Wanted {
        let said = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        Wanted {
            url: said(&self.url),
            api_key: said(&self.api_key),
            data_dir: self
                .data_dir
                .clone()
                .filter(|dir| !dir.as_os_str().is_empty()),
        }
    }

    /// A client of the server that is meant.
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(&self.wanted().find()?)?)
    }
}

/// Where records are kept.
#[derive(Args, Clone, Debug)]
pub struct StoreArg {
    /// Where records are kept: sqlite (in the data directory), or a Postgres database,
    /// postgres://USER@HOST/DATABASE. Others can see a command line: give the password by
    /// PGPASSWORD, PGPASSFILE or in the config file [default: sqlite]
    #[arg(long, env = "DWELL_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
}

impl StoreArg {
    /// What is said. A variable that is set to nothing says nothing.
    pub fn said(&self) -> Option<String> {
        self.store.clone().filter(|text| !text.trim().is_empty())
    }

    /// Where they are, for those who read no config file.
    ///
    /// # Errors
    /// A sentence that says what it should be.
    pub fn place(&self) -> Result<StoreAt, String> {
        self.said().map_or(Ok(StoreAt::DataDir), |text| {
            parse_store(&text).map_err(|why| format!("--store: {why}"))
        })
    }
}

/// What an app needs besides its command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Session")]
pub struct AppArgs {
    /// The GPU type, such as A10G or CPU [default: the server's first]
    #[arg(long, value_name = "TYPE")]
    pub gpu: Option<String>,
    /// How long it may run, in minutes, from when it answers [default: 15]
    #[arg(long, value_name = "MIN", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: Option<u32>,
    /// The port that the app listens on, if it cannot be told one by {port} or $PORT
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// A variable for the app's otherwise clean environment; may be repeated
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    pub environment: Vec<(String, String)>,
    /// Where the app starts, on the server's host [default: a private directory]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// The app is ready when this path answers [default: /]
    #[arg(long, value_name = "PATH")]
    pub ready_path: Option<String>,
    /// Who may use the URL: whoever has the link, or only holders of a key
    #[arg(long, value_name = "WHO")]
    access: Option<AccessArg>,
    /// Run it in a container of this image, where the server runs containers
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// With --image: nothing can be written but the session's files and /tmp
    #[arg(long)]
    pub read_only: bool,
    /// With --image: a capability that the container keeps; may be repeated
    #[arg(long = "capability", value_name = "NAME")]
    pub capabilities: Vec<String>,
}

impl AppArgs {
    /// The container's capabilities, if they are said.
    pub fn capabilities(&self) -> Option<Vec<String>> {
        (!self.capabilities.is_empty()).then(|| self.capabilities.clone())
    }

    /// The directory to start in, absolute.
    pub fn workdir(&self) -> Result<Option<String>, Failure> {
        let Some(dir) = &self.workdir else {
            return Ok(None);
        };
        std::path::absolute(dir)
            .ok()
            .and_then(|dir| dir.into_os_string().into_string().ok())
            .map(Some)
            .ok_or_else(|| Failure::new(format!("--workdir: {} is no directory", dir.display())))
    }

    /// The environment; of a variable that is given twice, the last counts.
    pub fn environment(&self) -> BTreeMap<String, String> {
        self.environment.iter().cloned().collect()
    }

    /// Who may use the URL, if that is said.
    pub fn access(&self) -> Option<Access> {
        self.access.map(Into::into)
    }
}

/// Who may use a session's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessArg {
    /// Who has the link
    Link,
    /// Who has a key of the session's owner
    Private,
}

impl From<AccessArg> for Access {
    fn from(access: AccessArg) -> Self {
        match access {
            AccessArg::Link => Self::Link,
            AccessArg::Private => Self::Private,
        }
    }
}

/// Print the API's JSON?
#[derive(Args, Clone, Copy, Debug)]
pub struct JsonArg {
    /// Print the API's own JSON
    #[arg(long)]
    pub json: bool,
}

/// An app's command in one line.
pub fn command_line(command: &AppCommand) -> String {
    match command {
        AppCommand::Shell(line) => line.clone(),
        AppCommand::Argv(words) => words.join(" "),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it like NAME=value".to_owned()),
    }
}
