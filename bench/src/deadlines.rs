//! How long after their deadlines sessions are gone.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use dwell_core::time::Millis;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::at_once::at_once;
use crate::server::{Server, Session, beside, data_dir, text};
use crate::statistics::Sample;
use crate::witness::{self, Seen};
use crate::{Figure, Result};

const HEEDFUL: u32 = 2_000;
const DEAF: u32 = 200;
/// The shortest timeout that there is.
const TIMEOUT: Millis = Millis::from_minutes(1);
/// From one session's beginning to the next one's: 2,000 end within a minute.
const PACE: Duration = Duration::from_millis(30);
const CLIENTS: u32 = 16;

pub fn deadlines(dwell: &Path) -> Result<Vec<Figure>> {
    let hello = beside("hello")?.display().to_string();
    let deaf = ["sh", "-c", "trap '' TERM; exec \"$0\"", &hello].map(str::to_owned);
    let mut figures = lateness(dwell, "that heed TERM", HEEDFUL, &[hello])?;
    figures.extend(lateness(dwell, "deaf to TERM", DEAF, &deaf)?);
    Ok(figures)
}

fn lateness(dwell: &Path, apps: &str, sessions: u32, command: &[String]) -> Result<Vec<Figure>> {
    let server = Server::start(dwell, data_dir(dwell)?, sessions)?;
    let socket = server.dir().join("witness");
    let witness = witness::watch(&socket, usize::try_from(sessions)?)?;
    let body = json!({"timeout": 1, "environment": {"WITNESS": socket}});
    let deadlines_on_record = begin(&server, sessions, command, &body)?;
    let seen = witness.join().map_err(|_| "the witness died")??;

    let deadline = |session: &Seen| session.answered.plus(TIMEOUT);
    if let Some(early) = seen.iter().find(|session| session.gone < deadline(session)) {
        return Err(format!("the session {} ended before its time", early.session).into());
    }
    let late = |session: &Seen| Duration::from(session.gone.since(deadline(session)));
    let ends = || seen.iter().map(|session| session.gone);
    let within = ends()
        .max()
        .zip(ends().min())
        .map_or(Millis::ZERO, |(last, first)| last.since(first));
    Ok(vec![
        Figure {
            what: format!("lateness of deadlines, {sessions} apps {apps}, ending within {within}"),
            measured: seen.iter().map(late).collect::<Sample>().tail(),
        },
        Figure {
            what: "the same, by the records".to_owned(),
            measured: on_record(&server, &deadlines_on_record)?.tail(),
        },
    ])
}

/// Create all of them at an even pace; the deadline of each as the server has it.
fn begin(
    server: &Server,
    sessions: u32,
    command: &[String],
    body: &Value,
) -> Result<HashMap<String, Timestamp>> {
    let began = Instant::now();
    let client = |client: u32| -> Result<Vec<(String, Timestamp)>> {
        let mut api = server.connect()?;
        (client..sessions)
            .step_by(usize::try_from(CLIENTS)?)
            .map(|number| {
                std::thread::sleep((PACE * number).saturating_sub(began.elapsed()));
                let session = Session::create_with(&mut api, command, body.clone())?;
                let path = format!("/session/{}", session.id);
                let running: Value = serde_json::from_slice(&api.get(&path)?.body)?;
                Ok((session.id, text(&running, "timeout_end")?.parse()?))
            })
            .collect()
    };
    let (_, all) = at_once((0..CLIENTS).collect(), client)?;
    Ok(all.into_iter().flatten().collect())
}

/// From each deadline to the end of the GPU event; nothing where the record has that
/// first, as a message's way can make it.
fn on_record(server: &Server, deadlines: &HashMap<String, Timestamp>) -> Result<Sample> {
    let lateness = |event: Value| -> Result<Duration> {
        let deadline = deadlines
            .get(&text(&event, "session_id")?)
            .ok_or("a session that nobody made")?;
        let end: Timestamp = text(&event, "end_time")?.parse()?;
        Ok(end.duration_since(*deadline).try_into().unwrap_or_default())
    };
    closed_events(server)?.into_iter().map(lateness).collect()
}

/// All GPU events, once all are closed: the kernel knows of an end before the server.
fn closed_events(server: &Server) -> Result<Vec<Value>> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
    let mut api = server.connect()?;
    loop {
        let answer = api.get("/platform/usage-details")?;
        let events: Vec<Value> = serde_json::from_slice(&answer.body)?;
        if events.iter().all(|event| text(event, "end_time").is_ok()) {
            return Ok(events);
        }
        std::thread::sleep(ASK_AGAIN_AFTER);
    }
}
