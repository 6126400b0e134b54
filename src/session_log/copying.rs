//! A log that is written on one host and read on another: its segments, copied byte for
//! byte while they grow.
//!
//! The receiving end says first what it has; what follows goes on from there. So a
//! connection that broke costs nothing, and nothing needs to be remembered.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::watch;
use tokio::time::sleep;

use super::writer::SEGMENTS;
use super::{segment_name, segments};

/// How often a log that has been copied as far as it goes is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// So much is copied in one piece.
const PIECE_BYTES_MAX: usize = 64 * 1024;
/// The longest line that says what follows.
const HEADER_BYTES_MAX: u64 = 256;

/// How far a log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    /// The last segment.
    segment: u64,
    /// How long it is, in bytes.
    offset: u64,
}

impl Position {
    fn of(dir: &Path) -> Self {
        let Some(segment) = segments(dir).last().copied() else {
            return Self::default();
        };
        let metadata = std::fs::metadata(dir.join(segment_name(segment)));
        let offset = metadata.map_or(0, |metadata| metadata.len());
        Self { segment, offset }
    }
}

/// Bytes that belong there.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Piece {
    #[serde(flatten)]
    at: Position,
    bytes: usize,
}

/// Send the log in `dir` as it grows, until `is_finished` and all of it has arrived.
///
/// # Errors
/// When the connection breaks.
pub async fn send(
    dir: &Path,
    connection: impl AsyncRead + AsyncWrite + Unpin,
    mut is_finished: watch::Receiver<bool>,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = BufReader::new(reader);
    let mut position: Position = read_line(&mut reader)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    loop {
        let was_finished = *is_finished.borrow_and_update();
        while let Some((piece, bytes)) = next_piece(dir, position)? {
            let mut message = serde_json::to_vec(&piece)?;
            message.push(b'\n');
            message.extend_from_slice(&bytes);
            writer.write_all(&message).await?;
            position = piece.at;
            position.offset += u64::try_from(piece.bytes).unwrap_or(u64::MAX);
        }
        writer.flush().await?;
        if was_finished {
            // The other end closes when it has put all down.
            writer.shutdown().await?;
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).await?;
            return Ok(());
        }
        let mut one = [0; 1];
        tokio::select! {
            () = sleep(LOOK_AGAIN_AFTER) => {}
            changed = is_finished.changed() => if changed.is_err() {
                return Ok(());
            },
            // It says nothing but that it is gone.
            _ = reader.read(&mut one) => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// What comes after `position`.
fn next_piece(dir: &Path, position: Position) -> io::Result<Option<(Piece, Vec<u8>)>> {
    for segment in segments(dir) {
        let offset = match segment.cmp(&position.segment) {
            std::cmp::Ordering::Less => continue,
            std::cmp::Ordering::Equal => position.offset,
            std::cmp::Ordering::Greater => 0,
        };
        // It may have been dropped in this moment; then the next one is there.
        let Ok(mut file) = std::fs::File::open(dir.join(segment_name(segment))) else {
            continue;
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(PIECE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        if !bytes.is_empty() {
            let piece = Piece {
                at: Position { segment, offset },
                bytes: bytes.len(),
            };
            return Ok(Some((piece, bytes)));
        }
    }
    Ok(None)
}

/// Take a log in, into `dir`, which is to hold about `bytes_max` at most; return at its
/// end.
///
/// # Errors
/// When the connection breaks, or what comes is none.
pub async fn receive(
    dir: &Path,
    connection: impl AsyncRead + AsyncWrite + Unpin,
    bytes_max: u64,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut reader = BufReader::new(reader);
    let mut position = Position::of(dir);
    let mut line = serde_json::to_vec(&position)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await?;
    while let Some(piece) = read_line::<Piece>(&mut reader).await? {
        let goes_on =
            piece.at == position || (piece.at.segment > position.segment && piece.at.offset == 0);
        let end = piece.at.offset + piece.bytes as u64;
        // Its agent keeps to the limit, but for the line that is over.
        let fits = end <= (bytes_max / SEGMENTS).max(4 * 1024) + PIECE_BYTES_MAX as u64;
        if !goes_on || !fits || piece.bytes > PIECE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; piece.bytes];
        reader.read_exact(&mut bytes).await?;
        append(dir, piece.at, &bytes)?;
        position = Position {
            segment: piece.at.segment,
            offset: end,
        };
    }
    Ok(())
}

fn append(dir: &Path, at: Position, bytes: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(segment_name(at.segment));
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() != at.offset {
        // Another connection has gone on from there.
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    file.write_all(bytes)?;
    if at.offset == 0 {
        let oldest_kept = (at.segment + 1).saturating_sub(SEGMENTS);
        for number in segments(dir) {
            if number < oldest_kept {
                let _ = std::fs::remove_file(dir.join(segment_name(number)));
            }
        }
    }
    Ok(())
}

/// What the next line says; `None` at the end.
async fn read_line<T: serde::de::DeserializeOwned>(
    reader: &mut (impl AsyncBufReadExt + Unpin),
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let mut limited = reader.take(HEADER_BYTES_MAX);
    if limited.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::super::{Follower, LogLevel, Writer};
    use super::*;

    const BYTES_MAX: u64 = 32 * 1024;

    async fn messages(dir: &Path) -> Vec<String> {
        let mut follower = Follower::new(dir.to_owned());
        let mut messages = Vec::new();
        while let Some(line) = follower.next(|| true).await {
            messages.push(line.message);
        }
        messages
    }

    fn write(writer: &mut Writer, numbers: std::ops::Range<u32>) {
        for number in numbers {
            writer.write(LogLevel::Info, &number.to_string()).unwrap();
        }
    }

    /// Copy all that is there.
    async fn copy(from: &Path, to: &Path) {
        let (here, there) = tokio::io::duplex(1_000);
        let (finish, finished) = watch::channel(true);
        let (sent, received) =
            tokio::join!(send(from, here, finished), receive(to, there, BYTES_MAX));
        sent.unwrap();
        received.unwrap();
        drop(finish);
    }

    #[tokio::test]
    async fn a_copy_goes_on_where_the_one_before_broke_off_and_drops_what_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        copy(&from, &to).await;
        assert_eq!(messages(&to).await, Vec::<String>::new());
        let mut writer = Writer::new(from.clone(), BYTES_MAX);
        write(&mut writer, 0..10);
        copy(&from, &to).await;
        assert_eq!(messages(&to).await.len(), 10);
        write(&mut writer, 10..40);
        copy(&from, &to).await;
        let copied = messages(&to).await;
        assert_eq!(copied, (0..40).map(|it| it.to_string()).collect::<Vec<_>>());
        // Past what is kept.
        write(&mut writer, 40..5_000);
        copy(&from, &to).await;
        assert_eq!(messages(&to).await, messages(&from).await);
        assert!(u64::try_from(segments(&to).len()).unwrap() <= SEGMENTS);
    }

    #[tokio::test]
    async fn a_log_is_copied_while_it_grows_and_both_ends_know_when_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let (here, there) = tokio::io::duplex(1_000);
        let (finish, finished) = watch::channel(false);
        let growing = async {
            let mut writer = Writer::new(from.clone(), BYTES_MAX);
            write(&mut writer, 0..1);
            while messages(&to).await.is_empty() {
                tokio::task::yield_now().await;
            }
            write(&mut writer, 1..3);
            finish.send_replace(true);
        };
        let (sent, received, ()) = tokio::join!(
            send(&from, here, finished),
            receive(&to, there, BYTES_MAX),
            growing
        );
        sent.unwrap();
        received.unwrap();
        assert_eq!(messages(&to).await, ["0", "1", "2"]);
    }

    #[tokio::test]
    async fn what_does_not_go_on_where_the_copy_ends_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for piece in [
            r#"{"segment":0,"offset":5,"bytes":2}"#,
            r#"{"segment":3,"offset":1,"bytes":2}"#,
            r#"{"segment":0,"offset":0,"bytes":70000}"#,
            r#"{"segment":0,"offset":0}"#,
        ] {
            let (mut here, there) = tokio::io::duplex(1_000);
            here.write_all(format!("{piece}\nxx").as_bytes())
                .await
                .unwrap();
            let refused = receive(dir.path(), there, BYTES_MAX).await;
            assert!(refused.is_err(), "{piece}");
        }
        assert_eq!(segments(dir.path()), [0; 0]);
    }
}
