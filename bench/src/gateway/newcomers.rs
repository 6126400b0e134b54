//! Visitors that come, ask for one thing, and go.

use super::Reading;
use super::client::Client;
use super::crowd::Crowd;
use super::peer::Peer;
use super::requests::counted;
use crate::Result;

const AT_ONCE: usize = 32;

/// For which a proxy may have a connection to the app already.
pub fn requests(peer: &Peer) -> Result<Vec<Reading>> {
    newcomers(peer, "new connections, a request each", Client::http)
}

/// Each of which takes a connection to the app of its own.
pub fn websockets(peer: &Peer) -> Result<Vec<Reading>> {
    newcomers(peer, "new WebSockets", Client::handshake)
}

fn newcomers(peer: &Peer, what: &str, comes: fn(&str) -> Result<Client>) -> Result<Vec<Reading>> {
    let address = peer.address()?;
    let clients = (0..AT_ONCE).map(|_| comes(address));
    let mut crowd = Crowd::new(clients.collect::<Result<_>>()?)?;
    let what = format!("{what}, {AT_ONCE} at once");
    counted(peer, &what, |period| {
        crowd.come_and_go_for(period, || comes(address))
    })
}
