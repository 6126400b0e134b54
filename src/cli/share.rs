//! `dwell share`: letting others into a private session.

use clap::{Args, Subcommand};

use super::args::{JsonArg, ServerArgs};
use super::output::{Failure, ago, note, print, rough, short_ids, table};
use super::resolve::{self, Among};
use crate::client::wire::{NewShare, ShareRow};
use crate::clock;

/// Share links: let others into a private session for a while
#[derive(Args)]
pub struct ShareArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Create(CreateArgs),
    Ls(LsArgs),
    Revoke(RevokeArgs),
    Token(TokenArgs),
}

/// Make a link; prints it and nothing else. It is not shown again
#[derive(Args)]
#[command(after_help = "Examples:
  dwell share create 3f2a91c0
  dwell share create 3f2a91c0 --view --minutes 60 --name 'for the review'")]
struct CreateArgs {
    /// The session's id, or its beginning
    id: String,
    /// Who comes by it may look, and change nothing: no forms, no WebSockets
    #[arg(long)]
    view: bool,
    /// For how many minutes it is good [default: a day]
    #[arg(long, value_name = "MIN", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: Option<u32>,
    /// What to call it
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// List a session's links, and who came by them
#[derive(Args)]
#[command(after_help = "Example:
  dwell share ls 3f2a91c0")]
struct LsArgs {
    /// The session's id, or its beginning
    id: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// A link is to be good no more
#[derive(Args)]
#[command(after_help = "Example:
  dwell share revoke 3f2a91c0 5d0c1f22")]
struct RevokeArgs {
    /// The session's id, or its beginning
    id: String,
    /// The link's id, or its beginning; not its secret
    link: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Print the token by which a program comes to the session's app
#[derive(Args)]
#[command(after_help = "Example:
  curl -H \"Authorization: Bearer $(dwell share token 3f2a91c0)\" URL")]
struct TokenArgs {
    /// The session's id, or its beginning
    id: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Do what is asked about sharing.
pub async fn share(args: ShareArgs) -> Result<(), Failure> {
    match args.action {
        Action::Create(args) => create(args).await,
        Action::Ls(args) => ls(args).await,
        Action::Revoke(args) => revoke(args).await,
        Action::Token(args) => token(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::Open).await?;
    let new = NewShare {
        name: args.name,
        scope: args.view.then_some("view"),
        minutes: args.minutes,
    };
    let answer = client.create_share(&id, &new).await?;
    if args.json.json {
        return print(&answer.json);
    }
    match answer.value.url {
        Some(url) => print(&url),
        None => {
            note("the session has no URL yet; put ?cd_token= and this behind it once it has");
            print(&answer.value.token)
        }
    }
}

async fn ls(args: LsArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::All).await?;
    let answer = client.shares(&id).await?;
    if args.json.json {
        return print(&answer.json);
    }
    if answer.value.is_empty() {
        note("the session is not shared; `dwell share create` makes a link");
        return Ok(());
    }
    print(&list(&answer.value))
}

fn list(links: &[ShareRow]) -> String {
    let now = clock::wall();
    let chars = short_ids(links.iter().map(|link| link.id.as_str()));
    let rows = links.iter().map(|link| {
        let last = link.recent_visits.first();
        [
            link.id.chars().take(chars).collect(),
            link.name.clone(),
            link.scope.clone(),
            link.created_by.clone(),
            good_for(link, now),
            link.visits.to_string(),
            last.map_or_else(String::new, |visit| {
                format!("{} {}", visit.from, ago(visit.at, now))
            }),
        ]
    });
    let head = ["ID", "NAME", "MAY", "MADE BY", "GOOD FOR", "VISITS", "LAST"];
    table(head, rows)
}

fn good_for(link: &ShareRow, now: dwell_core::time::Timestamp) -> String {
    match (link.good, link.revoked_at, link.expires_at) {
        (true, _, Some(end)) => rough(end.since(now)),
        (true, _, None) => "the session".to_owned(),
        (false, Some(_), _) => "revoked".to_owned(),
        (false, None, _) => "over".to_owned(),
    }
}

async fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::Open).await?;
    let link = resolve::share(&client, &id, &args.link).await?;
    let json = client.revoke_share(&id, &link).await?;
    if args.json.json {
        return print(&json);
    }
    print(&format!("{link} revoked"))
}

async fn token(args: TokenArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::Open).await?;
    let answer = client.token(&id).await?;
    if args.json.json {
        return print(&answer.json);
    }
    print(&answer.value.token)
}
