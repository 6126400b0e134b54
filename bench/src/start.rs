//! From asking for an app to its answering: as a session, and started by hand.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::at_once::at_once;
use crate::by_hand::ByHand;
use crate::http::until_it_answers;
use crate::server::{Server, Session, beside, data_dir};
use crate::statistics::{Sample, millis};
use crate::{Figure, Result};

const ROUNDS: usize = 60;
const CROWD: usize = 20;
const CROWD_ROUNDS: usize = 15;

/// What is started; `{port}` stands for its port.
struct App {
    name: &'static str,
    command: Vec<String>,
}

fn apps() -> Result<[App; 2]> {
    // The interpreter itself: what `python3` leads to differs with the environment.
    let found = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()?;
    let python = String::from_utf8(found.stdout)?.trim().to_owned();
    let words = "-m http.server {port} --bind 127.0.0.1".split(' ');
    Ok([
        App {
            name: "an app that starts in 1 ms",
            command: vec![beside("hello")?.display().to_string()],
        },
        App {
            name: "python3 -m http.server",
            command: std::iter::once(python)
                .chain(words.map(str::to_owned))
                .collect(),
        },
    ])
}

/// One at a time, a session and by hand in turn, so that both meet the same machine.
pub fn one(dwell: &Path) -> Result<Vec<Figure>> {
    let server = Server::start(dwell, data_dir(dwell)?, 4)?;
    let mut api = server.connect()?;
    let mut figures = Vec::new();
    for app in apps()? {
        let (mut sessions, mut by_hand) = (Sample::default(), Sample::default());
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let session = Session::create(&mut api, &app.command)?;
            until_it_answers(&session.address)?;
            sessions.push(began.elapsed());
            session.end(&mut api)?;

            let began = Instant::now();
            let started = ByHand::start(&app.command)?;
            until_it_answers(&started.address)?;
            by_hand.push(began.elapsed());
        }
        let more = millis(sessions.quantile(0.5)) - millis(by_hand.quantile(0.5));
        figures.push(Figure {
            what: format!("create → URL answers, {}", app.name),
            measured: format!(
                "{}; by hand {}; {more:+.1} ms",
                sessions.summary(),
                by_hand.summary()
            ),
        });
    }
    Ok(figures)
}

/// Many at once, until the last one answers.
pub fn crowd(dwell: &Path) -> Result<Vec<Figure>> {
    let server = Server::start(dwell, data_dir(dwell)?, 100)?;
    let [app, _] = apps()?;
    let (mut sessions, mut by_hand) = (Sample::default(), Sample::default());
    for _ in 0..CROWD_ROUNDS {
        let connections: Vec<_> = (0..CROWD)
            .map(|_| server.connect())
            .collect::<std::io::Result<_>>()?;
        let (took, started) = at_once(connections, |mut api| {
            let session = Session::create(&mut api, &app.command)?;
            until_it_answers(&session.address)?;
            Ok((api, session))
        })?;
        sessions.push(took);
        at_once(started, |(mut api, session)| session.end(&mut api))?;

        let (took, _) = at_once(vec![(); CROWD], |()| {
            let started = ByHand::start(&app.command)?;
            until_it_answers(&started.address)?;
            Ok(started)
        })?;
        by_hand.push(took);
    }
    Ok(vec![Figure {
        what: format!("{CROWD} at once, all answering, {}", app.name),
        measured: format!("{}; by hand {}", sessions.summary(), by_hand.summary()),
    }])
}
