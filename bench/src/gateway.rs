//! The gateway, and the tunnel, side by side with what else could stand in their place,
//! all before the same upstream.
//!
//! Peers take turns at every figure, round after round, so that all meet the same
//! machine. Whatever answers wrong ends the run: refusing is fast.

mod client;
mod crowd;
mod install;
mod newcomers;
mod peer;
mod program;
mod rate;
mod requests;
mod table;
mod transfer;
mod tunnel;
mod websockets;

use std::path::Path;

use crate::{Figure, Result};
use peer::{PEERS, Peer};
use table::Table;
pub use tunnel::tunnel;

const ROUNDS: usize = 7;

/// What one figure of a peer came to; `None` where it has no proxy to have it.
struct Reading {
    figure: String,
    value: Option<f64>,
}

type Measure = fn(&Peer) -> Result<Vec<Reading>>;

/// In the order of the table.
const MEASURES: [Measure; 6] = [
    requests::few,
    requests::many,
    rate::latency,
    transfer::download,
    transfer::upload,
    websockets::echo,
];

pub fn gateway(dwell: &Path) -> Result<Vec<Figure>> {
    let mut peers = Vec::new();
    for start in PEERS {
        peers.extend(start(dwell)?);
    }
    let mut table = table_of(&peers, &[("dwell", "nginx")]);
    // Before they have memory left from anything else.
    let idle = of_all(&peers, websockets::idle)?;
    rounds(&peers, &MEASURES, &mut table)?;
    table.add(idle);
    Ok(table.figures())
}

fn table_of(peers: &[Peer], ratios: &'static [(&str, &str)]) -> Table {
    Table::new(peers.iter().map(|peer| peer.name).collect(), ratios)
}

fn rounds(peers: &[Peer], measures: &[Measure], table: &mut Table) -> Result<()> {
    for _ in 0..ROUNDS {
        for measure in measures {
            table.add(of_all(peers, *measure)?);
        }
    }
    Ok(())
}

/// One turn of each.
fn of_all(peers: &[Peer], measure: Measure) -> Result<Vec<Vec<Reading>>> {
    let of_one =
        |peer: &Peer| measure(peer).map_err(|error| format!("{}: {error}", peer.name).into());
    peers.iter().map(of_one).collect()
}

impl Reading {
    fn new(figure: &str, value: impl Into<Option<f64>>) -> Self {
        Self {
            figure: figure.to_owned(),
            value: value.into(),
        }
    }
}
