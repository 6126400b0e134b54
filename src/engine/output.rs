//! What a container writes, also past a restart of its engine.

use std::cmp::Ordering;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use jiff::Timestamp;

use super::Engine;
use crate::session_log::{LineSplitter, LogLevel};

/// How soon an engine that went away is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// One of a container's outputs, and how far it was read.
#[derive(Default)]
struct Reader {
    place: Place,
    lines: LineSplitter,
}

/// How far an output was read. The engine's times of its pieces only grow.
#[derive(Default)]
struct Place {
    /// The time of the last piece.
    last: Timestamp,
    /// How many pieces with that time were read.
    at_last: usize,
    /// The same, since reading began anew.
    seen_at_last: usize,
}

impl Engine {
    /// Read all that the container writes, until it has ended and all was read. Each
    /// line goes to `line`.
    pub async fn follow(&self, id: &str, mut line: impl FnMut(LogLevel, &str)) {
        let (mut out, mut err) = (Reader::default(), Reader::default());
        loop {
            let ended = matches!(self.is_running(id).await, Ok(false));
            let since = out.place.begin_anew().min(err.place.begin_anew());
            let options = LogsOptionsBuilder::new()
                .follow(true)
                .stdout(true)
                .stderr(true)
                // By which a piece is known again.
                .timestamps(true)
                .since(i32::try_from(since.as_second()).unwrap_or(0));
            let mut pieces = self.docker.logs(id, Some(options.build())).boxed();
            while let Some(Ok(piece)) = pieces.next().await {
                let (level, reader, message) = match &piece {
                    LogOutput::StdErr { message } => (LogLevel::Warning, &mut err, message),
                    LogOutput::StdOut { message }
                    | LogOutput::StdIn { message }
                    | LogOutput::Console { message } => (LogLevel::Info, &mut out, message),
                };
                if let Some(text) = reader.place.go_on(message) {
                    reader.lines.push(text, |text| line(level, text));
                }
                // The lease comes first, however much there is to read.
                tokio::task::yield_now().await;
            }
            if ended {
                break;
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
        out.lines.flush(|text| line(LogLevel::Info, text));
        err.lines.flush(|text| line(LogLevel::Warning, text));
    }
}

impl Place {
    /// From where on to read; what was read of that second is passed over.
    fn begin_anew(&mut self) -> Timestamp {
        self.seen_at_last = 0;
        self.last
    }

    /// What a piece says, unless it was read before.
    fn go_on<'a>(&mut self, piece: &'a [u8]) -> Option<&'a [u8]> {
        let space = piece.iter().position(|byte| *byte == b' ')?;
        let (time, text) = piece.split_at(space);
        let time: Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
        match time.cmp(&self.last) {
            Ordering::Less => return None,
            Ordering::Equal => {
                self.seen_at_last += 1;
                if self.seen_at_last <= self.at_last {
                    return None;
                }
            }
            Ordering::Greater => {
                self.last = time;
                self.seen_at_last = 1;
            }
        }
        self.at_last = self.seen_at_last;
        text.get(1..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_or_read_twice_when_reading_begins_anew() {
        // Engines differ in how they write a moment.
        let all = [
            "2026-11-25T18:00:00.1Z a",
            "2026-11-25T18:00:00.100000000Z b",
            "2026-11-25T19:00:00.12+01:00 c",
            "2026-11-25T18:00:00.12Z d",
            "2026-11-25T18:00:00.12Z e",
            "2026-11-25T18:00:01Z f",
        ];
        for cut in 0..=all.len() {
            let mut place = Place::default();
            let mut read = Vec::new();
            for pieces in [all.get(..cut).unwrap(), &all[..]] {
                place.begin_anew();
                for piece in pieces {
                    read.extend(place.go_on(piece.as_bytes()));
                }
            }
            assert_eq!(read.concat(), b"abcdef", "cut at {cut}");
        }
    }
}
