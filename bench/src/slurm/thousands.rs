//! What thousands of sessions in Slurm's queue cost the server.

#[expect(
    clippy::unwrap_used,
    dead_code,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../../tests/engines/slurm/stand_in.rs"]
mod stand_in;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::processes::cpu_s;
use crate::server::{Server, beside};
use crate::{Figure, Result};
use stand_in::StandIn;

const SESSIONS: u32 = 5_000;
/// Enough for what is counted in hundredths of a second.
const LOOKS: usize = 20;

/// With commands that answer as Slurm's do at that size.
pub fn thousands(dwell: &Path) -> Result<Vec<Figure>> {
    let slurm = StandIn::new();
    let launcher = "kind = \"slurm\"\ngpus = { CPU = \"gpu\" }\n";
    let server = Server::start_for(launcher, "127.0.0.1:0", dwell, slurm.environment())?;
    server.queue(SESSIONS, &[beside("hello")?.display().to_string()])?;
    while slurm.jobs() < SESSIONS as usize {
        pause();
    }
    // Until what was new is on record.
    looks(&slurm, 2);
    let (before, began) = (cpu_s(&[server.pid()])?, Instant::now());
    looks(&slurm, LOOKS);
    let took = cpu_s(&[server.pid()])? - before;
    let cores = took / began.elapsed().as_secs_f64();
    Ok(vec![Figure {
        what: format!("CPU of a server with {SESSIONS} sessions in Slurm's queue"),
        measured: format!(
            "{cores:.4} of a core, {LOOKS} looks in {:.1?}",
            began.elapsed()
        ),
    }])
}

/// Until there were so many more.
fn looks(slurm: &StandIn, more: usize) {
    let wanted = slurm.looks() + more;
    while slurm.looks() < wanted {
        pause();
    }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
