//! The smallest app: listens on `$PORT` and answers every request with a word. It
//! starts in a millisecond, so that what is measured is not the app.
//!
//! If there is a `$WITNESS`, it tells that socket when it was first called, and stays
//! connected for as long as it lives.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use dwell::clock;
use dwell_core::time::Monotonic;

fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").map_err(std::io::Error::other)?;
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    let mut witness = None;
    let mut request = [0; 8 * 1024];
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else {
            continue;
        };
        let called_at = clock::monotonic();
        let answered = connection.read(&mut request).and_then(|_| {
            connection.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
            )
        });
        // Who hung up did not want to know.
        drop(answered);
        if witness.is_none() {
            witness = tell_witness(called_at)?;
        }
    }
    Ok(())
}

/// Whose time is the earliest that could be said to be that of the answer: no lateness
/// is hidden.
fn tell_witness(called_at: Monotonic) -> std::io::Result<Option<UnixStream>> {
    let Some(socket) = std::env::var_os("WITNESS") else {
        return Ok(None);
    };
    let session = std::env::var("DWELL_SESSION_ID").map_err(std::io::Error::other)?;
    let mut witness = UnixStream::connect(socket)?;
    writeln!(witness, "{session} {}", called_at.0)?;
    Ok(Some(witness))
}
