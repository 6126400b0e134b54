//! WebSockets: busy ones, and ones that are only open.

use std::time::Duration;

use super::Reading;
use super::client::Client;
use super::crowd::Crowd;
use super::peer::Peer;
use super::requests::exchanges;
use crate::Result;

const BUSY: usize = 32;
const IDLE: u32 = 2_000;
/// Until what opening them took is given back.
const SETTLED_AFTER: Duration = Duration::from_millis(500);

pub fn echo(peer: &Peer) -> Result<Vec<Reading>> {
    let what = format!("echoes of 1 KiB, {BUSY} WebSockets");
    exchanges(peer, open(peer, BUSY)?, &what)
}

pub fn idle(peer: &Peer) -> Result<Vec<Reading>> {
    // What a first one takes is not each one's.
    open(peer, 1)?.ask_for(Duration::ZERO)?;
    std::thread::sleep(SETTLED_AFTER);
    let before_kib = peer.resident_kib()?;
    let mut crowd = open(peer, usize::try_from(IDLE)?)?;
    crowd.ask_for(Duration::ZERO)?;
    std::thread::sleep(SETTLED_AFTER);
    let after_kib = peer.resident_kib()?;
    let of_each = |(before, after)| (after - before) / f64::from(IDLE);
    Ok(vec![Reading::new(
        "memory of an idle WebSocket, KiB",
        before_kib.zip(after_kib).map(of_each),
    )])
}

/// So many, spread over all there is to connect to.
fn open(peer: &Peer, clients: usize) -> Result<Crowd> {
    let addresses = peer.addresses.iter().cycle();
    let clients = (0..clients)
        .zip(addresses)
        .map(|(number, address)| Client::websocket(address, number));
    Crowd::new(clients.collect::<Result<_>>()?)
}
