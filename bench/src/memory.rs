//! Resident memory of what runs all the time.

use std::path::Path;
use std::time::Duration;

use crate::server::{Server, Session, beside, data_dir};
use crate::{Figure, Result};

const SESSIONS: u32 = 1_000;
const QUEUED: u32 = 100_000;
/// Until what a start took is given back.
const SETTLED_AFTER: Duration = Duration::from_secs(12);

pub fn memory(dwell: &Path) -> Result<Vec<Figure>> {
    let mut figures = running(dwell)?;
    figures.extend(queued(dwell)?);
    Ok(figures)
}

fn running(dwell: &Path) -> Result<Vec<Figure>> {
    let server = Server::start(dwell, data_dir(dwell)?, SESSIONS)?;
    let with_none = resident_mib(server.pid())?;
    let mut api = server.connect()?;
    let hello = [beside("hello")?.display().to_string()];
    for _ in 0..SESSIONS {
        Session::create(&mut api, &hello)?;
    }
    std::thread::sleep(SETTLED_AFTER);
    let mut agents: Vec<f64> = server
        .agents()?
        .into_iter()
        .map(resident_mib)
        .collect::<Result<_>>()?;
    agents.sort_by(f64::total_cmp);
    let agent = |at: usize| agents.get(at).copied().unwrap_or_default();
    Ok(vec![
        Figure {
            what: "resident memory of an idle agent".to_owned(),
            measured: format!(
                "{:.1} MiB (the largest of {} {:.1})",
                agent(agents.len() / 2),
                agents.len(),
                agent(agents.len().saturating_sub(1))
            ),
        },
        Figure {
            what: format!("resident memory of a server with {SESSIONS} running sessions"),
            measured: of_each(&server, with_none, SESSIONS)?,
        },
    ])
}

/// Sessions that wait, in the server that took them and in one that was started with
/// them.
fn queued(dwell: &Path) -> Result<Vec<Figure>> {
    let mut server = Server::start(dwell, data_dir(dwell)?, 1)?;
    let with_none = resident_mib(server.pid())?;
    let hello = [beside("hello")?.display().to_string()];
    server.queue(QUEUED, &hello)?;
    std::thread::sleep(SETTLED_AFTER);
    let taken = of_each(&server, with_none, QUEUED)?;
    server.kill_and_restart()?;
    std::thread::sleep(SETTLED_AFTER);
    let started_with = of_each(&server, with_none, QUEUED)?;
    let figure = |when: &str, measured| Figure {
        what: format!("resident memory of a server with {QUEUED} queued sessions{when}"),
        measured,
    };
    Ok(vec![figure("", taken), figure(", restarted", started_with)])
}

/// How much it is, and how much more than without them for each of its sessions.
fn of_each(server: &Server, with_none_mib: f64, sessions: u32) -> Result<String> {
    let with_all_mib = resident_mib(server.pid())?;
    let of_one_kib = (with_all_mib - with_none_mib) * 1_024.0 / f64::from(sessions);
    Ok(format!(
        "{with_all_mib:.1} MiB; with none {with_none_mib:.1}; {of_one_kib:.1} KiB for each"
    ))
}

fn resident_mib(pid: u32) -> Result<f64> {
    Ok(resident_kib(pid)? / 1_024.0)
}

pub fn resident_kib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .ok_or("no VmRSS")?
        .trim()
        .parse()?;
    Ok(kib)
}
