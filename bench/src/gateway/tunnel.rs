//! The tunnel to an app on another host, side by side with rathole, in the clear and with
//! TLS 1.3 between its ends. Visitors come in the clear.
//!
//! A tunnel's CPU time is that of both its ends: server and agent, server and client.
//! rathole carries bytes; Dwell's gateway reads and writes HTTP besides.

use std::path::Path;

use super::peer::TUNNELS;
use super::{Measure, newcomers, requests, rounds, table_of, transfer, websockets};
use crate::{Figure, Result};

/// In the order of the table.
const MEASURES: [Measure; 6] = [
    requests::few,
    transfer::download,
    transfer::upload,
    newcomers::requests,
    newcomers::websockets,
    websockets::echo,
];

pub fn tunnel(dwell: &Path) -> Result<Vec<Figure>> {
    let mut peers = Vec::new();
    for start in TUNNELS {
        peers.extend(start(dwell)?);
    }
    let ratios = &[("dwell", "rathole"), ("dwell, TLS", "rathole, TLS")];
    let mut table = table_of(&peers, ratios);
    rounds(&peers, &MEASURES, &mut table)?;
    Ok(table.figures())
}
