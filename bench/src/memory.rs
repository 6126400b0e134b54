//! Resident memory of what runs all the time.

use std::path::Path;
use std::time::Duration;

use crate::server::{Server, Session, beside, data_dir};
use crate::{Figure, Result};

const SESSIONS: usize = 1_000;
/// Until what a start took is given back.
const SETTLED_AFTER: Duration = Duration::from_secs(12);

pub fn memory(dwell: &Path) -> Result<Vec<Figure>> {
    let server = Server::start(dwell, data_dir(dwell)?, 1_000)?;
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
            what: format!("resident memory of a server with {SESSIONS} sessions"),
            measured: format!("{:.1} MiB", resident_mib(server.pid())?),
        },
    ])
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .ok_or("no VmRSS")?
        .trim()
        .parse()?;
    Ok(kib / 1_024.0)
}
