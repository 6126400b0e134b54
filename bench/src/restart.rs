//! A server that is killed and started again on many sessions.

use std::io;
use std::path::Path;
use std::time::Duration;

use dwell::data_dir::DataDir;
use serde_json::json;

use crate::at_once::at_once;
use crate::http::{Answer, Connection, until_200};
use crate::server::{Server, Session, beside, data_dir};
use crate::statistics::{Sample, millis};
use crate::stored::{STORED, fill};
use crate::{Figure, Result};

const OPEN: u32 = 100_000;
const SLOTS: u32 = 2;
const ROUNDS: usize = 9;

pub fn restart(dwell: &Path) -> Result<Vec<Figure>> {
    let hello = [beside("hello")?.display().to_string()];
    let server = Server::start(dwell, data_dir(dwell)?, SLOTS)?;
    let mut api = server.connect()?;
    let running = (0..SLOTS)
        .map(|_| Session::create(&mut api, &hello))
        .collect::<Result<Vec<_>>>()?;
    let oldest = server.queue(OPEN, &hello)?;
    let mut figures = rounds(server, &format!("{OPEN} open sessions"), &oldest, &running)?;

    let dir = data_dir(dwell)?;
    let ended = fill(&DataDir(dir.path().to_owned()))?;
    let oldest = ended.first().ok_or("no session")?.to_string();
    let server = Server::start(dwell, dir, SLOTS)?;
    figures.extend(rounds(
        server,
        &format!("{STORED} ended sessions"),
        &oldest,
        &[],
    )?);
    Ok(figures)
}

/// A request that is made anew until it is answered.
type Ask<'a> = Box<dyn Fn() -> io::Result<Answer> + Send + 'a>;

/// What takes how long from the start of the process on, for a server with
/// `sessions`, of which `oldest` is one and `running` are those that run.
fn rounds(
    mut server: Server,
    sessions: &str,
    oldest: &str,
    running: &[Session],
) -> Result<Vec<Figure>> {
    let creation = json!({"command": ["hello"], "gpu": "CPU"});
    let [mut accepts, mut reads, mut creates, mut known] =
        std::array::from_fn(|_| Sample::default());
    for _ in 0..ROUNDS {
        let began = server.kill_and_restart()?;
        let (server, creation) = (&server, creation.to_string());
        let mut asks: Vec<Ask> = vec![
            Box::new(|| server.connect()?.get("/healthz")),
            Box::new(|| server.connect()?.get(&format!("/session/{oldest}"))),
            Box::new(|| {
                server
                    .connect()?
                    .send("POST", "/session/dynamic", &creation)
            }),
        ];
        for session in running {
            asks.push(Box::new(|| {
                Connection::open(&session.address, "")?.get("/")
            }));
        }
        let (_, took) = at_once(asks, |ask| {
            until_200(ask)?;
            Ok(began.elapsed())
        })?;
        let [accepted, read, created, reached @ ..] = took.as_slice() else {
            return Err("nothing was asked".into());
        };
        accepts.push(*accepted);
        reads.push(*read);
        creates.push(*created);
        known.push(reached.iter().copied().fold(*created, Duration::max));
    }
    let figure = |what: &str, sample: &Sample| Figure {
        what: format!("restart on {sessions}: {what}"),
        measured: format!(
            "{}, at most {:.1} ms",
            sample.summary(),
            millis(sample.quantile(1.0))
        ),
    };
    Ok(vec![
        figure("a request is answered", &accepts),
        figure("an old session is read", &reads),
        figure("one is created", &creates),
        figure("that, and all URLs answer", &known),
    ])
}
