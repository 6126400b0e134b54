//! `dwell keys`: who may use a server.

use clap::{Args, Subcommand};
use dwell_core::owner::{OrgId, Principal, UserId};

use super::args::{JsonArg, ServerArgs, StoreArg};
use super::output::{Failure, ago, note, print, short_ids, table};
use super::resolve;
use crate::client::Client;
use crate::client::find::{Found, FoundBy, NoServer};
use crate::client::wire::{KeyRow, NewKey};
use crate::clock;
use crate::data_dir::DataDir;
use crate::server::create_key_offline;

/// API keys: who may use the server, and as whom
#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Create(CreateArgs),
    Ls(LsArgs),
    Revoke(RevokeArgs),
}

/// Make a key; prints it and nothing else. It is not shown again
///
/// With a server on the data directory, by its admin key; with none, in the store
/// itself.
#[derive(Args)]
#[command(after_help = "Examples:
  dwell keys create --user ada
  dwell keys create --user ada --org lovelace --name notebook
  DWELL_API_KEY=$(dwell keys create --user ada) dwell ls")]
struct CreateArgs {
    /// The user that it speaks for
    #[arg(long, value_name = "NAME", value_parser = name)]
    user: String,
    /// The organisation that it acts in; what is made with it is the organisation's
    #[arg(long, value_parser = name)]
    org: Option<String>,
    /// It may make keys for others
    #[arg(long)]
    admin: bool,
    /// What to call the key
    #[arg(long, default_value = "command line", value_parser = name)]
    name: String,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    store: StoreArg,
}

/// List the keys that are good
#[derive(Args)]
#[command(after_help = "Example:
  dwell keys ls")]
struct LsArgs {
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// A key is to be good no more
#[derive(Args)]
#[command(after_help = "Example:
  dwell keys revoke 5d0c1f22")]
struct RevokeArgs {
    /// The key's id, or its beginning; not the key
    id: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

fn name(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it must not be empty".to_owned());
    }
    Ok(text.to_owned())
}

/// Do what is asked about keys.
pub async fn keys(args: KeysArgs) -> Result<(), Failure> {
    match args.action {
        Action::Create(args) => create(args).await,
        Action::Ls(args) => ls(args).await,
        Action::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let wanted = args.server.wanted();
    match wanted.find() {
        // Nobody named a server and none holds the data directory: the one that may
        // be at the default address is somebody else's.
        Ok(Found {
            by: FoundBy::Default,
            key: None,
            ..
        })
        | Err(NoServer(_)) => create_offline(&wanted.data_dir(), args).await,
        Ok(found) => {
            let new = NewKey {
                name: args.name,
                user: Some(args.user),
                org: args.org,
                admin: args.admin,
            };
            let answer = Client::new(&found)?.create_key(&new).await?;
            print(&answer.value.key)
        }
    }
}

async fn create_offline(data_dir: &DataDir, args: CreateArgs) -> Result<(), Failure> {
    let principal = Principal {
        user: UserId(args.user),
        org: args.org.map(OrgId),
        admin: args.admin,
    };
    let store = args.store.place().map_err(Failure::new)?;
    print(&create_key_offline(data_dir, &store, principal, &args.name).await?)
}

async fn ls(args: LsArgs) -> Result<(), Failure> {
    let answer = args.server.client()?.keys().await?;
    if args.json.json {
        return print(&answer.json);
    }
    if answer.value.is_empty() {
        note("there are no keys; `dwell keys create` makes one");
        return Ok(());
    }
    print(&list(&answer.value))
}

fn list(keys: &[KeyRow]) -> String {
    let now = clock::wall();
    let chars = short_ids(keys.iter().map(|key| key.id.as_str()));
    let rows = keys.iter().map(|key| {
        [
            key.id.chars().take(chars).collect(),
            key.name.clone(),
            key.user_id.clone().unwrap_or_default(),
            key.org_id.clone().unwrap_or_default(),
            if key.admin { "yes" } else { "" }.to_owned(),
            ago(key.created_at, now),
        ]
    });
    table(["ID", "NAME", "USER", "ORG", "ADMIN", "CREATED"], rows)
}

async fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::key(&client, &args.id).await?;
    let json = client.revoke_key(&id).await?;
    if args.json.json {
        return print(&json);
    }
    print(&format!("{id} revoked"))
}
