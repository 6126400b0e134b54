//! A session from its creation to its end, as whoever started it sees it.

use std::time::Duration;

use dwell_core::time::Millis;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::interrupts::Interrupts;
use super::output::{Failure, dollars};
use super::progress::{Lines, Progress};
use super::sessions::{QUIET, log_line};
use crate::client::logs::LogEvent;
use crate::client::wire::{NewSession, Session, Status};
use crate::client::{Answer, Client, ClientError};
use crate::clock;

/// How often to look while something is about to happen.
const SOON: Duration = Duration::from_millis(100);
/// How often to look, and to count down, while a session runs.
const CALM: Duration = Duration::from_secs(1);
/// So long after a session's time was up, a server that has not answered since is not
/// waited for any more.
const OVERDUE: Millis = Millis::from_seconds(60);
/// So many last lines of the log are shown when a session failed.
const LAST_LINES: usize = 10;

/// How a session is followed.
#[derive(Clone, Copy)]
pub struct Follow {
    /// Only until its app answers.
    pub detach: bool,
    /// With what its app writes.
    pub logs: bool,
    /// With the API's own JSON in the place of the URL.
    pub json: bool,
}

/// What following came to.
enum End {
    /// The session has ended.
    Ended(Box<Session>),
    /// It runs, and that is all we wanted to know.
    Left,
}

/// Start a session and follow it. A first interrupt ends it, a second one us.
pub async fn follow(
    client: &Client,
    new: &NewSession,
    how: Follow,
    interrupts: &Interrupts,
) -> Result<(), Failure> {
    let mut progress = Progress::new();
    progress.show("asking for a session", "");
    // A first interrupt does not break this off: what was created must be known to be
    // ended.
    let id = tokio::select! {
        created = client.create_session(new) => created?.session_id,
        () = interrupts.at_least(2) => {
            return Err(Failure::new(
                "left while a session was asked for; `dwell ls` shows whether there is one",
            ));
        }
    };
    progress.lines().note(&format!("session {id}"));
    let logs = how
        .logs
        .then(|| tail(client.clone(), id.clone(), progress.lines().clone()));
    let end = tokio::select! {
        end = until_end(client, &id, how, interrupts, &mut progress) => end?,
        () = interrupts.at_least(2) => {
            return Err(Failure::new(format!(
                "left without waiting; the end of session {id} was asked for"
            )));
        }
    };
    match end {
        End::Left => {
            progress
                .lines()
                .note(&format!("it goes on; `dwell stop {id}` ends it"));
            Ok(())
        }
        End::Ended(session) => {
            progress.finish();
            if let Some(logs) = logs {
                // Its last lines may still be on their way.
                let _ = tokio::time::timeout(QUIET, logs).await;
            }
            tell_end(client, &session, how, &progress).await
        }
    }
}

async fn until_end(
    client: &Client,
    id: &str,
    how: Follow,
    interrupts: &Interrupts,
    progress: &mut Progress,
) -> Result<End, Failure> {
    let mut stop_sent = false;
    let mut shown = false;
    let mut timeout_end = None;
    let began = clock::monotonic();
    loop {
        let wants_end = interrupts.so_far() > 0;
        if wants_end && !stop_sent {
            progress
                .lines()
                .note("ending the session; once more to leave without waiting");
            stop_sent = stop(client, id).await?;
        }
        let answer = match client.session(id).await {
            Ok(answer) => answer,
            // A server that is restarted comes back; the session goes on meanwhile.
            Err(error @ ClientError::Unreachable { .. }) => {
                let over = timeout_end.is_some_and(|end| clock::wall().since(end) > OVERDUE);
                if wants_end || over {
                    return Err(error.into());
                }
                progress.show("the server does not answer; the session goes on", "");
                pause(CALM, interrupts, wants_end).await;
                continue;
            }
            Err(error @ (ClientError::Refused { .. } | ClientError::NotUnderstood { .. })) => {
                return Err(error.into());
            }
        };
        let Answer {
            value: session,
            json,
        } = answer;
        timeout_end = session.timeout_end.or(timeout_end);
        let elapsed = format!("{} s", clock::monotonic().since(began).0 / 1_000);
        let wait = match session.status {
            Status::Queued => {
                let position = session
                    .queue_position
                    .map(|position| format!(", position {position}"))
                    .unwrap_or_default();
                let gpu = &session.gpu;
                let place = session.job.as_ref().map_or(position, |job| {
                    format!(" at {}: {}", job.launcher, job.words())
                });
                progress.show(&format!("queued for {gpu}{place}"), &elapsed);
                SOON
            }
            Status::Starting => {
                progress.show("starting", &elapsed);
                SOON
            }
            Status::Running => {
                if !shown && let Some(url) = &session.url {
                    progress.lines().print(if how.json { &json } else { url })?;
                    shown = true;
                    if how.detach {
                        return Ok(End::Left);
                    }
                }
                progress.show("running", &time_left(&session));
                if shown { CALM } else { SOON }
            }
            Status::Stopping => {
                progress.show("stopping", "");
                SOON
            }
            Status::Ended => {
                if how.json {
                    progress.lines().print(&json)?;
                }
                return Ok(End::Ended(Box::new(session)));
            }
        };
        pause(wait, interrupts, wants_end).await;
    }
}

/// For a while, or until somebody wants the end and we do not know it yet.
async fn pause(wait: Duration, interrupts: &Interrupts, known: bool) {
    tokio::select! {
        () = sleep(wait) => {}
        () = interrupts.at_least(1), if !known => {}
    }
}

/// Ask for the end. Says whether that is known to the server now.
async fn stop(client: &Client, id: &str) -> Result<bool, Failure> {
    match client.stop(id, false).await {
        // Refused: it has ended by itself.
        Ok(_) | Err(ClientError::Refused { status: 404, .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The time that is left, as the clocks of server and client agree on it.
pub fn time_left(session: &Session) -> String {
    session.timeout_end.map_or_else(String::new, |end| {
        let left = Millis(end.since(clock::wall()).0 / 1_000 * 1_000);
        if left == Millis::ZERO {
            "its time is up".to_owned()
        } else {
            format!("{left} left")
        }
    })
}

/// Say how it ended; a failure is ours too.
async fn tell_end(
    client: &Client,
    session: &Session,
    how: Follow,
    progress: &Progress,
) -> Result<(), Failure> {
    let reason = session.end_reason.as_deref().unwrap_or("ended");
    let failed = matches!(reason, "failed" | "lost" | "over_budget");
    if failed && !how.logs {
        for line in last_lines(client, &session.id).await {
            progress.lines().note(&format!("  | {line}"));
        }
    }
    let sentence = end_sentence(session);
    if failed {
        let id = &session.id;
        return Err(Failure::new(format!(
            "{sentence} (`dwell logs {id}` has what it wrote)"
        )));
    }
    let ran = session.started_at.zip(session.ended_at);
    let bill = ran.map(|(start, end)| {
        let cost = session.cost.filter(|cost| *cost > 0.0);
        let cost = cost.map(|cost| format!(" and cost {}", dollars(cost)));
        let span = Millis(end.since(start).0);
        format!("; it ran for {span}{}", cost.unwrap_or_default())
    });
    progress
        .lines()
        .note(&format!("{sentence}{}", bill.unwrap_or_default()));
    Ok(())
}

/// Why a session ended, for a person.
pub fn end_sentence(session: &Session) -> String {
    let reason = match session.end_reason.as_deref() {
        Some("cancelled") => "cancelled",
        Some("timed_out") => "its time was up",
        Some("idle") => "nobody used it",
        Some("exited") => "its app exited",
        Some("failed") => "it failed",
        Some("lost") => "its host was lost",
        Some("over_budget") => "the money was spent",
        Some(other) => other,
        None => "no reason is known",
    };
    match &session.error {
        Some(error) => format!("the session ended: {reason}: {error}"),
        None => format!("the session ended: {reason}"),
    }
}

/// Show what the app writes, until the end of its log.
fn tail(client: Client, id: String, lines: Lines) -> JoinHandle<()> {
    tokio::spawn(async move {
        let Ok(mut log) = client.logs(&id).await else {
            return;
        };
        while let Ok(Some(event)) = log.next().await {
            if let LogEvent::Line(line) = event {
                lines.app(&log_line(&line));
            }
        }
    })
}

/// The end of a log, as far as it can be had quickly.
async fn last_lines(client: &Client, id: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let Ok(mut log) = client.logs(id).await else {
        return lines;
    };
    while let Ok(Ok(Some(event))) = tokio::time::timeout(QUIET, log.next()).await {
        if let LogEvent::Line(line) = event {
            lines.push(line.message);
        }
    }
    lines.split_off(lines.len().saturating_sub(LAST_LINES))
}
