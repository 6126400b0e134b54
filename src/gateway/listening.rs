//! Listeners, and what connections have from them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use crate::keep_alive::{Probes, keep_alive};

/// Connections that the kernel may hold for a port before they are accepted.
const BACKLOG: u32 = 1_024;

/// A listener at work.
pub(super) struct Listening {
    /// Until it is given away.
    pub(super) socket: Option<Arc<TcpListener>>,
    pub(super) accepting: JoinHandle<()>,
}

impl Listening {
    pub(super) async fn stop(&mut self) {
        self.accepting.abort();
        // An error only says that it was aborted.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Listen there.
pub(super) fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A port whose last connections are still in TIME_WAIT can be listened on.
    socket.set_reuseaddr(true)?;
    prepare(&socket)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Connections that are accepted from `listener` inherit both: an answer is not to wait
/// for more to send, and who is gone is noticed.
pub(super) fn prepare(listener: &impl AsFd) -> io::Result<()> {
    setsockopt(listener, sockopt::TcpNoDelay, &true)?;
    notice_dead_peers(listener)
}

/// A quiet connection may live for days; one whose other end is gone without a word
/// is noticed within two minutes.
pub(super) fn notice_dead_peers(socket: &impl AsFd) -> io::Result<()> {
    keep_alive(
        socket,
        Probes {
            idle_seconds: 60,
            interval_seconds: 15,
            count: 4,
        },
    )
}
