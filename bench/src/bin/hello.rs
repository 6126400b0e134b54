//! The smallest app: listens on `$PORT` and answers every request with a word. It
//! starts in a millisecond, so that what is measured is not the app.

use std::io::{Read, Write};
use std::net::TcpListener;

fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").map_err(std::io::Error::other)?;
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    let mut request = [0; 8 * 1024];
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else {
            continue;
        };
        let answered = connection.read(&mut request).and_then(|_| {
            connection.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
            )
        });
        // Who hung up did not want to know.
        drop(answered);
    }
    Ok(())
}
