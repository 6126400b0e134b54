//! The figures of the README, measured on this machine. `make bench`.
//!
//! usage: dwell-bench DWELL [one|crowd|throughput|postgres|memory|restart|deadlines|gateway|tunnel|thousands|containers|slurm|kubernetes]…
//!
//! Clients, server and apps share the machine's cores.

mod at_once;
mod by_hand;
#[expect(
    clippy::unwrap_used,
    dead_code,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/postgres/cluster.rs"]
mod cluster;
mod containers;
mod deadlines;
mod dockerd;
mod gateway;
mod http;
#[expect(
    clippy::unwrap_used,
    reason = "the tests' own, who have failed when they cannot go on"
)]
#[path = "../../tests/engines/image.rs"]
mod image;
mod kubernetes;
mod memory;
mod payload;
mod processes;
mod restart;
mod server;
mod slurm;
mod start;
mod statistics;
mod stored;
mod throughput;
mod witness;

use std::error::Error;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// One line of the table.
struct Figure {
    what: String,
    measured: String,
}

type Measure = fn(&Path) -> Result<Vec<Figure>>;

const MEASURES: [(&str, Measure); 10] = [
    ("one", start::one),
    ("crowd", start::crowd),
    ("throughput", throughput::throughput),
    ("postgres", throughput::postgres),
    ("memory", memory::memory),
    ("restart", restart::restart),
    ("deadlines", deadlines::deadlines),
    ("gateway", gateway::gateway),
    ("tunnel", gateway::tunnel),
    ("thousands", slurm::thousands::thousands),
];

/// Only when they are named: their engines need a network of their own (`make
/// bench-containers`, `make bench-slurm`, `make bench-kubernetes`).
const ALONE: [(&str, Measure); 3] = [
    ("containers", containers::containers),
    ("slurm", slurm::slurm),
    ("kubernetes", kubernetes::kubernetes),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dwell = arguments
        .next()
        .ok_or("usage: dwell-bench DWELL [FIGURE]…")?;
    let dwell = PathBuf::from(dwell).canonicalize()?;
    let wanted: Vec<_> = arguments.collect();
    let all = || MEASURES.iter().chain(&ALONE);
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !all().any(|(known, _)| known == name))
    {
        return Err(format!("there is no figure {unknown}").into());
    }
    allow_many_open_files()?;
    let cores = std::thread::available_parallelism()?;
    println!(
        "{cores} cores, clients and apps included; medians, and between what half of them lie"
    );
    let measures: Vec<_> = if wanted.is_empty() {
        MEASURES.iter().collect()
    } else {
        all()
            .filter(|(name, _)| wanted.iter().any(|wanted| wanted == name))
            .collect()
    };
    for (_, measure) in measures {
        for Figure { what, measured } in measure(&dwell)? {
            println!("{what:<68} {measured}");
        }
    }
    Ok(())
}

/// Where engines that are started here keep what they have: on the disk that the build is on.
#[expect(clippy::unwrap_used, reason = "the tests' own code asks")]
fn scratch() -> PathBuf {
    let dir = server::beside("bench-engines").unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Of ourselves and of the servers: every session needs some, and most shells
/// allow few.
fn allow_many_open_files() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}
