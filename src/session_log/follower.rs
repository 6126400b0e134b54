//! The reading end: every line that is kept, then what comes, until it is over.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use super::{LogLine, segment_name, segments};

/// How often a log that has said all it has is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Reads a session's log from the first kept line on.
pub struct Follower {
    dir: PathBuf,
    current: Option<Segment>,
    finished: Option<u64>,
}

struct Segment {
    number: u64,
    reader: BufReader<File>,
    partial: Vec<u8>,
}

impl Follower {
    /// A reader of the log in `dir`, which need not be there yet.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            current: None,
            finished: None,
        }
    }

    /// The next line, awaited if there is none yet; `None` when `is_over` said so
    /// before the log was found to have no more.
    pub async fn next(&mut self, mut is_over: impl FnMut() -> bool) -> Option<LogLine> {
        loop {
            // Asked first: what is written before the end is still read after it.
            let was_over = is_over();
            if let Some(line) = self.next_now() {
                return Some(line);
            }
            if was_over {
                return None;
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// The next line that is there already.
    fn next_now(&mut self) -> Option<LogLine> {
        loop {
            if self.current.is_none() {
                self.open_next()?;
            }
            let segment = self.current.as_mut()?;
            // What cannot be read is as good as not there.
            let read = segment
                .reader
                .read_until(b'\n', &mut segment.partial)
                .unwrap_or(0);
            if read > 0 && segment.partial.ends_with(b"\n") {
                let line = serde_json::from_slice(&segment.partial);
                segment.partial.clear();
                if let Ok(line) = line {
                    return Some(line);
                }
                continue;
            }
            // A segment is done when there is a later one: the writer has moved on.
            let number = segment.number;
            if read == 0 && segments(&self.dir).iter().any(|later| *later > number) {
                let late = segment
                    .reader
                    .read_until(b'\n', &mut segment.partial)
                    .unwrap_or(0);
                if late == 0 {
                    self.finished = Some(number);
                    self.current = None;
                }
                continue;
            }
            if read == 0 {
                return None;
            }
        }
    }

    fn open_next(&mut self) -> Option<()> {
        let number = segments(&self.dir)
            .into_iter()
            .find(|number| self.finished.is_none_or(|finished| *number > finished))?;
        // It may have been dropped in this moment; the next look finds the one after.
        let file = File::open(self.dir.join(segment_name(number))).ok()?;
        self.current = Some(Segment {
            number,
            reader: BufReader::new(file),
            partial: Vec::new(),
        });
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LogLevel, Writer};
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn every_line_is_read_in_order_while_it_is_written_and_then_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let over = Arc::new(AtomicBool::new(false));
        let (dir_of_writer, over_of_writer) = (log.clone(), over.clone());
        let writing = std::thread::spawn(move || {
            let mut writer = Writer::new(dir_of_writer, 64 << 20);
            for number in 0..5_000 {
                writer.write(LogLevel::Info, &number.to_string()).unwrap();
            }
            over_of_writer.store(true, Ordering::SeqCst);
        });
        let mut follower = Follower::new(log);
        let mut expected = 0;
        while let Some(line) = follower.next(|| over.load(Ordering::SeqCst)).await {
            assert_eq!(line.message, expected.to_string());
            expected += 1;
        }
        assert_eq!(expected, 5_000);
        writing.join().unwrap();
    }

    #[tokio::test]
    async fn a_log_that_rotates_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().to_owned(), 32 * 1024);
        for number in 0..2_000 {
            writer.write(LogLevel::Info, &number.to_string()).unwrap();
        }
        let mut follower = Follower::new(dir.path().to_owned());
        let mut last = None;
        while let Some(line) = follower.next(|| true).await {
            last = Some(line.message);
        }
        assert_eq!(last.unwrap(), "1999");
    }

    #[tokio::test]
    async fn a_log_that_never_was_is_over_at_once() {
        let mut follower = Follower::new("/nowhere/at/all".into());
        assert_eq!(follower.next(|| true).await, None);
    }
}
