//! Commands on sessions: `ls show logs extend snapshot stop`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use dwell_core::time::Timestamp;

use super::args::{JsonArg, ServerArgs};
use super::follow::{end_sentence, time_left};
use super::output::{Failure, ago, dollars, note, pairs, plain, print, rough, short_ids, table};
use super::resolve::{self, Among};
use crate::client::logs::LogEvent;
use crate::client::wire::{Job, MachineRow, Session, Status};
use crate::client::{Client, ClientError};
use crate::clock;
use crate::session_log::{LogLevel, LogLine};

/// A log in which nothing has come for so long has, for now, no more to say.
pub const QUIET: Duration = Duration::from_secs(1);
/// How often to look whether sessions have ended.
const LOOK: Duration = Duration::from_millis(200);

/// List sessions
#[derive(Args)]
#[command(after_help = "Examples:
  dwell ls
  dwell ls --all
  dwell ls --json | jq -r '.[].url'")]
pub struct LsArgs {
    /// Those that have ended too
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Show one session
#[derive(Args)]
#[command(after_help = "Examples:
  dwell show 3f2a91c0
  dwell show 3f2a91c0 --json")]
pub struct ShowArgs {
    /// The session's id, or its beginning
    id: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Show what a session's app wrote, also after its end
#[derive(Args)]
#[command(after_help = "Examples:
  dwell logs 3f2a91c0
  dwell logs -f 3f2a91c0
  dwell logs --json 3f2a91c0 | jq -r .message")]
pub struct LogsArgs {
    /// Go on until the session ends
    #[arg(long, short)]
    follow: bool,
    /// With the time of each line
    #[arg(long, short)]
    timestamps: bool,
    /// The session's id, or its beginning
    id: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Give a running session more time
#[derive(Args)]
#[command(after_help = "Example:
  dwell extend 3f2a91c0 30")]
pub struct ExtendArgs {
    /// The session's id, or its beginning
    id: String,
    /// The minutes to add
    #[arg(value_name = "MIN", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Keep a session's files as a new version of its machine
#[derive(Args)]
#[command(after_help = "Example:
  dwell snapshot 3f2a91c0")]
pub struct SnapshotArgs {
    /// The session's id, or its beginning
    id: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// End sessions
#[derive(Args)]
#[command(after_help = "Examples:
  dwell stop 3f2a91c0
  dwell stop --wait 3f2a91c0 77b0
  dwell stop --all")]
pub struct StopArgs {
    /// The sessions' ids, or their beginnings
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// All that are open
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Return only when their last processes are gone
    #[arg(long, short)]
    wait: bool,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// List sessions.
pub async fn ls(args: LsArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let answer = client.sessions(args.all).await?;
    if args.json.json {
        return print(&answer.json);
    }
    let sessions = answer.value;
    if sessions.is_empty() {
        note(if args.all {
            "there are no sessions"
        } else {
            "there are no open sessions; `dwell ls --all` shows those that have ended"
        });
        return Ok(());
    }
    let named = sessions.iter().any(|session| session.machine_id.is_some());
    let machines = if named {
        client.machines().await?.value
    } else {
        Vec::new()
    };
    print(&list(&sessions, &machines, clock::wall()))
}

fn list(sessions: &[Session], machines: &[MachineRow], now: Timestamp) -> String {
    let names: BTreeMap<_, _> = machines
        .iter()
        .map(|machine| (machine.id.as_str(), machine.name.as_str()))
        .collect();
    let chars = short_ids(sessions.iter().map(|session| session.id.as_str()));
    let rows = sessions.iter().map(|session| {
        let machine = session.machine_id.as_deref().map(|id| {
            // A machine may be deleted before its sessions end.
            names.get(id).copied().unwrap_or("(deleted)")
        });
        [
            session.id.chars().take(chars).collect(),
            status(session),
            session.gpu.clone(),
            machine.unwrap_or_default().to_owned(),
            ago(session.created_at, now),
            when(session, now),
            dollars(session.cost.unwrap_or(0.0)),
            session.url.clone().unwrap_or_default(),
        ]
    });
    table(
        [
            "ID", "STATUS", "GPU", "MACHINE", "CREATED", "TIME", "COST", "URL",
        ],
        rows,
    )
}

/// `running`, `queued 3`, `timed out`.
fn status(session: &Session) -> String {
    match session.status {
        Status::Queued => session.queue_position.map_or_else(
            || "queued".to_owned(),
            |position| format!("queued {position}"),
        ),
        Status::Starting => "starting".to_owned(),
        Status::Running => "running".to_owned(),
        Status::Stopping => "stopping".to_owned(),
        Status::Ended => session
            .end_reason
            .as_deref()
            .unwrap_or("ended")
            .replace('_', " "),
    }
}

/// How much time is left, or how long ago it ended.
fn when(session: &Session, now: Timestamp) -> String {
    match session.status {
        Status::Running => session
            .timeout_end
            .map(|end| format!("{} left", rough(end.since(now))))
            .unwrap_or_default(),
        Status::Ended => session
            .ended_at
            .map(|end| format!("ended {} ago", rough(now.since(end))))
            .unwrap_or_default(),
        Status::Queued | Status::Starting | Status::Stopping => session
            .timeout
            .map(|minutes| format!("{minutes} min granted"))
            .unwrap_or_default(),
    }
}

/// Show one session.
pub async fn show(args: ShowArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::All).await?;
    let answer = client.session(&id).await?;
    if args.json.json {
        return print(&answer.json);
    }
    let session = answer.value;
    let now = clock::wall();
    let at = |moment: Option<Timestamp>| {
        moment.map(|at| format!("{} ({})", clock::rfc3339(at), ago(Some(at), now)))
    };
    let ended = session.status == Status::Ended;
    print(&pairs([
        ("id", Some(session.id.clone())),
        ("status", Some(status(&session))),
        ("url", session.url.clone()),
        ("gpu", Some(session.gpu.clone())),
        ("machine", session.machine_id.clone()),
        ("user", session.user_id.clone()),
        ("org", session.org_id.clone()),
        ("created", at(session.created_at)),
        ("started", at(session.started_at)),
        (
            "timeout",
            session.timeout.map(|minutes| format!("{minutes} min")),
        ),
        ("time", session.timeout_end.map(|_| time_left(&session))),
        ("ended", at(session.ended_at)),
        ("why", ended.then(|| end_sentence(&session))),
        ("cost", session.cost.map(dollars)),
        ("job", session.job.as_ref().map(job_name)),
        (
            "expected",
            at(session.job.as_ref().and_then(|job| job.starts_at)),
        ),
    ]))?;
    match &session.job {
        Some(job) => print(&timeline(job)),
        None => Ok(()),
    }
}

/// `slurm 4711`.
fn job_name(job: &Job) -> String {
    format!("{} {}", job.launcher, job.id)
}

/// What its engine said of a job, each word with its moment.
fn timeline(job: &Job) -> String {
    let rows = job.timeline.iter().map(|said| {
        let at = said.at.map(clock::rfc3339).unwrap_or_default();
        [at, said.words.clone()]
    });
    table(["WHEN", "WHAT ITS ENGINE SAID"], rows)
}

/// Show a session's log.
pub async fn logs(args: LogsArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::All).await?;
    let mut log = client.logs(&id).await?;
    loop {
        let next = log.next();
        let event = if args.follow {
            next.await?
        } else {
            // The stream of an open session does not end by itself: it is over for
            // now when it falls silent.
            match tokio::time::timeout(QUIET, next).await {
                Ok(event) => event?,
                Err(_) => None,
            }
        };
        match event {
            None => return Ok(()),
            Some(LogEvent::KeepAlive) if args.follow => {}
            Some(LogEvent::KeepAlive) => return Ok(()),
            Some(LogEvent::Line(line)) => print_line(&line, &args)?,
        }
    }
}

fn print_line(line: &LogLine, args: &LogsArgs) -> Result<(), Failure> {
    if args.json.json {
        let json = serde_json::to_string(line).map_err(|why| Failure::new(why.to_string()))?;
        return print(&json);
    }
    // As the app wrote it, colours included: a log is the app's own screen.
    let text = log_line(line);
    if args.timestamps {
        print(&format!("{} {text}", plain(&line.timestamp)))
    } else {
        print(&text)
    }
}

/// A line of a log; what is the agent's remark says so.
pub fn log_line(line: &LogLine) -> String {
    match line.level {
        LogLevel::Error => format!("dwell: {}", line.message),
        LogLevel::Debug | LogLevel::Info | LogLevel::Warning => line.message.clone(),
    }
}

/// Give a session more time.
pub async fn extend(args: ExtendArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::Open).await?;
    let json = client.extend(&id, args.minutes).await?;
    if args.json.json {
        return print(&json);
    }
    let session = client.session(&id).await?.value;
    print(&time_left(&session))
}

/// Keep a session's files.
pub async fn snapshot(args: SnapshotArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let id = resolve::session(&client, &args.id, Among::All).await?;
    let answer = client.snapshot(&id).await?;
    if args.json.json {
        return print(&answer.json);
    }
    let version = answer.value.get("version_id").and_then(|id| id.as_str());
    print(version.unwrap_or("done"))
}

/// End sessions.
pub async fn stop(args: StopArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let ids = if args.all {
        let sessions = client.sessions(false).await?.value;
        sessions.into_iter().map(|session| session.id).collect()
    } else {
        let mut ids = Vec::new();
        for text in &args.ids {
            ids.push(resolve::session(&client, text, Among::Open).await?);
        }
        ids
    };
    // All are asked to end before any is waited for.
    let mut failed = false;
    let mut asked = Vec::new();
    for id in ids {
        match client.stop(&id, false).await {
            Ok(_) => asked.push(id),
            Err(error) => {
                note(&format!("error: {id}: {error}"));
                failed = true;
            }
        }
    }
    for id in &asked {
        if args.wait {
            wait_for_end(&client, id).await?;
        }
        if args.json.json {
            print(&client.session(id).await?.json)?;
        } else {
            let word = if args.wait { "ended" } else { "stopping" };
            print(&format!("{id} {word}"))?;
        }
    }
    if failed {
        return Err(Failure::Said);
    }
    Ok(())
}

async fn wait_for_end(client: &Client, id: &str) -> Result<(), ClientError> {
    while client.session(id).await?.value.status != Status::Ended {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwell_core::time::Millis;

    const NOW: Timestamp = Timestamp(1_795_435_200_000);

    #[test]
    fn a_list_says_what_each_session_is_about_to_do() {
        let session = |id: &str, status| Session {
            id: id.into(),
            gpu: "A10G".into(),
            status,
            created_at: Some(NOW.minus(Millis::from_minutes(3))),
            ..Session::default()
        };
        let sessions = [
            Session {
                queue_position: Some(2),
                timeout: Some(15),
                ..session("11111111-a", Status::Queued)
            },
            Session {
                timeout_end: Some(NOW.plus(Millis::from_minutes(7))),
                url: Some("http://h:20000".into()),
                machine_id: Some("m".into()),
                cost: Some(0.25),
                ..session("22222222-b", Status::Running)
            },
            Session {
                end_reason: Some("timed_out".into()),
                ended_at: Some(NOW.minus(Millis::from_minutes(120))),
                ..session("33333333-c", Status::Ended)
            },
        ];
        let machines = [MachineRow {
            id: "m".into(),
            name: "lab".into(),
            ..MachineRow::default()
        }];
        let expected = "\
ID        STATUS     GPU   MACHINE  CREATED    TIME            COST   URL
11111111  queued 2   A10G           3 min ago  15 min granted  $0.00
22222222  running    A10G  lab      3 min ago  7 min left      $0.25  http://h:20000
33333333  timed out  A10G           3 min ago  ended 2 h ago   $0.00";
        assert_eq!(list(&sessions, &machines, NOW), expected);
    }
}
