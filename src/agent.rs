//! The agent: the supervisor beside the app.
//!
//! `dwell agent DIR` runs one session: it starts the app, probes it, keeps its
//! output, keeps its time by its own clock, ends the whole tree and proves that it
//! is gone. It is told nothing but what stands in `DIR/agent.json`, and needs the
//! server for nothing but more time. What it decides is [`dwell_core::lease`]; here
//! it is done.

mod apart;
mod at_work;
mod cgroup;
mod channels;
mod container;
mod control;
mod dial;
pub(crate) mod environment;
mod init;
mod inside;
pub mod job;
pub mod journal;
mod keeper;
mod leave;
mod log;
mod log_copy;
mod memory;
mod port;
mod probe;
mod processes;
mod relay;
pub mod remains;
mod signals;
pub mod spec;
mod supervisor;
mod tree;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dwell_core::protocol::AgentPhase;
use dwell_core::time::Monotonic;

use crate::clock;
use crate::data_dir::SessionDir;
use crate::failpoint::{self, Point};
use journal::{Entry, Journal, Lock, Past};
use spec::AgentSpec;
use supervisor::Supervisor;

/// `dwell agent DIR`, `dwell agent job`, `dwell agent install DIR`, `dwell agent init`,
/// `dwell agent keep`, or `dwell agent --version`. No argument parser: this path is short
/// because a session's start is as long as it is.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    match args {
        [mode] if mode == "init" => init::main(),
        [mode, container] if mode == "keep" => keeper::main(container),
        [mode] if mode == "job" => report(run_in_job()),
        [mode, dir] if mode == "install" => report(install(Path::new(dir))),
        [mode] if mode == "--version" => {
            println!("dwell agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [dir] => report(run(&SessionDir(PathBuf::from(dir)))),
        _ => {
            eprintln!("dwell agent DIR: runs the session in DIR; the server starts it");
            ExitCode::from(2)
        }
    }
}

fn report(ran: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} dwell agent: {error}", clock::rfc3339(clock::wall()));
            ExitCode::FAILURE
        }
    }
}

fn run_in_job() -> Result<(), Box<dyn std::error::Error>> {
    let dir = job::unpack()?;
    run(&dir)?;
    // All that anybody wants of it is at the server.
    std::fs::remove_dir_all(dir.path())?;
    Ok(())
}

/// Copy this program to `dir`, whole or not at all, where others find it as `dwell-agent`.
fn install(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (place, draft) = (dir.join("dwell-agent"), dir.join("dwell-agent.new"));
    std::fs::copy("/proc/self/exe", &draft)
        .and_then(|_| std::fs::set_permissions(&draft, Permissions::from_mode(0o755)))
        .and_then(|()| std::fs::rename(&draft, &place))
        .map_err(|error| format!("{} cannot be written: {error}", place.display()))?;
    Ok(())
}

fn run(dir: &SessionDir) -> Result<(), Box<dyn std::error::Error>> {
    signals::ignore_terminals()?;
    let Some(lock) = take_lock(dir)? else {
        return Ok(());
    };
    failpoint::cross(Point::AgentAfterLock);
    let spec: AgentSpec = serde_json::from_slice(&std::fs::read(dir.agent_spec())?)?;
    let may_begin = spec.may_begin;
    let (journal, past) = Journal::open(dir, &lock)?;
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let supervisor = Supervisor::new(dir.clone(), spec, lock, journal);
        match past {
            Past::None if may_begin => supervisor.run().await,
            Past::None => supervisor.report_past(journal::nothing_is_left()).await,
            Past::Over(status) => supervisor.report_past(status).await,
        }
    });
    Ok(())
}

/// The lock, unless another agent has it for longer than a launcher that looks
/// whether one lives.
fn take_lock(dir: &SessionDir) -> std::io::Result<Option<Lock>> {
    for _ in 0..5 {
        if let Some(lock) = Lock::take(dir)? {
            return Ok(Some(lock));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(None)
}
