//! Large bodies, one at a time.

use std::io::{Read, Write};
use std::time::Instant;

use super::Reading;
use super::client::{body, connect, read_head};
use super::peer::Peer;
use crate::Result;
use crate::payload::{BODY, PIECE};

const LENGTH: usize = 1024 * 1024 * 1024;

pub fn download(peer: &Peer) -> Result<Vec<Reading>> {
    measured(peer, "download of 1 GiB", |address| {
        let mut stream = connect(address)?;
        write!(
            stream,
            "GET /bytes?n={LENGTH} HTTP/1.1\r\nhost: {address}\r\n\r\n"
        )?;
        body(&read_head(&mut stream)?, LENGTH)?;
        let mut buffer = vec![0; PIECE];
        let mut left = LENGTH;
        while left > 0 {
            let most = left.min(PIECE);
            let length = stream.read(buffer.get_mut(..most).unwrap_or_default())?;
            // None, or one that is out of its place: enough to tell, at no cost.
            if length == 0 || buffer.first() != BODY.get((LENGTH - left) % PIECE) {
                return Err(format!("wrong when {left} bytes were left").into());
            }
            left -= length;
        }
        Ok(())
    })
}

pub fn upload(peer: &Peer) -> Result<Vec<Reading>> {
    measured(peer, "upload of 1 GiB", |address| {
        let mut stream = connect(address)?;
        write!(
            stream,
            "POST /sink HTTP/1.1\r\nhost: {address}\r\ncontent-length: {LENGTH}\r\n\r\n"
        )?;
        for _ in 0..LENGTH / PIECE {
            stream.write_all(&BODY)?;
        }
        let count = LENGTH.to_string();
        let mut answer = read_head(&mut stream)?;
        let head = answer.len();
        body(&answer, count.len())?;
        answer.resize(head + count.len(), 0);
        stream.read_exact(answer.get_mut(head..).unwrap_or_default())?;
        match answer.ends_with(count.as_bytes()) {
            true => Ok(()),
            false => Err("not all of it arrived".into()),
        }
    })
}

fn measured(
    peer: &Peer,
    what: &str,
    transfer: impl Fn(&str) -> Result<()>,
) -> Result<Vec<Reading>> {
    const MB: f64 = 1e6;
    const GB: f64 = 1e9;
    #[expect(clippy::cast_precision_loss, reason = "it has few digits")]
    let length = LENGTH as f64;
    let (before, began) = (peer.cpu()?, Instant::now());
    transfer(peer.address()?)?;
    let speed = length / MB / began.elapsed().as_secs_f64();
    let mut readings = vec![Reading::new(&format!("{what}, MB/s"), speed)];
    let cpu = format!("{what}, CPU s for 1 GB");
    readings.extend(peer.cpu()?.since(before, GB / length, &cpu));
    Ok(readings)
}
