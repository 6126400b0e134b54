//! Small requests, as many as can be.

use std::time::{Duration, Instant};

use super::Reading;
use super::client::Client;
use super::crowd::Crowd;
use super::peer::Peer;
use crate::Result;

const WARM_UP: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(700);

pub fn few(peer: &Peer) -> Result<Vec<Reading>> {
    requests(peer, 64)
}

pub fn many(peer: &Peer) -> Result<Vec<Reading>> {
    requests(peer, 512)
}

fn requests(peer: &Peer, connections: usize) -> Result<Vec<Reading>> {
    let address = peer.address()?;
    let clients = (0..connections).map(|_| Client::http(address));
    let crowd = Crowd::new(clients.collect::<Result<_>>()?)?;
    let what = format!("requests, {connections} connections");
    exchanges(peer, crowd, &what)
}

/// How many exchanges there are in a second, and what they cost.
pub fn exchanges(peer: &Peer, mut crowd: Crowd, what: &str) -> Result<Vec<Reading>> {
    counted(peer, what, |period| crowd.ask_for(period))
}

/// How many answers come in a second, and what they cost.
pub fn counted(
    peer: &Peer,
    what: &str,
    mut answers_in: impl FnMut(Duration) -> Result<u64>,
) -> Result<Vec<Reading>> {
    const COUNTED: f64 = 100_000.0;
    answers_in(WARM_UP)?;
    let (before, began) = (peer.cpu()?, Instant::now());
    let answers = answers_in(MEASURED)?;
    let took_s = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "not so many")]
    let answers = answers as f64;
    let mut readings = vec![Reading::new(
        &format!("{what}, per second"),
        answers / took_s,
    )];
    let cpu = format!("{what}, CPU s for 100,000");
    readings.extend(peer.cpu()?.since(before, COUNTED / answers, &cpu));
    Ok(readings)
}
